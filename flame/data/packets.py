"""Packets of one device, read from a capture or a table: when, which way, how long, and between which ports.

* `.pcap`, `.pcapng`, `.cap`: read with dpkt (extra `traffic`), Ethernet or raw IP. The file's name, or that of the
  folder it is in, ends in `@ADDRESS`, the device's MAC (`@b8-27-eb-00-00-01`) or IPv4 address (`@192.168.1.7`): which
  way a packet goes is told by that and never guessed. Packets that the device neither sends nor is sent are left out.
* `.csv`: a header and a line per packet, with the columns of `COLUMNS`; or a column `symbol` alone, for traffic that
  has been turned into symbols already.

Headers are read here, at fixed places, and not with dpkt's classes: what attackers send may be cut or malformed, which
is no reason to refuse a capture. Such a packet has as much of a description as there is of it.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import logging
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

CAPTURES = (".pcap", ".pcapng", ".cap")
ENDINGS = (*CAPTURES, ".csv")
COLUMNS = ("time", "direction", "length", "flags", "protocol", "local_port", "remote_port")
SYMBOL = "symbol"  # the column of a table of symbols
ETHERNET, RAW_IP = (1,), (12, 14, 101, 228, 229)  # link types, tcpdump.org/linktypes.html
TAGS = (0x8100, 0x88A8)  # of virtual networks, before the type
NETWORKS = {0x0800: "ip", 0x86DD: "ip6", 0x0806: "arp", 0x888E: "eapol"}
TRANSPORTS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 58: "icmp6"}
MAC = re.compile(r"[0-9a-f]{2}([-:][0-9a-f]{2}){5}", re.IGNORECASE)
log = logging.getLogger(__name__)


class Packet(NamedTuple):
    """What a symbol is made of."""

    time: float  # seconds, from any moment on
    outgoing: bool  # whether the device has sent it
    length: int  # bytes: of an IP packet its own, of any other all that was captured
    flags: int  # of TCP, in [0, 255]; else 0
    protocol: str  # network and transport: ip.tcp, ip6.udp, arp
    local_port: int | None  # the device's, of TCP and UDP
    remote_port: int | None  # likewise, its peer's


Record = list[Packet] | list[str]  # of one device: packets, or symbols that a table has


class Whole(io.BytesIO):
    """A capture's bytes, of which none may be missing: dpkt hands out what is left, however much was promised."""

    def read(self, size: int | None = -1) -> bytes:
        """EOFError if some of `size` bytes are there, but not all, or if a block is shorter than its own head."""
        if size is None or size < 0:
            raise EOFError("a block says that it is shorter than its own head")
        found = super().read(size)
        if 0 < len(found) < size:
            raise EOFError(f"it ends {size - len(found)} bytes too early")
        return found


def read(path: Path, address: str | None) -> Record:
    """The packets of the device with this address, which a table needs not; or the symbols of a table.

    Raises:
        ValueError: the file is damaged, empty or no such file; the sentence names it, what is wrong, and the remedy.
    """
    found = read_csv(path) if path.suffix.lower() == ".csv" else read_capture(path, device(path, address))
    if not found:
        raise ValueError(
            f"{path} has no packet{f' from or to {address}' if address else ''}: must have some; delete it"
        )
    return found


def device(path: Path, address: str | None) -> bytes:
    """[6] a MAC or [4] an IPv4 address, as packets have it."""
    if address is not None and MAC.fullmatch(address):
        return bytes.fromhex(re.sub("[-:]", "", address))
    try:
        return ipaddress.IPv4Address(address or "").packed
    except ValueError as error:
        raise ValueError(
            f"{path}: {address or 'its name'} is no address, and which way a packet goes is told by the device's: end"
            " the name in its MAC or IPv4 address, as in gateway@b8-27-eb-00-00-01.pcap or gateway@192.168.1.7.pcap"
        ) from error


def read_capture(path: Path, device: bytes) -> list[Packet]:
    """The device's packets in a file of libpcap's or the newer format."""
    try:
        import dpkt  # here, because it is an extra
    except ImportError as error:
        raise ValueError(f"{path}: captures are read with dpkt: pip install 'dpkt>=1.9.8'; .csv needs none") from error
    try:
        capture = dpkt.pcap.UniversalReader(Whole(path.read_bytes()))
        link = capture.datalink()
        if link not in ETHERNET + RAW_IP:
            raise ValueError(f"its link type is {link}, must be Ethernet (1) or raw IP (101)")
        frames = [(float(time), frame) for time, frame in capture]
        if empty := [str(number) for number, (_, frame) in enumerate(frames, 1) if not frame]:
            raise ValueError(f"packet {empty[0]} is empty")
    except (dpkt.Error, ValueError, EOFError, struct.error) as error:
        reason = str(error).strip() or type(error).__name__
        raise ValueError(f"{path} is damaged or no capture ({reason:.200}): write it again, or delete it") from error
    found = [packet_of(time, frame, link, device) for time, frame in frames]
    packets = [packet for packet in found if packet is not None]
    if len(packets) < len(found):
        log.info("%s: %d of %d packets are other devices'", path, len(found) - len(packets), len(found))
    return packets


