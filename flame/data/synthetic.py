"""Synthetic traffic, for tests and a first look at `dataset=traffic`: no device has sent it, no finding rests on it.

Three made-up device types repeat short exchanges of packets, in an order and with pauses drawn anew for each gateway.
Three made-up attacks do likewise: a scan for open telnet ports, as malware such as Mirai does one, and two floods. All
folders and files have `synthetic` in their names.
"""

from __future__ import annotations

import csv
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flame.data.gateways import ATTACK
from flame.data.packets import COLUMNS, Packet

SYN, ACK, PUSH, FIN = 2, 16, 24, 17  # TCP's flags: SYN, ACK, PSH and ACK, FIN and ACK
MAC, PEER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")  # locally administered
ADDRESS = "02-00-00-00-00-01"  # the former, as it stands in a capture's name
NUMBERS = {"ip.tcp": 6, "ip.udp": 17}


class Step(NamedTuple):
    """A packet of an exchange; seconds after the one before, times a factor drawn from [0.5, 1.5)."""

    pause: float
    outgoing: bool
    length: int
    flags: int
    protocol: str
    local_port: int
    remote_port: int


def _tcp(local: int, remote: int, *steps: tuple[float, bool, int, int]) -> list[Step]:
    return [Step(*step, "ip.tcp", local, remote) for step in steps]


def _udp(local: int, remote: int, *steps: tuple[float, bool, int]) -> list[Step]:
    return [Step(*step, 0, "ip.udp", local, remote) for step in steps]


OPENED = ((1.0, True, 60, SYN), (0.02, False, 60, SYN | ACK), (0.0004, True, 52, ACK))
NAMES = _udp(51000, 53, (2.0, True, 64), (0.02, False, 128))
EXCHANGES: Mapping[str, Sequence[Sequence[Step]]] = {
    "synthetic_camera": (
        _tcp(50100, 443, *OPENED, (0.001, True, 569, PUSH), (0.03, False, 1500, ACK), (0.001, True, 52, ACK)),
        _tcp(50100, 443, *[(0.0002, True, 1500, ACK), (0.0002, True, 1500, ACK), (0.02, False, 52, ACK)] * 3),
        NAMES,
    ),
    "synthetic_plug": (
        _tcp(50200, 8883, (10.0, True, 92, PUSH), (0.04, False, 52, ACK)),
        _tcp(50200, 8883, (3.0, False, 120, PUSH), (0.0005, True, 52, ACK), (0.002, True, 140, PUSH)),
        _udp(123, 123, (60.0, True, 76), (0.03, False, 76)),
    ),
    "synthetic_hub": (
        _udp(5353, 5353, (5.0, True, 220), (0.01, False, 300)),
        _tcp(50300, 443, *OPENED, (0.002, True, 300, PUSH), (0.04, False, 600, PUSH), (0.001, True, 52, FIN)),
        NAMES,
    ),
}
ATTACKS: Mapping[str, Sequence[Sequence[Step]]] = {  # most of their packets are known from devices, but not in a row
    "synthetic_scan": (
        _tcp(50900, 23, *[(0.2, True, 60, SYN)] * 4, (0.02, False, 40, 20)),
        _tcp(50900, 2323, (0.2, True, 60, SYN), (0.2, True, 60, SYN)),
    ),
    "synthetic_name_flood": (_udp(50901, 53, *[(0.2, True, 64)] * 5, (0.01, True, 300)),),
    "synthetic_ack_flood": (_tcp(50902, 80, *[(0.0003, True, 52, ACK)] * 5, (0.02, False, 40, 4)),),
}


def write(root: Path, seed: int, gateways: int, packets: int, captures: bool = False) -> None:
    """For each device type `gateways` records of so many packets, one for each attack; tables, or captures.

    Raises:
        ValueError: a number is below 1, or the folder has something in it.
    """
    for name, value in (("gateways", gateways), ("packets", packets)):
        if value < 1:
            raise ValueError(f"--{name} {value} is out of range: must be a whole number >= 1")
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} has something in it: name a folder that is empty, or not there")
    ending = f"@{ADDRESS}.pcap" if captures else ".csv"
    records = [(f"{kind}/gateway_{i:02d}", EXCHANGES[kind]) for kind in EXCHANGES for i in range(gateways)]
    records += [(f"{ATTACK}/{name}", ATTACKS[name]) for name in ATTACKS]
    for number, (name, exchanges) in enumerate(records):
        path = root / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        (write_capture if captures else write_table)(path, drawn(exchanges, packets, seed, number))


def drawn(exchanges: Sequence[Sequence[Step]], packets: int, seed: int, number: int) -> list[Packet]:
    """So many packets of exchanges in a random order, at microseconds from 0 on."""
    draw, time, found = np.random.default_rng((seed, number)), 0.0, list[Packet]()
    while len(found) < packets:
        for step in exchanges[int(draw.integers(len(exchanges)))]:
            time += step.pause * draw.uniform(0.5, 1.5)
            found.append(Packet(round(time, 6), *step[1:]))
    return found[:packets]


def write_table(path: Path, packets: Sequence[Packet]) -> None:
    """As CSV with the columns of `flame.data.packets`."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([p.time, "out" if p.outgoing else "in", *p[2:]] for p in packets)


def write_capture(path: Path, packets: Sequence[Packet]) -> None:
    """In libpcap's format, Ethernet, of a device with the MAC `ADDRESS`; payloads are zeros."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for packet in packets:
        content, (seconds, rest) = frame(packet), divmod(round(packet.time * 1_000_000), 1_000_000)
        parts += [struct.pack("<IIII", seconds, rest, len(content), len(content)), content]
    path.write_bytes(b"".join(parts))


def frame(packet: Packet) -> bytes:
    """An Ethernet frame with a packet of IPv4 and TCP or UDP, checksums left out."""
    ends, ports = (MAC, PEER), (packet.local_port or 0, packet.remote_port or 0)
    (sender, receiver), (source, target) = (ends, ports) if packet.outgoing else (ends[::-1], ports[::-1])
    if packet.protocol == "ip.tcp":
        inside = struct.pack(">HHIIBBHHH", source, target, 0, 0, 5 << 4, packet.flags, 8192, 0, 0)
    else:
        inside = struct.pack(">HHHH", source, target, packet.length - 20, 0)
    number, addresses = NUMBERS[packet.protocol], sender[-4:] + receiver[-4:]
    head = struct.pack(">BBHHHBBH", 0x45, 0, packet.length, 0, 0, 64, number, 0) + addresses
    return receiver + sender + b"\x08\x00" + (head + inside).ljust(packet.length, b"\0")
