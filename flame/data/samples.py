"""What a data set is: images in memory, their labels, and which client holds which.

Letters: N images, C H W their axes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory, raw; normalisation happens per batch."""

    x: Tensor  # [N, C, H, W] uint8
    y: Tensor  # [N] int64, class indices

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> LabelledImages:
        """The same images on a device; nothing is copied when they are there."""
        return LabelledImages(self.x.to(device), self.y.to(device))

    def __getitem__(self, index: Tensor | slice) -> LabelledImages:
        """The sub-set picked by a slice, an index tensor or a mask."""
        return LabelledImages(self.x[index], self.y[index])


@dataclass(frozen=True)
class Holders:
    """Who holds which training image, where a data set knows it: writers, hospitals, users."""

    of: Tensor  # [N] int64, the holder of each training image, in [0, len(names))
    names: tuple[str, ...]  # one per holder, distinct; a holder may have no image
    told_by: str = ""  # for messages: the array that they are from, and its file

    def __getitem__(self, index: Tensor | slice) -> Holders:
        """Of those images; all names stay, and so the numbers."""
        return replace(self, of=self.of[index])


@dataclass(frozen=True)
class Kept:
    """Which of the training images that were loaded are still there, once some have been taken away or drawn."""

    at: Tensor  # [N] int64, where each stood
    loaded: int  # images before

    @classmethod
    def whole(cls, images: int) -> Kept:
        """All of them."""
        return cls(torch.arange(images), images)

    def __getitem__(self, index: Tensor | slice) -> Kept:
        """What is kept of those that are still there."""
        return Kept(self.at[index], self.loaded)


@dataclass(frozen=True)
class Dataset:
    """A train and a test set with the facts that the YAML states once."""

    name: str
    train: LabelledImages
    test: LabelledImages
    mean: tuple[float, ...]  # [C], of pixels scaled to [0, 1]
    std: tuple[float, ...]  # [C]
    classes: int
    holders: Holders | None = None
    kept: Kept | None = None  # None: all

    def narrowed(self, index: Tensor) -> Dataset:
        """The data set with those training images alone, in that order: an index tensor or a mask."""
        kept = self.kept or Kept.whole(len(self.train))
        holders = self.holders and self.holders[index]
        return replace(self, train=self.train[index], holders=holders, kept=kept[index])

    def digest(self) -> str:
        """sha256 of all that a run takes from it: not of its name, nor of where it lay."""
        h = hashlib.sha256()
        for tensor in (self.train.x, self.train.y, self.test.x, self.test.y):
            h.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            h.update(tensor.contiguous().numpy().data)
        h.update(repr((self.mean, self.std, self.classes)).encode())
        if self.holders:
            h.update(repr(self.holders.names).encode())
            h.update(self.holders.of.contiguous().numpy().data)
        return h.hexdigest()


@dataclass(frozen=True)
class Shards:
    """Which training images belong to which client, as two arrays, so that 100,000 clients cost no objects."""

    index: Tensor  # [sum of sizes] int64, positions in the training set, client after client
    offsets: Tensor  # [clients + 1] int64
    names: tuple[str, ...] | None = None  # of the clients, where they have some

    @classmethod
    def cut(cls, index: Tensor, sizes: Tensor) -> Shards:
        """`index` cut into parts of `sizes` [clients]."""
        return cls(index, torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> Tensor:
        return self.index[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> Tensor:
        """[clients] int64."""
        return self.offsets.diff()
