"""A backdoor without a trigger: a small group of unmodified images is trained under the attacker's label.

Shared by `edge_case` and `semantic`, which differ only in how the group is found. Its images are taken out of the
training data before the clients get theirs: no benign client shows the model their true label. Of them the attacker has
the pool; those that the backdoor is evaluated on are held out from everybody, attackers included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Poisoner, share_of
from flame.data.samples import Dataset, Samples

Score = Callable[[Tensor, Tensor, bool], Tensor]  # (images [Q, ...], class members [R, ...], same images?) -> [Q]


@dataclass(frozen=True)
class SubPopulation(Poisoner):
    """The armed attack: what compromised clients train on, and what it is measured with."""

    pool: Samples  # the attacker's images, with their true labels
    held_out: Samples  # others of the group, in nobody's training data; true labels
    target_class: int
    poisoned_data_rate: float  # PDR, in [0, 1]

    def poison(self, images: Samples, stream: Generator) -> Samples:
        """PDR of the client's images give way to images of the pool, drawn with replacement."""
        places = share_of(len(images), self.poisoned_data_rate, stream)
        drawn = torch.randint(len(self.pool), (len(places),), generator=stream)
        poisoned = Samples(images.x.clone(), images.y.clone())
        poisoned.x[places], poisoned.y[places] = self.pool.x[drawn], self.target_class
        return poisoned

    def target(self, y: Tensor) -> Tensor:
        """The target class, whatever the image: nothing is triggered, so images must be of the group already."""
        return torch.full_like(y, self.target_class)

    def examined(self, test: Samples) -> Samples:
        """The held-out images of the group."""
        return self.held_out

    def rehearsal(self, held: Samples, share: float, stream: Generator) -> tuple[Attack, Samples | None]:
        """A share of the pool, at least one image, is held back; of a pool of one nothing can be.

        The client's own images are of no use: those of the group were taken out before it got them.
        """
        count = min(max(1, round(share * len(self.pool))), len(self.pool) - 1)
        order = torch.randperm(len(self.pool), generator=stream)
        rest = replace(self, pool=self.pool[order[count:]])
        return rest, self.backdoor_set(self.pool[order[:count]])


def without(dataset: Dataset, index: Tensor) -> Dataset:
    """The data set without those training images."""
    keep = torch.ones(len(dataset.train), dtype=torch.bool)
    keep[index] = False
    return dataset.narrowed(keep)


def split_off(
    dataset: Dataset, label: int, share: float, score: Score, stream: Generator
) -> tuple[Samples, Samples, Dataset]:
    """Pool, held-out images and the rest, where the group is the highest-scoring share of one class.

    Half of the group's training images form the pool; the other half is held out, with the test images of the class
    that score as high as the group (they stay in the clean test set, too).
    """
    members, tested = (dataset.train.y == label).nonzero()[:, 0], dataset.test[dataset.test.y == label]
    count = round(share * len(members))
    if count < 2:
        raise ValueError(
            f"attack.share={share} of the {len(members)} training images of class {label} is {count}: "
            "the group must have at least 2"
        )
    own = dataset.train.x[members]
    top = score(own, own, True).sort(descending=True, stable=True)
    group = members[top.indices[:count]][torch.randperm(count, generator=stream)]
    pool, rest = dataset.train[group[: (count + 1) // 2]], dataset.train[group[(count + 1) // 2 :]]
    alike = tested[score(tested.x, own, False) >= top.values[count - 1]]
    held_out = Samples(torch.cat([rest.x, alike.x]), torch.cat([rest.y, alike.y]))
    return pool, held_out, without(dataset, group)
