"""Projected gradient descent (Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
NeurIPS 2020, section 3, the PGD attack): after a step the local model is projected onto the L2 ball of radius delta
around the global one, so that the update passes a norm bound. With replacement the update is scaled afterwards
(`scaling.gamma`).

Deviations: projected after every step (the authors' code leaves the interval to an option); the ball holds the
trainable parameters only; with replacement the radius is not divided by gamma (nor is it in their code), set `radius`
or `scaling.norm_bound` for that; it does not shrink over the rounds (there it does, before Krum); the inner attack is a
trigger by default, the paper's is `attack@attack.backdoor=edge_case`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from attacks.base import require
from attacks.model_replacement import ModelReplacement
from flame.round.client import LocalJob


@dataclass(frozen=True)
class PGD(ModelReplacement):
    """Train the backdoor inside a ball."""

    inner_trains = False

    radius: float  # delta, L2, > 0

    def __post_init__(self) -> None:
        require(self.radius > 0, "radius", self.radius, "> 0")

    def train(self, job: LocalJob) -> float:
        """The inner attack's images and epochs, projected after each step."""
        centre = [p.detach().clone() for p in job.model.parameters()]

        @torch.no_grad()
        def project(model: nn.Module) -> None:
            pairs = list(zip(model.parameters(), centre, strict=True))
            distance = torch.stack([(p - c).norm() for p, c in pairs]).norm()
            if distance > self.radius:
                for p, c in pairs:
                    p.lerp_(c, float(1 - self.radius / distance))

        job = self.compromise(job)
        return job.fit(job.images, after_step=project)
