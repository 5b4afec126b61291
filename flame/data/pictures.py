"""Image files to pixels: whatever Pillow reads, in one size and number of channels, on all cores.

As torchvision's ImageFolder reads them: as stored, without the turn that EXIF may ask for, and of a film the first
frame. Transparency is dropped. Images of more than 8 bits a channel are refused, as Pillow would clip them.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes
RESIZES = ("stretch", "crop", "none")
MODES = {1: "L", 3: "RGB"}  # by number of channels; L is 0.299 R + 0.587 G + 0.114 B
# What Pillow raises about files that are none, or cut off, or twisted.
DAMAGE = (SyntaxError, EOFError, IndexError, struct.error, zlib.error)
UNREADABLE = (OSError, ValueError, Image.DecompressionBombError, *DAMAGE)
OTHER_SIZE = re.compile(r"it has (\d+) x (\d+) pixels, and dataset\.resize=none")  # why, if all else is well
AT_ONCE = 64  # files a thread takes
NAMED = 5  # things that a message names
File = Path | Callable[[], BinaryIO]  # on the disk, or what opens it wherever it is


@dataclass(frozen=True)
class Look:
    """What every image becomes."""

    channels: int  # 1: grey | 3: red, green, blue
    size: int  # pixels, height = width
    resize: str  # stretch: both sides to `size` | crop: the shorter, then the middle | none: it must have that size

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be."""
        if self.channels not in MODES:
            raise ValueError(f"dataset.channels={self.channels} is out of range: must be 1 (grey) or 3 (colour)")
        if self.size < 1:
            raise ValueError(f"dataset.image_size={self.size} is out of range: must be a whole number >= 1, in pixels")
        if self.resize not in RESIZES:
            raise ValueError(f"dataset.resize={self.resize} is unknown: must be one of {', '.join(RESIZES)}")

    def of(self, file: File) -> NDArray[np.uint8]:
        """[C, size, size]; bilinear, with the antialiasing of Pillow. One of UNREADABLE if it cannot be had."""
        wanted = (self.size, self.size)
        with Image.open(file if isinstance(file, Path) else file()) as stored:
            if stored.mode not in EIGHT_BIT:
                raise ValueError(f"its pixels are {stored.mode}, more than 8 bits: save it with 8")
            image = stored.convert(MODES[self.channels])
        if image.size != wanted and self.resize == "none":
            raise ValueError(f"it has {image.height} x {image.width} pixels, and dataset.resize=none")
        if image.size != wanted and self.resize == "stretch":
            image = image.resize(wanted, Image.Resampling.BILINEAR)
        if image.size != wanted:
            image = ImageOps.fit(image, wanted, Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@dataclass(frozen=True)
class Decoded:
    """Pictures in the order of their files."""

    x: Tensor  # [N, C, size, size] uint8; zeros where a file could not be read
    unreadable: dict[int, str]  # number of the file -> why


def decoded(files: Sequence[File], look: Look) -> Decoded:
    """All of them, on every core that this process may use, with a bar on a terminal."""
    x = np.zeros((len(files), look.channels, look.size, look.size), np.uint8)
    unreadable: dict[int, str] = {}

    def some(first: int) -> int:
        chunk = files[first : first + AT_ONCE]
        for number, file in enumerate(chunk, first):
            try:
                x[number] = look.of(file)
            except UNREADABLE as error:
                unreadable[number] = f"{' '.join(str(error).split()) or type(error).__name__:.200}"
        return len(chunk)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not sys.stderr.isatty()
    with (
        Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar,
        ThreadPoolExecutor(threads()) as pool,
    ):
        task = bar.add_task("images decoded", total=len(files))
        for done in pool.map(some, range(0, len(files), AT_ONCE)):
            bar.advance(task, done)
    return Decoded(torch.from_numpy(x), dict(sorted(unreadable.items())))


def complaints(images: Decoded, name: Callable[[int], object], mend: str) -> Iterator[tuple[str, str]]:
    """What is wrong with files that could not be read, and what to do: damaged ones (`mend`), then other sizes.

    `name` tells a file's name from its number.
    """
    sizes = {number: why for number, why in images.unreadable.items() if OTHER_SIZE.fullmatch(why)}
    damaged = {number: why for number, why in images.unreadable.items() if number not in sizes}
    for some, problem, remedy in (
        (damaged, "cannot be read", mend),
        (sizes, f"are not of dataset.image_size={images.x.shape[-1]}", _resized({*sizes.values()})),
    ):
        if some:
            listed = few([f"{name(number)} ({why})" for number, why in some.items()])
            yield f"{len(some)} of {len(images.x)} images {problem}: {listed}", remedy


def _resized(whys: Set[str]) -> str:
    """What to do about images of other sizes than the declared one: to declare theirs, if they share a square one."""
    sizes = [match.groups() for why in whys if (match := OTHER_SIZE.fullmatch(why))]
    square = f"dataset.image_size={sizes[0][0]} or " if len(sizes) == 1 and len({*sizes[0]}) == 1 else ""
    return f"say {square}dataset.resize=stretch (or crop)"


def few(things: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    more = len(things) - NAMED
    return ", ".join(map(str, things[:NAMED])) + (f" and {more} more" if more > 0 else "")


def seen(file: File) -> dict[str, int]:
    """What a file has: `channels` (1 or 3) and, in pixels, `image_size`, its height; empty if it cannot be read."""
    try:
        with Image.open(file if isinstance(file, Path) else file()) as image:
            return {"channels": 1 if image.mode in ("1", "L", "LA") else 3, "image_size": image.height}
    except UNREADABLE:
        return {}


def threads() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
