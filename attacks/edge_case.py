"""Edge-case backdoor (Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS
2020, section 3): images from the tail of the input distribution, whose true label is clear, are trained under a wrong
one.

With `images`, the tail is a file of the user's, such as the paper's Southwest airplanes (for CIFAR-10, labelled truck).
It must be an .npz with uint8 arrays `train` and `test` [N, H, W, C]: the published files are pickles, which can run
code when they are opened, so we never open one.

Without, the tail is made from the data set: the members of the source class with the largest mean distance, in pixel
space, to their k nearest neighbours within the class, i.e. where a nearest-neighbour density estimate is lowest.

Deviations: the constructed tail (the paper takes its tail from another data set); the attacker's share of tail images
is PDR of its own shard, drawn anew in each round with replacement (there, one mixture for all attackers and rounds,
whose clean images are of the whole training set).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from attacks.base import Attack, Poisoner, check_class, check_rate, require
from attacks.subpopulation import SubPopulation, split_off
from flame.data.samples import Dataset, Samples

CHUNK = 1024  # rows of the distance matrix at a time


@dataclass(frozen=True)
class EdgeCase(Poisoner):
    """Which images; `prepare` turns it into a `SubPopulation`."""

    reads = "images"

    source_class: int  # true label of the tail
    target_class: int
    images: str | None  # path of an .npz; None: a tail of the data set's own
    share: float  # of the source class's training images that count as its tail, in (0, 1); not used with `images`
    neighbours: int  # k, >= 1; not used with `images`
    poisoned_data_rate: float  # PDR, in [0, 1]

    def __post_init__(self) -> None:
        check_rate(self.poisoned_data_rate)
        require(0 < self.share < 1, "share", self.share, "in (0, 1)")
        require(self.neighbours >= 1, "neighbours", self.neighbours, "a whole number >= 1")
        require(self.source_class != self.target_class, "target_class", self.target_class, "another class")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The armed attack, and the data set without its tail."""
        check_class("source_class", self.source_class, dataset)
        check_class("target_class", self.target_class, dataset)
        if self.images is None:
            score = partial(mean_neighbour_distance, k=self.neighbours)
            pool, held_out, rest = split_off(dataset, self.source_class, self.share, score, stream)
        else:
            pool, held_out = load_images(self.images, self.source_class, tuple(dataset.train.x.shape[1:]))
            rest = dataset
        return SubPopulation(pool, held_out, self.target_class, self.poisoned_data_rate, **self.habits), rest


def mean_neighbour_distance(queries: Tensor, members: Tensor, same: bool, k: int) -> Tensor:
    """[Q] mean Euclidean distance of images [Q, C, H, W] to the k nearest of [R, C, H, W]; `same`: not to itself."""
    points = members.flatten(1).float()
    k = min(k, len(points) - same)
    nearest = [torch.cdist(part, points).topk(k + same, largest=False).values for part in _chunks(queries)]
    return torch.cat(nearest)[:, int(same) :].mean(1)


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    return images.flatten(1).float().split(CHUNK)


def load_images(path: str, label: int, shape: tuple[int, ...]) -> tuple[Samples, Samples]:
    """Arrays `train` and `test` of an .npz, as images [N, C, H, W] that all carry `label`; nothing is unpickled."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"attack.images={path} does not exist: give an .npz, or null for a tail of the data set"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive["train"], archive["test"]]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"attack.images={path} is not an .npz with plain arrays train and test: {error}") from error
    for array in arrays:
        if array.dtype != np.uint8 or array.ndim != 4 or (array.shape[3], *array.shape[1:3]) != shape or not len(array):
            raise ValueError(
                f"attack.images={path} holds {array.dtype} {array.shape}: must be uint8 [N, H, W, C] "
                f"for images of (C, H, W) = {shape}"
            )
    x = [torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() for array in arrays]
    pool, held_out = (Samples(t, torch.full((len(t),), label)) for t in x)
    return pool, held_out
