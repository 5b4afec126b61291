"""Norm clipping and weak DP (Sun et al., "Can You Really Backdoor Federated Learning?", 2019, arXiv 1911.07963).

Every update is scaled to a fixed length, U_i / max(1, ||U_i|| / M), and averaged; weak DP adds N(0, sigma^2) to each
coordinate of the result. It is "weak" because sigma is too small for a useful privacy guarantee; FLAME's tables call
it DP.

Deviations and open points: uniform mean, as in FLAME. The norm is that of the trainable parameters, which alone are
clipped and noised; BatchNorm statistics are averaged, counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator

from flame.defenses.base import average, clip_to, uniform
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class NormClip:
    """The mean of updates of bounded length, with noise if any."""

    bound: float  # M, > 0, L2 norm
    noise_std: float  # sigma, >= 0, per coordinate; 0: norm clipping alone

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise ValueError(f"defense.bound={self.bound} is out of range: must be > 0, an L2 norm of updates")
        if not 0 <= self.noise_std < math.inf:
            raise ValueError(f"defense.noise_std={self.noise_std} is out of range: must be >= 0 (0: no noise)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone is accepted; no update moves the mean further than bound / n."""
        norms = updates.geometry.norms("weights_only")
        factors = clip_to(self.bound, norms)
        shares = uniform(torch.ones(len(updates), dtype=torch.bool))
        row = average(state, updates, shares, factors)
        if self.noise_std:
            noise = torch.randn(updates.layout.trainable, generator=stream)
            row[updates.layout.span("weights_only")] += self.noise_std * noise
        info = {
            "norm_clip/clip_bound": self.bound,
            "norm_clip/noise_std": self.noise_std,
            "norm_clip/median_norm": float(norms.quantile(0.5)),
            "norm_clip/clipped_share": float((factors < 1).double().mean()),
        }
        return Verdict(replace(state, row=row), shares, info, factors)
