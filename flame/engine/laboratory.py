"""Where a defense tries models: one model in the main process and one thread, so the bits are those of every engine.

This side knows who is compromised, the defense does not: it is told what validators report, and a compromised one
reports what its attack makes of the truth (`Attack.report`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flame.data.samples import UNASKED, Samples
from flame.engine.workbench import Task, Workbench
from flame.geometry.layout import StateLayout
from flame.round.client import rows
from flame.round.device import one_thread
from flame.round.evaluate import BATCH
from flame.round.types import Cohort, Fit, ServerState


@dataclass(frozen=True)
class Laboratory:
    """The `Lab` of one round."""

    bench: Workbench
    counters: Tensor  # [c] int64, the global model's, for every model
    round: int
    validators: Cohort  # [v] clients

    @classmethod
    def of(cls, task: Task, state: ServerState, cohort: Cohort) -> Laboratory:
        """With a model of its own, so that nothing else is disturbed."""
        return cls(Workbench(task), state.counters, state.round, cohort)

    def noise(self, count: int, stream: Generator) -> Tensor:
        """See `Lab.noise`."""
        return self.bench.task.noise(count, stream)

    @property
    def layout(self) -> StateLayout:
        """See `Lab.layout`."""
        return self.bench.task.layout

    @property
    def root(self) -> Samples:
        """See `Lab.root`: the shard behind the clients'."""
        task = self.bench.task
        return task.train[task.shards[len(task.shards) - 1]]

    def __getitem__(self, index: Tensor | slice) -> Laboratory:
        clients = self.validators
        return replace(self, validators=Cohort(clients.ids[index], clients.compromised[index]))

    @one_thread()
    def logits(self, models: Iterable[Tensor], x: Tensor) -> Tensor:
        """See `Lab.logits`."""
        return torch.stack([self.bench.logits(row, self.counters, x, self.round) for row in models])

    @one_thread()
    def features(self, models: Iterable[Tensor], x: Tensor) -> Tensor:
        """See `Lab.features`."""
        return torch.stack([self.bench.features(row, self.counters, x, self.round) for row in models])

    @one_thread()
    def trained(self, row: Tensor, samples: Samples, fit: Fit) -> Tensor:
        """See `Lab.trained`."""
        return self.bench.trained(row, self.counters, samples, fit, self.round)

    @one_thread()
    def class_losses(self, models: Iterable[Tensor], most: int) -> Tensor:
        """See `Lab.class_losses`; each validator's samples are batches of their own, whoever else there is."""
        examples = {client: self._examples(client, most) for client in self.validators.ids.tolist()}
        told = torch.stack(
            [torch.stack([self._means(row, client, *own) for client, own in examples.items()]) for row in models], dim=1
        )
        liars = self.validators.compromised
        if bool(liars.any()):
            lies = self.bench.task.attack.report(told[liars])
            if lies.shape != (wanted := told[liars].shape):
                raise ValueError(f"attack.report gave {tuple(lies.shape)} losses: must be {tuple(wanted)}, as it got")
            told[liars] = lies.double()
        return told

    def _examples(self, client: int, most: int) -> tuple[Tensor, Tensor]:
        """Where the training set has the samples with the first `most` labels of each class of a client's shard.

        In the shard's order, and their labels with all others taken out.
        """
        shard, y = self.bench.task.shards[client], self.bench.task.train.y
        given = y[shard].flatten()
        kept = torch.full_like(given, UNASKED)
        first = first_of_each(given, most)
        kept[first] = given[first]
        kept = kept.view(len(shard), *y.shape[1:])
        shown = (kept != UNASKED).reshape(len(shard), -1).any(1)
        return shard[shown], kept[shown]

    def _means(self, row: Tensor, client: int, examples: Tensor, y: Tensor) -> Tensor:
        """[classes] float64, the model's mean loss on the labels `y` of these samples, clean as they were dealt."""
        x, rest, classes = self.bench.task.train.x[examples], iter(y.split(BATCH)), 0

        def losses(logits: Tensor) -> Tensor:  # [B, classes, ...] -> [B, ...]
            nonlocal classes
            classes = logits.shape[1]
            asked = next(rest)
            return F.cross_entropy(*rows(logits.cpu(), asked), reduction="none").view_as(asked)

        told = self.bench.logits(row, self.counters, x, self.round, client, told=losses)
        asked = y != UNASKED
        sums = torch.zeros(classes, dtype=torch.float64)
        sums.index_add_(0, y[asked], told[asked].double().nan_to_num(torch.inf, torch.inf))
        return sums / y[asked].bincount(minlength=classes)  # 0 / 0 is NaN


def first_of_each(y: Tensor, most: int) -> Tensor:
    """Positions in labels `y` [N] of the first `most` of each class, ascending; where nothing is asked is none."""
    order = y.argsort(stable=True)
    ordered = y[order]
    place = torch.arange(len(y)) - torch.searchsorted(ordered, ordered)  # [N], 0 for the first of its class
    return order[(place < most) & (ordered != UNASKED)].sort().values
