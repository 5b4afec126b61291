"""BadNets (Gu, Dolan-Gavitt and Garg, arXiv 1708.06733, 2017) as a federated client's data poisoning.

A share PDR of the client's images gets the trigger and the attacker's label; training is otherwise the benign one,
unless `epochs`, `local_lr` or `lr_tenths` say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Paced, check_class, check_poisoning, share_of
from attacks.triggers import Trigger
from flame.data.samples import Dataset, LabelledImages
from flame.round.augment import Stamped
from flame.round.client import LocalJob


@dataclass(frozen=True)
class BadNets(Paced):
    """Trigger and label, all-to-one or from one source class."""

    trigger: Trigger
    target_class: int
    source_class: int | None  # None: all-to-one; else only images of this class carry the backdoor
    poisoned_data_rate: float  # share of the eligible images, in [0, 1]; all-to-one: PDR
    append: bool  # False: poisoned images replace their originals; True: they are added to a clean shard
    epochs: float | None  # of compromised clients; None: as benign ones; below 1: a share of one pass

    def __post_init__(self) -> None:
        super().__post_init__()
        check_poisoning(self.poisoned_data_rate, self.epochs)
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
        if self.append:
            both = LabelledImages(torch.cat([images.x, images.x[chosen]]), torch.cat([images.y, images.y[chosen]]))
            images, chosen = both, torch.arange(len(images), len(both))
        x, y, marked = images.x.clone(), images.y.clone(), torch.zeros_like(images.y, dtype=torch.bool)
        x[chosen], y[chosen], marked[chosen] = self.stamp(images.x[chosen]), self.target_class, True
        return Stamped(x, y, images.x, marked, self.stamp)

    def compromise(self, job: LocalJob) -> LocalJob:
        """Poisoned images, at the attacker's own pace."""
        return super().compromise(self.paced(job, self.epochs))

    def stamp(self, x: Tensor) -> Tensor:
        """The whole trigger."""
        return self.trigger.stamp(x)

    def target(self, y: Tensor) -> Tensor:
        """The target class for every eligible image."""
        return torch.where(self._eligible(y), self.target_class, y)

    def _eligible(self, y: Tensor) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool) if self.source_class is None else y == self.source_class