def packet_of(time: float, frame: bytes, link: int, device: bytes) -> Packet | None:
    """What a frame says of itself, however short it is; None unless the device sends it or is sent it."""
    sender, receiver, network, body = b"", b"", "ip6" if frame and frame[0] >> 4 == 6 else "ip", frame
    if link in ETHERNET:
        receiver, sender, at = frame[:6], frame[6:12], 12
        while (kind := int.from_bytes(frame[at : at + 2])) in TAGS:
            at += 4
        network, body = NETWORKS.get(kind, "llc" if kind <= 1500 else f"0x{kind:04x}"), frame[at + 2 :]
    length, transport, inside = len(frame), "", b""
    if network in ("ip", "ip6"):
        own_sender, own_receiver, length, transport, inside = _ip(network, body)
        if len(device) == 4:
            sender, receiver = own_sender, own_receiver
    if device not in (sender, receiver):
        return None
    ports = struct.unpack(">HH", inside[:4]) if transport in ("tcp", "udp") and len(inside) >= 4 else (None, None)
    flags = inside[13] if transport == "tcp" and len(inside) > 13 else 0
    outgoing = sender == device
    protocol = f"{network}.{transport}" if transport else network
    return Packet(time, outgoing, length, flags, protocol, *(ports if outgoing else ports[::-1]))


def _ip(network: str, body: bytes) -> tuple[bytes, bytes, int, str, bytes]:
    """Sender, receiver, length, transport and what that has in it, of an IP packet; of a later fragment nothing."""
    if network == "ip":
        start, said = 4 * (body[0] & 15) if body else 0, int.from_bytes(body[2:4])
        sender, receiver, kind = body[12:16], body[16:20], body[9:10]
        whole = not int.from_bytes(body[6:8]) & 0x1FFF
    else:
        start, said = 40, int.from_bytes(body[4:6]) + 40
        sender, receiver, kind, whole = body[8:24], body[24:40], body[6:7], True
    transport = TRANSPORTS.get(kind[0], str(kind[0])) if kind else ""
    return sender, receiver, said or len(body), transport, body[start:] if whole else b""


def read_csv(path: Path) -> Record:
    """The packets, or the symbols, of a table."""
    try:
        table = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        names = table.fieldnames or ()
        if SYMBOL in names:
            return [_symbol(path, table.line_num, row[SYMBOL]) for row in table]
        if missing := [name for name in COLUMNS if name not in names]:
            has = ", ".join(map(repr, names))[:200] or "nothing"
            raise ValueError(
                f"{path} lacks the columns {', '.join(missing)} (it has {has}): must have {', '.join(COLUMNS)}, or"
                f" {SYMBOL} alone"
            )
        return [Packet(*_fields(path, table.line_num, row)) for row in table]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it so") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV, line {table.line_num} ({error}): write it again") from error


def _symbol(path: Path, line: int, text: str | None) -> str:
    if not text or not text.isprintable() or text.split() != [text]:
        raise ValueError(
            f"{path}, line {line}: {SYMBOL}={text!r:.80} must be printable text without blanks; mend the line"
        )
    return text


def _fields(path: Path, line: int, row: Mapping[str, Any]) -> Iterator[Any]:
    """The values of a line, in the order of `Packet`."""
    for name in COLUMNS:
        allowed, make = FIELDS[name]
        try:
            yield make(row[name].strip())
        except (ValueError, AttributeError, KeyError) as error:  # not a number; None, as the line is too short
            raise ValueError(
                f"{path}, line {line}: {name}={row[name]!r:.80} must be {allowed}; mend the line"
            ) from error


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(high: int, empty: bool = False) -> Callable[[str], int | None]:
    def make(text: str) -> int | None:
        if empty and not text:
            return None
        value = int(text)
        if not 0 <= value <= high:
            raise ValueError(text)
        return value

    return make


def _protocol(text: str) -> str:
    if not text.isprintable() or text.split() != [text]:
        raise ValueError(text)
    return text


FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "time": ("seconds, a finite number", _seconds),
    "direction": ("in or out", lambda text: {"in": False, "out": True}[text]),
    "length": ("bytes, a whole number in [0, 2147483647]", _whole(2**31 - 1)),
    "flags": ("TCP's flags, a whole number in [0, 255]", _whole(255)),
    "protocol": ("a name without blanks, such as ip.tcp", _protocol),
    "local_port": ("a whole number in [0, 65535], or empty", _whole(65535, empty=True)),
    "remote_port": ("a whole number in [0, 65535], or empty", _whole(65535, empty=True)),
}
