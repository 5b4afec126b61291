"""What a batch of training images looks like: as stored, or cropped and flipped anew each time it is seen.

Draws are made on the CPU, a batch at a time, from the client's stream of role "augment" (`LocalJob.view`).

Trigger first or augmentation first? `stamp: after`, the default, is what public code does: a loader augments, and the
attacker stamps the batch that it gives out. So AI-secure/DBA (c70dd0e, image_helper.py; flips, on Tiny-ImageNet alone)
and BackFed (thinh-dao/BackFed 133a1c6, backfed/datasets/fl_dataloader.py, flips; 3f4ae01, backfed/poisons/base.py), as
would zhmzm/FLAME (c5f94e6, models/MaliciousUpdate.py), which augments nothing. The trigger then stands where it is
tested. `before` moves it with the image, as where poisoned files are handed to a loader. Images poisoned without a
stamp (semantic, edge cases, flipped labels) are augmented as all others, as in ebagdasa/backdoor_federated_learning
(897102a, training.py). Where batches are poisoned one by one (`attacks/mixing.py`), each is first poisoned, then seen
in the same order; the two halves of a multi-task batch have draws of their own.

Only what trains a model on a client's images is augmented: gradients, triggers and success that an attack measures or
searches for are taken on the images as stored, and DarkFed, which has none, trains on its noise as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flame.data.samples import Samples

View = Callable[[Samples, Tensor], Tensor]  # (images, index [B]) -> what is trained on, [B, C, H, W] uint8
ORDERS = ("after", "before")


@dataclass(frozen=True)
class Stamped(Samples):
    """Images, `x`, of which some carry a trigger, with what it takes to stamp them anew."""

    bare: Tensor  # [N, C, H, W] uint8, the same images without it
    marked: Tensor  # [N] bool, which of them carry it
    stamp: Callable[[Tensor], Tensor]  # images [B, C, H, W] uint8 -> a copy with the trigger


def joined(first: Samples, second: Samples) -> Samples:
    """Both, one behind the other; what is known of the first one's triggers is kept, the second has none."""
    x, y = torch.cat([first.x, second.x]), torch.cat([first.y, second.y])
    if not isinstance(first, Stamped):
        return Samples(x, y)
    bare, marked = torch.cat([first.bare, second.x]), torch.zeros_like(y, dtype=torch.bool)
    marked[: len(first)] = first.marked
    return Stamped(x, y, bare, marked, first.stamp)


def as_stored(images: Samples, index: Tensor) -> Tensor:
    """The batch as it is, [B, C, H, W] uint8."""
    return images.x[index]


class Augment(Protocol):
    """A kind of augmentation."""

    def check(self, height: int, width: int) -> None:
        """ValueError unless it can be done to images of that size, in pixels."""

    def view(self, stream: Generator) -> View:
        """How the batches of one training are seen; `stream` is drawn from in their order."""


@dataclass(frozen=True)
class NoAugment:
    """Images as they are stored; nothing is drawn."""

    def check(self, height: int, width: int) -> None:
        """Any size will do."""

    def view(self, stream: Generator) -> View:
        """See `Augment.view`."""
        return as_stored


UNCHANGED = NoAugment()


@dataclass(frozen=True)
class CropFlip:
    """A crop of the image's own size from a black frame around it, and a flip from left to right, each drawn anew.

    torchvision's RandomCrop(size, padding=pad) and RandomHorizontalFlip(flip), an image of its own for each draw.
    """

    pad: int  # pixels of the frame, >= 0 and less than the image's sides; 0: no crop
    flip: float  # chance, in [0, 1]
    stamp: str  # after | before: when a trigger is put on

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"augment.pad={self.pad} is out of range: must be a whole number >= 0 (0: no crop)")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip={self.flip} is out of range: must be in [0, 1], a chance (0: no flip)")
        if self.stamp not in ORDERS:
            raise ValueError(f"augment.stamp={self.stamp!r} is unknown: must be one of {', '.join(ORDERS)}")

    def check(self, height: int, width: int) -> None:
        """See `Augment.check`."""
        if self.pad >= min(height, width):
            raise ValueError(
                f"augment.pad={self.pad} is out of range: must be in [0, {min(height, width) - 1}], as a crop of these"
                f" images of {height} x {width} pixels could else miss the image; lower it, or say augment=none"
            )

    def view(self, stream: Generator) -> View:
        """See `Augment.view`."""

        def look(images: Samples, index: Tensor) -> Tensor:
            if self.stamp == "before" or not isinstance(images, Stamped):
                return self.drawn(images.x[index], stream)
            x = self.drawn(images.bare[index], stream)
            with torch.autocast(x.device.type, enabled=False):  # a learned trigger is stamped as it is tested
                return torch.where(images.marked[index].view(-1, 1, 1, 1), images.stamp(x), x)

        return look

    def drawn(self, x: Tensor, stream: Generator) -> Tensor:
        """Images [B, C, H, W] uint8, each cropped and flipped by draws of its own: two calls of `stream` for all."""
        (height, width), side = x.shape[-2:], 2 * self.pad + 1
        corners = torch.randint(side, (2, len(x)), generator=stream).to(x.device)
        flipped = (torch.rand(len(x), generator=stream) < self.flip).to(x.device)
        crops = F.pad(x, [self.pad] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, side, side, H, W], a view
        x = crops[torch.arange(len(x), device=x.device), :, corners[0], corners[1]]
        return torch.where(flipped.view(-1, 1, 1, 1), x.flip(3), x)
