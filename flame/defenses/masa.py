"""MASA (Xu, Zhang and Hu, "Identify Backdoored Model in Federated Learning via Individual Unlearning", WACV 2025),
after its authors' code (JiiahaoXU/MASA 72a4b74, src/aggregation.py), which decides here: the paper was not at hand.

1. Each client's model is mixed with the others': G + lambda U_i + (1 - lambda) times the mean of all updates.
2. From there the server climbs the loss of its own clean images, by SGD on the negative loss, its gradient clipped. The
   mean loss of each epoch is added up. Whose model loses most was held by few weights, as backdoors are.
3. A client is rejected if that sum lies `threshold` standard deviations or more above the median. The rest is averaged.

Deviations and open points: global learning rate 1 and uniform means (there, by sample counts). The server's images are
seen as stored (there, with the clients' crops and flips), and all models of a round see them in the same order, drawn
anew for each epoch (there, each in its own). Their number of epochs and bound of a gradient stand in the code, and are
parameters here. A spread below 1e-9 is none, and nobody then lies apart (there, a division by 0 lets nobody in). A
model whose loss is no number is rejected and not counted (there, it makes every score NaN); if that is everyone, the
model stays. BatchNorm normalises by the batch, so that the statistics that a client sends play no part in its score;
they are averaged as all else, and counters stay the server's. Two clients are one standard deviation apart from their
median: at the default only the one with the lower loss is let in. As everyone's update is in every mixture, a very long
one moves all scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from flame.defenses.alignins import ROUNDING
from flame.defenses.base import average, laboratory, uniform
from flame.round.client import batches
from flame.round.optimizers import BareSGD
from flame.round.types import Lab, ServerState, Updates, Verdict

BATCH = 64  # images, the authors' code


@dataclass(frozen=True)
class MASA:
    """The mean of the clients whose models do not lose clean images fastest."""

    root_samples: int  # images of the server, >= 2
    share: float  # lambda, of a client's own update in its mixture, [0, 1]
    epochs: int  # of climbing, >= 1
    lr: float  # > 0
    momentum: float  # [0, 1)
    clip_norm: float  # most that a step's gradient may have, L2, > 0
    threshold: float  # delta, standard deviations above the median, > 0

    needs_lab: ClassVar[bool] = True
    root_update: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require(self.root_samples >= 2, "root_samples", self.root_samples, ">= 2")
        _require(0 <= self.share <= 1, "share", self.share, "in [0, 1]")
        _require(self.epochs >= 1, "epochs", self.epochs, ">= 1")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        for key in ("lr", "clip_norm", "threshold"):
            _require(0 < getattr(self, key) < math.inf, key, getattr(self, key), "> 0")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """At least half of the clients whose loss is a number are accepted, and share equally."""
        lab, n = laboratory("masa", updates), len(updates)
        order = self.order(len(lab.root), stream)
        mean = updates.weighted(torch.full((n,), 1 / n, dtype=torch.float64), slice(None))  # [d + b]
        mixed = (updates.base + self.share * row + (1 - self.share) * mean for row in updates.rows)
        losses = torch.tensor([self.lost(lab, model, order) for model in mixed], dtype=torch.float64)
        scores = deviations(losses)
        shares = uniform(scores < self.threshold - ROUNDING)
        known = scores.isfinite()
        info = {"masa/broken": float((~known).sum()), "masa/highest_score": max(scores[known].tolist(), default=0.0)}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)

    def order(self, images: int, stream: Generator) -> list[Tensor]:
        """The batches of all epochs, as positions of the server's images."""
        return [batch for _ in range(self.epochs) for batch in batches(images, BATCH, stream)]

    def lost(self, lab: Lab, model: Tensor, order: Sequence[Tensor]) -> float:
        """The losses of a model [d + b] while it unlearns these batches, summed over epochs of their mean."""
        losses = list[float]()

        def unlearn(model: nn.Module, x: Tensor, y: Tensor) -> None:
            optimizer = BareSGD(model.parameters(), self.lr, momentum=self.momentum)
            model.train()
            for batch in order:
                loss = F.cross_entropy(model(x[batch]).float(), y[batch])
                losses.append(float(loss.detach()))
                optimizer.zero_grad()
                (-loss).backward()
                nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
                optimizer.step()

        lab.trained(model, lab.root, unlearn)
        return sum(losses) * self.epochs / len(losses)


def deviations(losses: Tensor) -> Tensor:
    """[n] float64, standard deviations of `losses` [n] from their median, inf for one that is no number."""
    known = losses.isfinite()
    scores = torch.full_like(losses, torch.inf)
    if bool(known.any()):
        apart = losses[known] - losses[known].quantile(0.5)
        spread = losses[known].std(correction=0)
        scores[known] = apart / spread if spread > ROUNDING else 0.0
    return scores


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"defense.{key}={value} is out of range: must be {allowed}")
