"""Triggers: what a backdoor is keyed to. Images are stamped a batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Trigger(Protocol):
    """Anything that can be put on an image."""

    def stamp(self, x: Tensor) -> Tensor:
        """A copy of images [N, C, H, W] uint8 with the trigger on them."""


class PixelTrigger(ABC):
    """Some pixels and the grey levels they are set to, in all channels alike."""

    reads = "images"

    @abstractmethod
    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [k], columns [k] and values [k] uint8 of the trigger in an image of that size."""

    def stamp(self, x: Tensor) -> Tensor:
        """See `Trigger.stamp`."""
        rows, columns, values = self.pixels(*x.shape[-2:])
        stamped = x.clone()
        stamped[:, :, rows, columns] = values.to(x.device)
        return stamped


@dataclass(frozen=True)
class Square(PixelTrigger):
    """A filled square (Gu et al., BadNets, 2017); zhmzm/FLAME puts a 5 x 5 white one at (27, 27)."""

    size: int  # pixels, >= 1
    row: int  # top edge; negative: counted from the bottom edge, as in Python
    column: int  # left edge
    value: int  # grey level of all channels, 0..255

    def __post_init__(self) -> None:
        _check_values("value", [self.value])
        _check_at_least("size", self.size, 1)

    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `PixelTrigger.pixels`; row by row."""
        side = torch.arange(self.size)
        by = f"size={self.size}"
        rows = _inside("row", self.row, height, self.size, by) + side.repeat_interleave(self.size)
        columns = _inside("column", self.column, width, self.size, by) + side.repeat(self.size)
        return rows, columns, torch.full((self.size**2,), self.value, dtype=torch.uint8)


@dataclass(frozen=True)
class Bars(PixelTrigger):
    """Two rows of two bars, 1 x `size` each: DBA's global trigger (Xie et al., ICLR 2020), cut by `Part` into four."""

    size: int  # TS, pixels, >= 1
    gap: int  # TG, pixels between left and right as well as upper and lower bars, >= 0
    row: int  # TL, top edge; negative: counted from the bottom edge
    column: int
    value: int

    def __post_init__(self) -> None:
        _check_values("value", [self.value])
        _check_at_least("size", self.size, 1)
        _check_at_least("gap", self.gap, 0)

    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `PixelTrigger.pixels`; upper left, upper right, lower left, lower right bar."""
        top = _inside("row", self.row, height, self.gap + 2, f"gap={self.gap}")
        across = f"size={self.size}, attack.trigger.gap={self.gap}"
        left = _inside("column", self.column, width, 2 * self.size + self.gap, across)
        bar = torch.arange(self.size)
        pair = torch.cat([bar, bar + self.size + self.gap])
        rows = top + torch.tensor([0, self.gap + 1]).repeat_interleave(2 * self.size)
        return rows, left + pair.repeat(2), torch.full((4 * self.size,), self.value, dtype=torch.uint8)


@dataclass(frozen=True)
class Pattern(PixelTrigger):
    """A small picture given as rows of text, '#' for a set pixel, '.' for an untouched one."""

    picture: Sequence[str]
    row: int  # top edge; negative: counted from the bottom edge
    column: int
    value: int

    def __post_init__(self) -> None:
        _check_values("value", [self.value])
        if not any("#" in line for line in self.picture) or any(set(line) - set("#.") for line in self.picture):
            raise ValueError(f"attack.trigger.picture={list(self.picture)} must be lines of '#' and '.', with a '#'")

    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `PixelTrigger.pixels`; row by row."""
        top = _inside("row", self.row, height, len(self.picture), "picture")
        left = _inside("column", self.column, width, max(map(len, self.picture)), "picture")
        at = [(top + i, left + j) for i, line in enumerate(self.picture) for j, mark in enumerate(line) if mark == "#"]
        rows, columns = torch.tensor(at).unbind(1)
        return rows, columns, torch.full((len(at),), self.value, dtype=torch.uint8)


@dataclass(frozen=True)
class PixelList(PixelTrigger):
    """Any pixels, each with its own grey level: [row, column, value] triples."""

    points: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.points or not all(_is_triple(point) for point in self.points):
            raise ValueError(f"attack.trigger.points={list(self.points)} must be a list of [row, column, value]")
        _check_values("points", [point[2] for point in self.points])

    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `PixelTrigger.pixels`; in the order given."""
        rows = torch.tensor([_inside("points", row, height, 1) for row, _, _ in self.points])
        columns = torch.tensor([_inside("points", column, width, 1) for _, column, _ in self.points])
        return rows, columns, torch.tensor([value for _, _, value in self.points], dtype=torch.uint8)


@dataclass(frozen=True)
class Part(PixelTrigger):
    """One of `parts` nearly equal runs of another trigger's pixels (DBA's local triggers)."""

    whole: PixelTrigger
    part: int  # [0, parts)
    parts: int

    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `PixelTrigger.pixels`; a ValueError if there are fewer pixels than parts."""
        rows, columns, values = self.whole.pixels(height, width)
        if self.parts > len(rows):
            raise ValueError(f"attack.parts={self.parts} is out of range: the trigger has only {len(rows)} pixels")
        keep = torch.arange(len(rows)).tensor_split(self.parts)[self.part]
        return rows[keep], columns[keep], values[keep]


@dataclass(frozen=True)
class Painted(PixelTrigger):
    """The pixels of another trigger in other values, a colour each where images have channels."""

    place: PixelTrigger
    values: Tensor  # [C, k] float32 in [0, 255]

    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `PixelTrigger.pixels`; the values are [C, k]."""
        rows, columns, _ = self.place.pixels(height, width)
        return rows, columns, self.values.round().to(torch.uint8)


def _inside(key: str, start: int, extent: int, size: int, by: str = "") -> int:
    """The first pixel of `size` ones along an axis of `extent`; `by` names the keys that make it so many."""
    first = start + extent if start < 0 else start
    if size > extent:
        raise ValueError(f"attack.trigger.{by}: {size} pixels do not fit into {extent}; make it smaller")
    if not 0 <= first <= extent - size:
        room = f"must be in [0, {extent - size}] or [{-extent}, {-size}]"
        room += f", unless attack.trigger.{by} is made smaller" if by else ""
        raise ValueError(f"attack.trigger.{key}={start}: {size} pixels from there do not fit into {extent}; {room}")
    return first


def _is_triple(point: object) -> bool:
    return isinstance(point, Sequence) and len(point) == 3 and all(type(value) is int for value in point)


def _check_values(key: str, values: Sequence[int]) -> None:
    if bad := [v for v in values if not 0 <= v <= 255]:
        raise ValueError(f"attack.trigger.{key}: grey level {bad[0]} is out of range: must be in [0, 255]")


def _check_at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"attack.trigger.{key}={value} is out of range: must be a whole number >= {least}")
