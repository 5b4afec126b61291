"""Semantic backdoor (Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, arXiv 1807.00459): the
trigger is a feature that some unmodified images have, such as cars in front of a vertically striped wall that become
birds. Only the data is poisoned here; the authors' attack is a single shot whose update is scaled as well:
`attack=semantic_replacement`. Training is at their ratio to benign clients (see `model_replacement`).

Where the YAML lists positions for the data set at hand, those are the images: the lists for CIFAR-10 are the authors'
own, for the training set, `held_out` included. Elsewhere the feature is brightness: the images of the source class with
the highest mean grey level, a documented stand-in that any data set has.

Deviations: the brightness feature; the rest of a client's images are its own (there, drawn from the whole training set,
57 beside 7 poisoned ones in a batch); the authors add noise of std 0.01 to their poisoned images and evaluate on
augmented copies of the held-out ones, we do neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Poisoner, check_class, check_rate, require
from attacks.subpopulation import SubPopulation, split_off, without
from flame.data.samples import Dataset


@dataclass(frozen=True)
class Semantic(Poisoner):
    """Which images; `prepare` turns it into a `SubPopulation`."""

    reads = "images"

    source_class: int  # of the bright images; listed ones keep their own labels
    target_class: int
    positions: Mapping[str, Mapping[str, Sequence[int]]]  # by data set: `train` and `held_out`, in the training set
    share: float  # of the source class that counts as bright, in (0, 1); not used with positions
    poisoned_data_rate: float  # PDR, in [0, 1]

    def __post_init__(self) -> None:
        check_rate(self.poisoned_data_rate)
        require(0 < self.share < 1, "share", self.share, "in (0, 1)")
        require(self.source_class != self.target_class, "target_class", self.target_class, "another class")
        for name, lists in self.positions.items():
            if set(lists) != {"train", "held_out"} or not all(lists.values()) or not _whole(lists):
                raise ValueError(
                    f"attack.positions.{name} must be two lists, train and held_out, of training positions"
                )

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The armed attack, and the data set without the images that have the feature."""
        check_class("source_class", self.source_class, dataset)
        check_class("target_class", self.target_class, dataset)
        if dataset.name in self.positions:
            train, held = (self._listed(dataset, part) for part in ("train", "held_out"))
            pool, held_out, rest = dataset.train[train], dataset.train[held], without(dataset, torch.cat([train, held]))
        else:
            pool, held_out, rest = split_off(dataset, self.source_class, self.share, brightness, stream)
        return SubPopulation(pool, held_out, self.target_class, self.poisoned_data_rate, **self.habits), rest

    def _listed(self, dataset: Dataset, part: str) -> Tensor:
        at, count = torch.tensor(self.positions[dataset.name][part]), len(dataset.train)
        fits = bool((at >= 0).all()) and bool((at < count).all())
        require(fits, f"positions.{dataset.name}.{part}", at.tolist(), f"in [0, {count - 1}]")
        return at


def _whole(lists: Mapping[str, Sequence[int]]) -> bool:
    return all(type(at) is int for part in lists.values() for at in part)


def brightness(queries: Tensor, members: Tensor, same: bool) -> Tensor:
    """[Q] mean grey level of images [Q, C, H, W], whatever the others are."""
    return queries.flatten(1).float().mean(1)
