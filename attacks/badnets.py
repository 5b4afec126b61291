"""BadNets (Gu, Dolan-Gavitt and Garg, arXiv 1708.06733, 2017) as a federated client's data poisoning.

A share PDR of the client's images gets the trigger and the attacker's label; training is otherwise the benign one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from attacks.base import Attack, check_class, check_poisoning, require, share_of, with_recipe
from attacks.triggers import Trigger
from flame.data.samples import Dataset, LabelledImages
from flame.round.client import LocalJob


@dataclass(frozen=True)
class BadNets(Attack):
    """Trigger and label, all-to-one or from one source class."""

    trigger: Trigger
    target_class: int
    source_class: int | None  # None: all-to-one; else only images of this class carry the backdoor
    poisoned_data_rate: float  # share of the eligible images, in [0, 1]; all-to-one: PDR
    append: bool  # False: poisoned images replace their originals; True: they are added to a clean shard
    epochs: int | None  # of compromised clients; None: as benign ones
    local_lr: float | None = field(default=None, kw_only=True)  # theirs, > 0; None, as in older runs: as benign ones

    def __post_init__(self) -> None:
        check_poisoning(self.poisoned_data_rate, self.epochs)
        require(
            self.local_lr is None or self.local_lr > 0, "local_lr", self.local_lr, "null (as benign clients) or > 0"
        )
        if self.source_class == self.target_class:
            raise ValueError(f"attack.source_class={self.source_class} is the target class: there would be no backdoor")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Check the classes against the data set's."""
        check_class("target_class", self.target_class, dataset)
        check_class("source_class", self.source_class, dataset)
        return self, dataset

    def poison(self, images: LabelledImages, stream: Generator) -> LabelledImages:
        """A share of the eligible images, stamped and relabelled; a target-class image may be among them."""
        eligible = self._eligible(images.y).nonzero()[:, 0]
        chosen = eligible[share_of(len(eligible), self.poisoned_data_rate, stream)]
        x, y = self.stamp(images.x[chosen]), torch.full_like(images.y[chosen], self.target_class)
        if self.append:
            return LabelledImages(torch.cat([images.x, x]), torch.cat([images.y, y]))
        poisoned = LabelledImages(images.x.clone(), images.y.clone())
        poisoned.x[chosen], poisoned.y[chosen] = x, y
        return poisoned

    def compromise(self, job: LocalJob) -> LocalJob:
        """Poisoned images, and the attacker's number of epochs and learning rate."""
        return super().compromise(with_recipe(job, self.epochs, self.local_lr))

    def stamp(self, x: Tensor) -> Tensor:
        """The whole trigger."""
        return self.trigger.stamp(x)

    def target(self, y: Tensor) -> Tensor:
        """The target class for every eligible image."""
        return torch.where(self._eligible(y), self.target_class, y)

    def _eligible(self, y: Tensor) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool) if self.source_class is None else y == self.source_class
