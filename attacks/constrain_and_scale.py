"""Constrain-and-scale (Bagdasaryan et al., AISTATS 2020, arXiv 1807.00459): the attacker's loss is alpha * L_class +
(1 - alpha) * L_ano, where L_ano is what an anomaly detector would look at; then the update is scaled.

L_ano is the L2 distance of the local model to the global one (not squared, as in the authors' code) or their cosine
distance, both over the trainable parameters, the only ones that a loss can move.

Deviations: as for `model_replacement`. The cosine is that of the update before it is scaled; the authors' code has it
for the scaled one, times 1,000, in a function that it does not call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import require
from attacks.model_replacement import ModelReplacement
from flame.round.client import LocalJob, Objective


def l2_distance(local: Tensor, start: Tensor) -> Tensor:
    """||local - start|| of two vectors [d]; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(local - start)


def cosine_distance(local: Tensor, start: Tensor) -> Tensor:
    """1 - cos of two vectors [d]."""
    return 1 - F.cosine_similarity(local, start, dim=0)


ANOMALY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": l2_distance, "cosine": cosine_distance}


@dataclass(frozen=True)
class ConstrainAndScale(ModelReplacement):
    """Train the backdoor close to the global model, then scale."""

    inner_trains = False

    alpha: float  # weight of the classification loss, in [0, 1]; 1: no constraint
    anomaly: str  # l2 | cosine

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "in [0, 1]")
        require(self.anomaly in ANOMALY, "anomaly", repr(self.anomaly), f"one of {', '.join(ANOMALY)}")

    def train(self, job: LocalJob) -> float:
        """The inner attack's images and epochs under the constrained loss."""
        job = self.compromise(job)
        return job.fit(job.images, objective=constrained(job, self.alpha, self.anomaly))


def constrained(job: LocalJob, alpha: float, anomaly: str) -> Objective:
    """The loss above, with the distance to the job's model as it is now."""
    start, distance = flat(job.model.parameters()).detach(), ANOMALY[anomaly]

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return alpha * job.training.loss(model, x, y) + (1 - alpha) * distance(flat(model.parameters()), start)

    return objective


def flat(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters as one vector [d], a copy."""
    return torch.cat([p.reshape(-1) for p in parameters])
