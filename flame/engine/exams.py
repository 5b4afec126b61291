"""Which images the global model of a run is evaluated on: the two test sets and, on request, single clients' images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.base import Attack
from attacks.differences import relabelled
from flame.data.check import evaluation_sets
from flame.data.samples import Dataset, Samples, Shards
from flame.data.watched import Watched
from flame.partition.examined import examined
from flame.round.breakdown import client_set
from flame.round.cohort import Population
from flame.round.seeding import generator

MOST_CLASSES = 1000  # whose answers are told apart


@dataclass(frozen=True)
class Exams:
    """The evaluation sets, and what is told of them beside accuracy and loss (`evaluate` in conf/config.yaml)."""

    sets: Mapping[str, Samples]  # "clean"; if the attack has a backdoor, "backdoor"; a set for each client asked
    truth: Mapping[str, Tensor]  # true classes [N] of the sets whose answers are counted
    classes: int  # of the data set
    groups: Mapping[str, Sequence[int]]  # of clients with a set: benign, skewed

    @classmethod
    def of(
        cls,
        per_class: bool,
        clients: int,
        attack: Attack,
        dataset: Dataset,
        train: Samples,
        shards: Shards,
        population: Population,
    ) -> Exams:
        """What the keys of `evaluate` ask for, beside the test sets.

        Raises:
            ValueError: there are not so many benign clients, too many classes or no answers to be counted, or an
                attack's samples are not as `check_samples` wants them or not those that its `target` is said of.
        """
        if per_class and dataset.classes > MOST_CLASSES:
            raise ValueError(
                f"evaluate.per_class=true writes a table of classes by classes each round, and dataset={dataset.name}"
                f" has {dataset.classes} classes: must be false for more than {MOST_CLASSES}"
            )
        if per_class and isinstance(dataset.test, Watched):
            raise ValueError(
                f"evaluate.per_class=true counts answers by class, and dataset={dataset.name} is judged by alarms: say"
                " false; eval/true_alarms and eval/false_alarms tell attacks from benign traffic"
            )
        kept = attack.examined(dataset.test)
        backdoor = attack.backdoor_set(kept)
        sets = evaluation_sets(dataset, backdoor)
        truth = {"clean": dataset.test.y} if per_class else {}
        if per_class and backdoor:
            truth["backdoor"] = kept.y[relabelled(kept.y, attack.aims(kept))]
            if len(truth["backdoor"]) != len(backdoor):
                raise ValueError(
                    f"evaluate.per_class=true wants the true classes of {len(backdoor)} triggered samples, but"
                    f" attack.target changes {len(truth['backdoor'])} labels: both must speak of the same samples"
                )
        honest = ~(population.compromised() & population.hostile)
        groups = examined(train.y, shards, honest, clients, generator(population.seed, "examined"))
        asked = sorted({client for group in groups.values() for client in group})
        sets |= {client_set(client): train[shards[client]] for client in asked}
        return cls(sets, truth, dataset.classes, groups)


NONE_BESIDE = Exams({}, {}, 0, {})
