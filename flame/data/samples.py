"""What a data set is: samples in memory, their labels, and which client holds which.

Letters: N samples; C H W the axes of an image, T the tokens of a text, F the features of a row.

| kind     | stored                                | read by the model                       | labels          |
|----------|---------------------------------------|-----------------------------------------|-----------------|
| images   | [N, C, H, W] uint8                    | [B, C, H, W] float32, normalised        | [N]             |
| tokens   | [N, T] int16, int32, int64            | [B, T] int64                            | [N, T] or [N]   |
| features | [N, F] float32                        | [B, F] float32, standardised            | [N]             |

A label is a class index, or `UNASKED` where nothing is asked. A model answers with logits [B, classes], and with
[B, classes, T] where every token has a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from flame.data.vocabulary import Vocabulary

UNASKED = -100  # the label where nothing is asked: no loss and no accuracy looks there (torch's ignore_index)


@dataclass(frozen=True)
class Samples:
    """Samples in memory, raw; what a model reads is made of them a batch at a time (`flame/data/reading.py`)."""

    x: Tensor  # [N, ...]
    y: Tensor  # [N] or [N, T] int64

    def __len__(self) -> int:
        return len(self.y)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With every tensor changed, whatever else there is kept."""
        return replace(self, **{name: change(t) for name, t in vars(self).items() if isinstance(t, Tensor)})

    def to(self, device: torch.device) -> Self:
        """The same samples on a device; nothing is copied when they are there."""
        return self.mapped(lambda t: t.to(device))

    def __getitem__(self, index: Tensor | slice) -> Self:
        """The sub-set picked by a slice, an index tensor or a mask."""
        return self.mapped(lambda t: t[index])

    @property
    def asked(self) -> int:
        """How many answers are judged."""
        return int((self.y != UNASKED).sum())

    def right(self, logits: Tensor) -> Tensor:
        """Bool, of the shape of y, whether it is what `logits` [N, classes] or [N, classes, T] answer."""
        return logits.argmax(1) == self.y

    def apart(self) -> dict[str, Samples]:
        """Parts of a test set that are judged by themselves, too, by name: none, but for a subclass."""
        return {}


@dataclass(frozen=True)
class Holders:
    """Who holds which training sample, where a data set knows it: writers, hospitals, users."""

    of: Tensor  # [N] int64, the holder of each training image, in [0, len(names))
    names: tuple[str, ...]  # one per holder, distinct; a holder may have no image
    told_by: str = ""  # for messages: the array that they are from, and its file

    def __getitem__(self, index: Tensor | slice) -> Holders:
        """Of those images; all names stay, and so the numbers."""
        return replace(self, of=self.of[index])


@dataclass(frozen=True)
class Kept:
    """Which of the training samples that were loaded are still there, once some have been taken away or drawn."""

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
    train: Samples
    test: Samples
    mean: tuple[float, ...]  # images: [C], of pixels scaled to [0, 1]; features: [F]; tokens: ()
    std: tuple[float, ...]  # likewise
    classes: int
    holders: Holders | None = None
    kept: Kept | None = None  # None: all
    vocabulary: Vocabulary | None = None  # of tokens, which have one

    @property
    def kind(self) -> str:
        """images | tokens | features."""
        x = self.train.x
        return "features" if x.is_floating_point() else "images" if x.dtype == torch.uint8 else "tokens"

    @property
    def noun(self) -> str:
        """What its samples are called where people read."""
        return "images" if self.kind == "images" else "samples"

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
        if self.vocabulary:
            h.update(repr(self.vocabulary).encode())
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

    def first(self, clients: int) -> Shards:
        """Of so many clients alone, as without the server's own behind them."""
        return Shards(self.index[: self.offsets[clients]], self.offsets[: clients + 1], self.names)

    @property
    def sizes(self) -> Tensor:
        """[clients] int64."""
        return self.offsets.diff()
