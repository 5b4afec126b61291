"""Where a defense tries models: one model in the main process and one thread, so the bits are those of every engine.

This side knows who is compromised, the defense does not: it is told what validators report, and a compromised one
reports what its attack makes of the truth (`Attack.report`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from flame.data.samples import Samples
from flame.engine.workbench import Task, Workbench
from flame.geometry.layout import StateLayout
from flame.round.device import one_thread
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

    @property
    def image(self) -> tuple[int, ...]:
        """See `Lab.image`."""
        return tuple(self.bench.task.train.x.shape[1:])

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
    def trained(self, row: Tensor, images: Samples, fit: Fit) -> Tensor:
        """See `Lab.trained`."""
        return self.bench.trained(row, self.counters, images, fit, self.round)

    @one_thread()
    def class_losses(self, models: Iterable[Tensor], most: int) -> Tensor:
        """See `Lab.class_losses`; each validator's images are batches of their own, whoever else there is."""
        examples = {client: self._examples(client, most) for client in self.validators.ids.tolist()}
        told = torch.stack([torch.stack([self._means(row, *own) for own in examples.items()]) for row in models], dim=1)
        liars = self.validators.compromised
        if bool(liars.any()):
            lies = self.bench.task.attack.report(told[liars])
            if lies.shape != (wanted := told[liars].shape):
                raise ValueError(f"attack.report gave {tuple(lies.shape)} losses: must be {tuple(wanted)}, as it got")
            told[liars] = lies.double()
        return told

    def _examples(self, client: int, most: int) -> Tensor:
        """Where the training set has the first `most` images of each class of a client's shard, in its order."""
        shard = self.bench.task.shards[client]
        return shard[first_of_each(self.bench.task.train.y[shard], most)]

    def _means(self, row: Tensor, client: int, examples: Tensor) -> Tensor:
        """[classes] float64, the model's mean loss on the client's examples of each class, clean as they were dealt."""
        images = self.bench.task.train[examples]
        logits = self.bench.logits(row, self.counters, images.x, self.round, client)  # [N, classes]
        losses = F.cross_entropy(logits, images.y, reduction="none").double().nan_to_num(torch.inf, torch.inf)
        sums = torch.zeros(logits.shape[1], dtype=torch.float64).index_add_(0, images.y, losses)
        return sums / images.y.bincount(minlength=logits.shape[1])  # 0 / 0 is NaN


def first_of_each(y: Tensor, most: int) -> Tensor:
    """Positions in labels `y` [N] of the first `most` of each class, ascending."""
    place = F.one_hot(y).cumsum(dim=0).gather(1, y[:, None])[:, 0]  # [N], 1 for the first of its class
    return (place <= most).nonzero().flatten()
