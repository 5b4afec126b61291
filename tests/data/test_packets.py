"""Captures: read as they were written, beside dpkt's own dissection, and refused in words where they are damaged."""

from __future__ import annotations

import random
import socket
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from damaged import damage
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.data.packets import ETHERNET, RAW_IP, Packet, device, packet_of, read
from flame.data.synthetic import ADDRESS, ATTACKS, EXCHANGES, MAC, PEER, drawn, frame, write, write_capture
from flame.data.traffic import traffic

dpkt = pytest.importorskip("dpkt", reason="the extra `traffic` is not installed")
SENT: list[Packet] = drawn(EXCHANGES["synthetic_camera"], 40, 0, 0)
OWN = socket.inet_aton("0.0.0.1")  # the last bytes of MAC, which `frame` takes for addresses


def saved(path: Path, kind: str) -> Path:
    """The packets in a capture of some kind."""
    frames = [(packet.time, frame(packet)) for packet in SENT]
    file = BytesIO()
    if kind == "pcapng":
        dpkt.pcapng.Writer(file).writepkts(frames)
    elif kind == "raw":
        dpkt.pcap.Writer(file, linktype=101).writepkts([(time, each[14:]) for time, each in frames])
    elif kind == "nano":
        dpkt.pcap.Writer(file, nano=True).writepkts(frames)
    else:  # big-endian
        file.write(struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for time, each in frames:
            file.write(struct.pack(">IIII", int(time), round(time % 1 * 1e6), len(each), len(each)) + each)
    path.write_bytes(file.getvalue())
    return path


@pytest.mark.parametrize("kind", ["pcapng", "nano", "big", "raw"])
def test_captures_of_every_kind_have_the_packets(kind: str, tmp_path: Path) -> None:
    found = read(saved(tmp_path / "any.pcap", kind), "0.0.0.1" if kind == "raw" else ADDRESS)
    assert [each[1:] for each in found] == [each[1:] for each in SENT]
    times = [each.time for each in found if isinstance(each, Packet)]
    assert times == pytest.approx([each.time for each in SENT], abs=2e-6)


def test_tables_and_captures_are_one_data_set(tmp_path: Path) -> None:
    """To the bit, as pauses are counted in microseconds in both."""
    settings = {"device": None, "attacker": "synthetic_scan", "length": 10, "lengths": 8, "pauses": [0.001, 0.05]}
    settings |= {"test_share": 0.2, "sigma": 0.01, "gamma": 0.5, "tokens": 28, "classes": 28}
    digests = set()
    for name, captures in (("tables", False), ("captures", True)):
        write(tmp_path / name, seed=0, gateways=2, packets=101, captures=captures)
        digests.add(traffic(str(tmp_path / name), **settings).digest())  # type: ignore[arg-type]
    assert len(digests) == 1


def test_a_folder_has_the_address_of_its_captures(tmp_path: Path) -> None:
    write(tmp_path / "all", seed=0, gateways=1, packets=101, captures=True)
    one = tmp_path / f"all/synthetic_plug/gateway_00@{ADDRESS}.pcap"
    one.with_suffix("").mkdir()
    packets = read(one, ADDRESS)
    one.unlink()
    write_capture(one.with_suffix("") / "1.pcap", packets[:50])  # type: ignore[arg-type]
    write_capture(one.with_suffix("") / "2.pcap", packets[50:])  # type: ignore[arg-type]
    found = traffic(str(tmp_path / "all"), "synthetic_plug", None, 10, 8, [0.05], 0.2, 0.01, 0.5, 8, 8)
    assert found.holders is not None and found.holders.names == ("synthetic_plug/gateway_00",)
    assert len(found.train) == 8


def dissected(content: bytes) -> tuple[Any, ...]:
    """Length, flags, protocol and ports of an Ethernet frame, as dpkt has them."""
    ip = dpkt.ethernet.Ethernet(content).data
    inside, version = ip.data, {dpkt.ip.IP: "ip", dpkt.ip6.IP6: "ip6"}[type(ip)]
    length = ip.len if version == "ip" else ip.plen + 40
    name = {dpkt.tcp.TCP: "tcp", dpkt.udp.UDP: "udp", dpkt.icmp.ICMP: "icmp"}[type(inside)]
    ports = (inside.sport, inside.dport) if name != "icmp" else (None, None)
    return length, getattr(inside, "flags", 0), f"{version}.{name}", *ports


@given(
    st.booleans(),
    st.sampled_from(["tcp", "udp", "icmp"]),
    st.lists(st.integers(0, 65535), min_size=2, max_size=2),
    st.integers(0, 255),
    st.binary(max_size=40),
    st.integers(0, 2),
    st.integers(0, 40),
)
@settings(max_examples=80)
def test_headers_are_read_as_dpkt_reads_them(
    sixth: bool, kind: str, ports: list[int], flags: int, payload: bytes, tags: int, options: int
) -> None:
    """IPv4 with options, IPv6, tags of virtual networks; a frame that is cut anywhere says less, and raises nothing."""
    sport, dport = ports
    inside = {
        "tcp": lambda: dpkt.tcp.TCP(sport=sport, dport=dport, flags=flags, data=payload),
        "udp": lambda: dpkt.udp.UDP(sport=sport, dport=dport, ulen=8 + len(payload), data=payload),
        "icmp": lambda: dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(data=payload)),
    }[kind]()
    number = {"tcp": 6, "udp": 17, "icmp": 1}[kind]
    if sixth:
        ip: Any = dpkt.ip6.IP6(src=b"a" * 16, dst=b"b" * 16, nxt=number, plen=len(inside), data=inside)
    else:
        some = b"\1" * (options // 4 * 4)
        ip = dpkt.ip.IP(src=b"abcd", dst=b"efgh", p=number, data=inside, opts=some)
        ip.hl, ip.len = 5 + len(some) // 4, len(ip)
    content = bytes(ip)
    head = PEER + MAC + b"\x81\x00\x00\x05" * tags + (b"\x86\xdd" if sixth else b"\x08\x00")
    whole = packet_of(1.5, head + content, 1, MAC)
    assert whole is not None and whole[:2] == (1.5, True) and whole[2:] == dissected(head + content)
    back = packet_of(1.5, MAC + PEER + head[12:] + content, 1, MAC)
    assert back == whole._replace(outgoing=False, local_port=whole.remote_port, remote_port=whole.local_port)
    assert packet_of(0, head + content, 1, b"\7" * 6) is None
    for end in range(len(head + content)):
        cut = packet_of(0, (head + content)[:end], 1, MAC)
        assert cut is None if end < 12 else cut is not None and cut.protocol in (whole.protocol, *CUT)


CUT = ("llc", "0x0081", "0x0086", "0x0008", "ip", "ip6")  # of a frame that ends within its type, or behind it


@given(st.binary(max_size=80), st.sampled_from(ETHERNET + RAW_IP), st.sampled_from([b"", MAC, OWN]))
@settings(max_examples=200)
def test_no_bytes_of_a_frame_are_too_odd(content: bytes, link: int, whose: bytes) -> None:
    found = packet_of(0.0, content, link, whose)
    assert found is None or (0 <= found.flags <= 255 and found.protocol and 0 <= found.length <= 65575)


def test_fragments_and_others() -> None:
    """Of a later fragment there are no ports; a frame of an unknown kind is known by its number."""
    head = bytearray(frame(SENT[0]))
    head[14 + 7] = 1  # offset
    found = packet_of(0, bytes(head), 1, MAC)
    assert found is not None and (found.protocol, found.local_port, found.flags) == ("ip.udp", None, 0)
    kinds = {b"\x08\x06": "arp", b"\x88\x8e": "eapol", b"\x88\xcc": "0x88cc", b"\x00\x40": "llc"}
    for kind, name in kinds.items():
        assert packet_of(0, PEER + MAC + kind + b"any", 1, MAC) == Packet(0, True, 17, 0, name, None, None)


def test_addresses(tmp_path: Path) -> None:
    own = bytes.fromhex("b827eb000001")
    assert device(tmp_path, "B8-27-eb-00-00-01") == device(tmp_path, "b8:27:eb:00:00:01") == own
    assert device(tmp_path, "192.168.1.7") == bytes([192, 168, 1, 7])
    for address, said in ((None, "its name"), ("gw", "gw"), ("1.2.3", "1.2.3"), ("b8-27-eb", "b8-27-eb")):
        with pytest.raises(ValueError, match=rf"{said} is no address, .*: end the name in its MAC or IPv4"):
            device(tmp_path, address)


def test_bad_captures_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "gw.pcap"
    write_capture(path, SENT)
    whole = path.read_bytes()

    def says(content: bytes, sentence: str, address: str = ADDRESS) -> None:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"gw\.pcap .*{sentence}"):
            read(path, address)

    says(whole[:-1], r"is damaged or no capture \(it ends 1 bytes too early\): write it again, or delete it")
    says(whole[:30], r"is damaged or no capture \(it ends 10 bytes too early\)")
    says(whole[:40], r"is damaged or no capture \(packet 1 is empty\)")
    says(b"", r"is damaged or no capture")
    says(b"PK\3\4" * 20, r"is damaged or no capture \(unknown pcap format")
    says(whole[:20] + b"\x69" + whole[21:], r"its link type is 105, must be Ethernet \(1\) or raw IP \(101\)")
    blocks = saved(tmp_path / "blocks.pcapng", "pcapng").read_bytes()
    says(blocks + b"\5\0\0\0\7\0\0\0" + bytes(40), r"\(a block says that it is shorter than its own head\)")
    says(whole[:24], rf"has no packet from or to {ADDRESS}: must have some; delete it")
    says(whole, r"has no packet from or to 10\.0\.0\.9", "10.0.0.9")


def test_without_dpkt_the_sentence_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dpkt", None)
    with pytest.raises(ValueError, match=r"gw\.pcap: captures are read with dpkt: pip install 'dpkt>=1\.9\.8'"):
        read(tmp_path / "gw.pcap", ADDRESS)


@pytest.mark.parametrize("kind", ["pcapng", "nano", "big"])
def test_damaged_captures_are_refused_with_their_name_or_read(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "gw.pcap", kind)
    whole, refused = path.read_bytes(), 0
    for number in range(80):
        path.write_bytes(damage(whole, random.Random(f"{kind}/{number}")))
        try:
            assert 0 < len(read(path, ADDRESS)) <= 50
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 600
    assert 20 < refused < 80


def test_attacks_are_other_traffic() -> None:
    assert not set(ATTACKS) & set(EXCHANGES)
