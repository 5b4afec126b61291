"""Label flipping: images stay as they are, labels do not.

* Targeted, from a source to a target class: Tolpegin, Truex, Gursoy and Liu, "Data Poisoning Attacks Against Federated
  Learning Systems", ESORICS 2020. Backdoor accuracy is defined: the share of the source class's test images that get
  the target label. There is no trigger, so some of it is the clean model's own confusion: compare with attack=none.
* Untargeted, l -> L - l - 1 for every class (both classes null): the baseline of Fang, Cao, Jia and Gong, USENIX
  Security 2020. There is no backdoor accuracy, the effect shows in MA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Poisoner, check_class, check_rate, share_of
from attacks.differences import relabelled
from flame.data.samples import UNASKED, Dataset, Samples


@dataclass(frozen=True)
class LabelFlip(Poisoner):
    """One class to another, or all labels reversed."""

    source_class: int | None
    target_class: int | None
    classes: int  # L
    poisoned_data_rate: float  # share of the eligible images, in [0, 1]

    def __post_init__(self) -> None:
        check_rate(self.poisoned_data_rate)
        pair = self.source_class, self.target_class
        if (pair != (None, None) and None in pair) or (pair[0] is not None and pair[0] == pair[1]):
            raise ValueError(
                f"attack.source_class={pair[0]}, attack.target_class={pair[1]}: give two different classes, "
                "or null for both to reverse all labels"
            )

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Check the classes against the data set's."""
        check_class("source_class", self.source_class, dataset)
        check_class("target_class", self.target_class, dataset)
        return self, dataset

    def poison(self, images: Samples, stream: Generator) -> Samples:
        """The same images, a share of the eligible ones with another label."""
        wanted = self.target(images.y)
        if self.source_class is None:
            wanted = (self.classes - 1 - images.y).where(images.y != UNASKED, UNASKED)
        eligible = relabelled(images.y, wanted).nonzero()[:, 0]
        chosen = eligible[share_of(len(eligible), self.poisoned_data_rate, stream)]
        y = images.y.clone()
        y[chosen] = wanted[chosen]
        return Samples(images.x, y)

    def target(self, y: Tensor) -> Tensor:
        """The target class for the source class; nothing when all labels are reversed."""
        if self.source_class is None or self.target_class is None:
            return y
        return torch.where(y == self.source_class, self.target_class, y)
