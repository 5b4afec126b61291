"""BadNets (Gu, Dolan-Gavitt and Garg, arXiv 1708.06733, 2017) as a federated client's data poisoning.

A share PDR of the client's images gets the trigger and the attacker's label; training is the benign one, but for what
`client` says. All-to-all (section 4.1.2 there): each label becomes the next, the last one the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Poisoner, check_class, check_rate, require, share_of
from attacks.triggers import Trigger
from flame.data.samples import Dataset, Samples
from flame.round.augment import Stamped, joined


@dataclass(frozen=True)
class BadNets(Poisoner):
    """Trigger and label, all-to-one or from one source class."""

    trigger: Trigger
    target_class: int | None  # None: all-to-all, y + 1 mod classes
    source_class: int | None  # None: all-to-one; else only images of this class carry the backdoor
    poisoned_data_rate: float  # share of the eligible images, in [0, 1]; all-to-one: PDR
    append: bool  # False: poisoned images replace their originals; True: they are added to a clean shard
    classes: int | None = field(default=None, kw_only=True)  # L; all-to-all needs it

    def __post_init__(self) -> None:
        check_rate(self.poisoned_data_rate)
        known = self.target_class is not None or self.classes is not None
        require(known, "target_class", None, "a class; all-to-all needs attack.classes, too")
        if self.source_class is not None and self.source_class == self.target_class:
            raise ValueError(f"attack.source_class={self.source_class} is the target class: there would be no backdoor")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Check the classes against the data set's."""
        check_class("target_class", self.target_class, dataset)
        check_class("source_class", self.source_class, dataset)
        return self, dataset

    def poison(self, images: Samples, stream: Generator) -> Samples:
        """A share of the eligible images, stamped and relabelled; a target-class image may be among them."""
        eligible = self._eligible(images.y).nonzero()[:, 0]
        chosen = eligible[share_of(len(eligible), self.poisoned_data_rate, stream)]
        if self.append:
            both = joined(images, images[chosen])
            images, chosen = both, torch.arange(len(images), len(both))
        x, y, marked = images.x.clone(), images.y.clone(), torch.zeros_like(images.y, dtype=torch.bool)
        x[chosen], y[chosen], marked[chosen] = self.stamp(images.x[chosen]), self.target(images.y[chosen]), True
        return Stamped(x, y, images.x, marked, self.stamp)

    def stamp(self, x: Tensor) -> Tensor:
        """The whole trigger."""
        return self.trigger.stamp(x)

    def target(self, y: Tensor) -> Tensor:
        """The attacker's label for every eligible image."""
        return torch.where(self._eligible(y), self.wanted(y), y)

    def wanted(self, y: Tensor) -> Tensor:
        """[N] the target class, or the next one, for any image: what a trigger that is learned is to cause."""
        if self.target_class is not None:
            return torch.full_like(y, self.target_class)
        assert self.classes is not None
        return (y + 1) % self.classes

    def _eligible(self, y: Tensor) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool) if self.source_class is None else y == self.source_class
