"""CRFL (Xie, Chen, Chen and Li, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021):
after averaging, the global model itself is clipped and perturbed, and it answers by the vote of its noisy copies.

    w <- w / max(1, ||w|| / rho_t) + N(0, sigma^2),  rho_t = bound + growth * t

The paper perturbs in all rounds but the last, and certifies the last model. Here every evaluation takes its round for
the last: the copies are made of the clipped model without the round's noise, which the state remembers for it.

The certified rate is that at radius 0 (`flame/round/smoothing.py`). The paper's radius, the size of a trigger that
could not have changed an answer, is not computed: it takes a convex loss of known smoothness, a single attacked round,
and the attackers' number, boost and share of poisoned data, which no defense knows. It comes from a bound on how far
the model itself may be moved, sigma_T sqrt(-2 log(1 - (sqrt(p_A) - sqrt(p_B))^2)) (from memory): with the default
sigma_T and alpha and unanimous copies 0.0017 for 20 of them and 0.012 for 1,000, far less than a benign update moves
it.

Deviations and open points: uniform mean as in FLAME and in the authors' code (the paper: by sample counts). With growth
the bound starts at `bound` and has no ceiling (that code: a step later, and one). Trainable parameters are clipped and
noised; BatchNorm statistics are averaged, counters stay the server's. (FLPoison's CRFL clips the update instead of the
model.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator

from flame.defenses.base import average, uniform
from flame.round.smoothing import NOISELESS, Smoothing
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class CRFL:
    """The mean, its model clipped, perturbed and smoothed."""

    bound: float  # rho_0, > 0, L2 norm of a model
    growth: float  # >= 0, added to the bound in each round
    noise_std: float  # sigma, >= 0, per coordinate
    randomized_smoothing: Smoothing | None  # how the model is evaluated; None: as any other

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise ValueError(f"defense.bound={self.bound} is out of range: must be > 0, an L2 norm of whole models")
        for key in ("growth", "noise_std"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be >= 0 (0: none)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone is accepted."""
        shares = uniform(torch.ones(len(updates), dtype=torch.bool))
        row, bound = average(state, updates, shares), self.bound + self.growth * state.round
        model = row[updates.layout.span("weights_only")]  # a view
        norm = float(model.double().norm())
        model *= min(1.0, bound / norm) if norm > 0 else 1.0
        memory = {**state.memory, NOISELESS: model.clone()}
        if self.noise_std:
            model += self.noise_std * torch.randn(len(model), generator=stream)
        info = {"crfl/model_bound": bound, "crfl/model_norm": norm, "crfl/noise_std": self.noise_std}
        return Verdict(replace(state, row=row, memory=memory), shares, info)
