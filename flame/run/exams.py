"""Which images the global model of a run is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.base import Attack
from flame.data.samples import Dataset, LabelledImages, Shards
from flame.partition.examined import examined
from flame.round.breakdown import Breakdown, client_set
from flame.round.cohort import Population
from flame.round.seeding import generator


@dataclass(frozen=True)
class Exams:
    """The evaluation sets, and what is told of them beside accuracy and loss."""

    sets: Mapping[str, LabelledImages]  # "clean"; if the attack has a backdoor, "backdoor"; a set for each client asked
    truth: Mapping[str, Tensor]  # true classes [N] of the sets whose answers are counted
    classes: int  # of the data set
    groups: Mapping[str, Sequence[int]]  # of clients with a set: benign, skewed


def exams(
    wanted: Breakdown, attack: Attack, dataset: Dataset, train: LabelledImages, shards: Shards, clients: Population
) -> Exams:
    """What `evaluate` asks for, beside the two test sets.

    Raises:
        ValueError: there are fewer benign clients than are wanted.
    """
    backdoor, truth = attack.backdoor_set(dataset.test), dict[str, Tensor]()
    if wanted.per_class:
        truth["clean"] = dataset.test.y
        if backdoor:
            truth["backdoor"] = attack.backdoor_classes(dataset.test)
    honest = ~(clients.compromised() & clients.hostile)
    groups = examined(train.y, shards, honest, wanted.clients, generator(clients.seed, "examined"))
    asked = sorted({client for group in groups.values() for client in group})
    sets = {"clean": dataset.test} | ({"backdoor": backdoor} if backdoor else {})
    return Exams(
        sets | {client_set(client): train[shards[client]] for client in asked}, truth, dataset.classes, groups
    )
