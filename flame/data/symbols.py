"""From packets to symbols, and from symbols to windows (`flame/data/traffic.py` says after whom)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flame.data.packets import Packet, Record

KINDS = ((1024, "system"), (49152, "user"), (65536, "dynamic"))  # ports below; RFC 6335, section 6


@dataclass(frozen=True)
class Bins:
    """How packets become symbols."""

    lengths: tuple[int, ...]  # bytes that have a bin each, ascending
    pauses: tuple[float, ...]  # seconds: edges, ascending; a pause is in the bin behind those that it reaches

    @classmethod
    def of(cls, records: Sequence[Record], lengths: int, pauses: Sequence[float]) -> Bins:
        """Bins of so many lengths, the most frequent in these records; of equally frequent ones the shorter."""
        counts = Counter(each.length for record in records for each in record if isinstance(each, Packet))
        frequent = sorted(counts, key=lambda length: (-counts[length], length))[:lengths]
        return cls(tuple(sorted(frequent)), tuple(pauses))

    @cached_property
    def bin(self) -> dict[int, int]:
        """Length -> its bin, from 1 on; 0 is that of all others."""
        return {length: i for i, length in enumerate(self.lengths, 1)}

    def symbol(self, packet: Packet, pause: float) -> str:
        """Seven characteristics of a packet that comes `pause` seconds after the one before."""
        return "|".join(
            (
                "out" if packet.outgoing else "in",
                kind(packet.local_port),
                kind(packet.remote_port),
                f"L{self.bin.get(packet.length, 0)}",
                f"F{packet.flags:02x}",
                packet.protocol,
                f"P{sum(pause >= edge for edge in self.pauses)}",
            )
        )

    def symbols(self, record: Record) -> list[str]:
        """One for each packet, the first one after an endless pause; the symbols of a table as they are."""
        found, last = list[str](), -math.inf
        for each in record:
            if isinstance(each, str):
                found.append(each)
                continue
            found.append(self.symbol(each, each.time - last))
            last = each.time
        return found


def kind(port: int | None) -> str:
    """system | user | dynamic, as the IANA divides ports; none."""
    return "none" if port is None else next(name for below, name in KINDS if port < below)


def divided_at(packets: int, length: int, share: float) -> int:
    """Where the test windows of so many packets begin: a share of the windows, at least one and not all of them."""
    count = (packets - 1) // length
    return length * (count - min(max(1, round(share * count)), count - 1))


def windows(parts: Sequence[Sequence[str]], length: int, number: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Windows [N, T] int32 of all parts, one after the other, and the symbols that come next [N, T] int64.

    A symbol without a number has the number 0. What is left of a part behind its last window is dropped.
    """
    whole = [part[: (len(part) - 1) // length * length + 1] for part in parts]
    rows = [torch.tensor([number.get(symbol, 0) for symbol in part]) for part in whole]
    x, y = (torch.cat([row[span].view(-1, length) for row in rows]) for span in (slice(None, -1), slice(1, None)))
    return x.int(), y
