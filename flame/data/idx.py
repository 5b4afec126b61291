"""IDX, the file format of MNIST and its successors: where the files are, and what is verifiably in them.

Format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits": a big-endian magic number (two zero bytes,
a type code, the number of dimensions), a 32-bit size per dimension, then the values.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flame.data.samples import Samples

UINT8 = 0x08  # the only type code that the image sets use
GZIP = b"\x1f\x8b"  # an IDX file starts with two zero bytes, so this cannot be one

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@dataclass(frozen=True)
class IdxSource:
    """Four IDX files with known content, and where copies of them come from."""

    name: str  # as in `dataset=<name>`
    sha256: Mapping[str, str]  # file -> hash of its decompressed content, which recompressing does not change
    torchvision: str  # class in torchvision.datasets; it keeps its files in <root>/<class>/raw
    package: str | None = None  # Debian package
    system: Path | None = None  # where that package installs the files

    def fetched(self, root: Path) -> Path:
        """Where downloads go: torchvision's own layout, so that both find each other's files."""
        return root / self.torchvision / "raw"

    def places(self, root: Path) -> list[Path]:
        """The folders to look in, in this order."""
        return [self.fetched(root), root, *([self.system] if self.system else [])]

    def find(self, root: Path) -> Path | None:
        """The first folder that has all four files."""
        return next((place for place in self.places(root) if all(stored(place, name) for name in self.sha256)), None)

    def load(self, folder: Path) -> tuple[Samples, Samples]:
        """Train and test set from a folder that has all four files; raises OSError as `read_idx` does."""

        def read(name: str, dims: int) -> Tensor:
            return read_idx(stored(folder, name) or folder / name, dims, self.sha256[name])

        def split(images: str, labels: str) -> Samples:
            return Samples(read(images, 3).unsqueeze(1), read(labels, 1).long())  # [N, 1, H, W], [N]

        return split(TRAIN_IMAGES, TRAIN_LABELS), split(TEST_IMAGES, TEST_LABELS)


Fetch = Callable[[IdxSource, Path], None]  # puts the four files under a root; OSError or RuntimeError if it cannot


def locate(source: IdxSource, root: Path, fetchers: Iterable[Fetch]) -> Path:
    """The folder of the four files; `fetchers` are tried in turn only if they are nowhere yet.

    Raises FileNotFoundError that names the places, what the fetchers said, and the remedies.
    """
    folder, failures = source.find(root), ""
    for fetch in fetchers:
        if folder:
            break
        try:
            fetch(source, root)
        except (OSError, RuntimeError) as error:
            failures += f"\n  {fetch.__name__}: {error}"
        folder = source.find(root)
    if folder is None:
        raise FileNotFoundError(
            f"dataset={source.name}: no folder has its four IDX files ({', '.join(source.sha256)}; plain or .gz); "
            f"looked in {', '.join(map(str, source.places(root)))}; get them with "
            f"{'`make data` or ' if source.package else ''}dataset.download=true, or set paths.data{failures}"
        )
    return folder


def stored(folder: Path, name: str) -> Path | None:
    """The plain or gzip form of a file, or None; plain first, it loads five times faster."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def decompressed(path: Path) -> bytes:
    """Content of a plain or gzip file, told apart by its first bytes; raises OSError naming a damaged one."""
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"gzip says: {error}") from error


def read_idx(path: Path, dims: int, sha256: str) -> Tensor:
    """The uint8 array of `dims` dimensions in a plain or gzip file whose decompressed content has this `sha256`.

    Raises OSError that names the file, what is wrong with it and the remedy.
    """
    content = decompressed(path)
    array = parsed(path, content, dims)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise damaged(path, f"another content than the expected one (sha256 {sha256[:12]}...)")
    return array


def parsed(path: Path, content: bytes, dims: int) -> Tensor:
    """The uint8 array of `dims` dimensions in the `content` of a file; OSError that names it if it is something else.

    The header is only compared with the content that is there: sizes it promises are never allocated.
    """
    start = 4 * (1 + dims)
    if len(content) < start:
        raise damaged(path, f"truncated: {len(content)} bytes, the header alone has {start}")
    magic, *shape = struct.unpack_from(f">{1 + dims}I", content)
    if magic != UINT8 << 8 | dims:
        raise damaged(path, f"magic number {magic:#010x}, not {UINT8 << 8 | dims:#010x} (uint8, {dims} dimensions)")
    if math.prod(shape) != len(content) - start:
        raise damaged(
            path, f"the header promises {math.prod(shape)} bytes of data, the file has {len(content) - start}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def damaged(path: Path, problem: str) -> OSError:
    """What to raise about a file that is there and is not what it should be."""
    return OSError(
        f"{path} is damaged or not the right file: {problem}; "
        "delete it and get it again with dataset.download=true (Fashion-MNIST also with `make data`)"
    )
