"""BackdoorIndicator (Li and Dai, "BackdoorIndicator: Leveraging OOD Data for Proactive Backdoor Detection in Federated
Learning", USENIX Security 2024): the server plants a task of its own, and a backdoor keeps it alive.

1. Before a round the server trains the global model on images from outside the data, with labels that mean nothing, by
   cross entropy plus mu/2 ||W - G||; clients start from the result, with the running statistics from before.
2. Benign training forgets these images. A client is rejected if its model, with the running statistics as they were
   after planting, knows those of any one label with an accuracy of `threshold` or more. The rest is averaged.

Deviations and open points: written after the authors' public code (participants/servers/IndicatorServer.py and
utils/yamls/indicator in ybdai7/Backdoor-indicator-defense at 04dec876); the paper could not be read and is not cited.
Images from outside are uniform noise, one of the four sources in that code (`ood_data_source`; its YAMLs have CIFAR-100
for CIFAR-10), since a run here has no second data set; they are pixels, normalised as the run's images are. Of text
they are uniform tokens, of which the answer at the last one counts. Of more classes than images divided by `LEAST`,
only as many are labels, as few images of one are known by chance. They and their labels are drawn once and kept, in
batches that stay the same, as there. Global learning rate 1 (there, `eta` = 0.5; here that is `server.lr`). Neither
clipping (there, in one YAML of five) nor projection (there, in none). If all are rejected, the model stays as it was
sent (there, a division by 0). A client that answers one label to everything knows that label's images, and is rejected,
whoever it is; one that sends nothing has forgotten nothing. A model that is no longer finite after planting is not
sent, and nobody is judged in that round; nor before the round `start`, as there. Integer counters stay the server's.

Its detection rates are disputed in public. BackFed's maintainer found many benign clients rejected and few attackers,
with the authors' settings, and asked for a review (issue 8 of that repository, July 2025). The author had no time for
one, and answered that several works have reproduced the results. Issue 7 (November 2024) has 88.9 % of attackers found
where the paper says 99.2 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from flame.data.samples import Samples
from flame.defenses.base import average, laboratory, uniform
from flame.round.evaluate import final
from flame.round.optimizers import BareSGD
from flame.round.types import Lab, ServerState, Updates, Verdict

OWN = "defense/indicator"
IMAGES, LABELS, STATISTICS = f"{OWN}/images", f"{OWN}/labels", f"{OWN}/statistics"
BATCH = 64  # images, the authors' code
LEAST = 3  # images of each label


@dataclass(frozen=True)
class Planting:
    """How the server trains the indicator: SGD, at a rate that falls at milestones."""

    epochs: int  # >= 1
    lr: float  # > 0
    momentum: float  # [0, 1)
    weight_decay: float  # >= 0
    milestones: Sequence[int]  # epochs after which the rate falls
    gamma: float  # to this share, (0, 1]
    mu: float  # weight of the distance from the global model, >= 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "planting.epochs", self.epochs, ">= 1")
        _require(0 < self.lr < math.inf, "planting.lr", self.lr, "> 0")
        _require(0 <= self.momentum < 1, "planting.momentum", self.momentum, "in [0, 1)")
        _require(0 <= self.weight_decay < math.inf, "planting.weight_decay", self.weight_decay, ">= 0")
        _require(0 < self.gamma <= 1, "planting.gamma", self.gamma, "in (0, 1]")
        _require(0 <= self.mu < math.inf, "planting.mu", self.mu, ">= 0")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Train `model` in place on x [N, ...], y [N]."""
        parameters = list(model.parameters())
        start = torch.cat([p.detach().flatten() for p in parameters])
        optimizer = BareSGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        parts = max(1, len(y) // BATCH)
        model.train()
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * self.gamma ** sum(m <= epoch for m in self.milestones)
            for images, labels in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
                distance = (torch.cat([p.flatten() for p in parameters]) - start).norm()
                loss = F.cross_entropy(final(model(images)).float(), labels) + self.mu / 2 * distance
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


@dataclass(frozen=True)
class Indicator:
    """The mean of the clients whose models have forgotten what the server planted."""

    images: int  # from outside, >= 2; of text, texts
    threshold: float  # accuracy on those of one label from which a client is rejected, (0, 1]
    start: int  # first round with an indicator, >= 0
    planting: Planting

    needs_lab: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require(self.images >= 2, "images", self.images, ">= 2")
        _require(0 < self.threshold <= 1, "threshold", self.threshold, "in (0, 1], a share")
        _require(self.start >= 0, "start", self.start, ">= 0")

    def sends(self, state: ServerState, lab: Lab, stream: Generator) -> ServerState:
        """The global model with the indicator in it, and in its memory what the clients will be asked."""
        memory = {key: value for key, value in state.memory.items() if key != STATISTICS}
        if state.round < self.start:
            return replace(state, memory=memory)
        outside = self.outside(state, lab, stream)
        memory |= {IMAGES: outside.x, LABELS: outside.y}
        planted, d = lab.trained(state.row, outside, self.planting), lab.layout.trainable
        if not bool(planted.isfinite().all()):
            return replace(state, memory=memory)
        row = torch.cat([planted[:d], state.row[d:]])
        return replace(state, row=row, memory={**memory, STATISTICS: planted[d:]})

    def outside(self, state: ServerState, lab: Lab, stream: Generator) -> Samples:
        """The images of the rounds before; in the first one, noise, and labels as equally often as can be."""
        if IMAGES in state.memory:
            return Samples(state.memory[IMAGES], state.memory[LABELS])
        x = lab.noise(self.images, stream)
        classes = min(lab.logits([state.row], x[:1]).shape[-1], max(2, self.images // LEAST))
        return Samples(x, (torch.arange(self.images) % classes)[torch.randperm(self.images, generator=stream)])

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The clients below the threshold share equally; everyone, where nothing was planted."""
        known = self.known(state, updates) if STATISTICS in state.memory else torch.zeros(len(updates)).double()
        accepted = known < self.threshold
        shares = uniform(accepted)
        info = {"indicator/planted": float(STATISTICS in state.memory), "indicator/highest": float(known.max())}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)

    def known(self, state: ServerState, updates: Updates) -> Tensor:
        """[n] float64, each client's accuracy on the images from outside of the label that it knows best."""
        d, x, y = updates.layout.trainable, state.memory[IMAGES], state.memory[LABELS]
        lab = laboratory("indicator", updates)
        models = (torch.cat([(updates.base + row)[:d], state.memory[STATISTICS]]) for row in updates.rows)
        answers = torch.stack([lab.logits([model], x)[0].argmax(dim=1) for model in models])  # [n, N]
        return per_label(answers == y, y).max(dim=1).values


def per_label(right: Tensor, y: Tensor) -> Tensor:
    """[n, labels] float64, shares of `right` [n, N] bool among the images of each label `y` [N]; 0 without any."""
    each = F.one_hot(y).double()  # [N, labels]
    return right.double() @ each / each.sum(dim=0).clamp_min(1)


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"defense.{key}={value} is out of range: must be {allowed}")
