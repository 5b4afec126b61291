"""Coordinate-wise median and trimmed mean (Yin et al., ICML 2018, definitions 1 and 2).

Of the n values of a coordinate the k = floor(trim * n) largest and smallest are left out and the rest averaged. With
trim = 0.5 only the middle one or two are left, which is the median.

Deviations and open points: k is at most (n - 1) // 2, so that a value remains. The paper's gradients are updates here.
BatchNorm statistics are coordinates like the others and get the same rule; counters stay the server's. No client is
rejected as a whole, so all have equal weight in the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from flame.defenses.base import uniform
from flame.defenses.columns import columnwise
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate's middle values."""

    trim: float  # beta, share of values left out at each end, [0, 0.5]; 0 is the mean, 0.5 the median

    def __post_init__(self) -> None:
        if not 0 <= self.trim <= 0.5:
            raise ValueError(
                f"defense.trim={self.trim} is out of range: must be in [0, 0.5] (0.5 is the median; "
                "at least the expected share of attackers)"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone takes part, coordinate by coordinate."""
        n = len(updates)
        k = trimmed(self.trim, n)
        row = state.row + columnwise(updates.rows, lambda values: middle_mean(values, k))
        return Verdict(replace(state, row=row), uniform(torch.ones(n, dtype=torch.bool)), {"trimmed_mean/k": float(k)})


def trimmed(share: float, n: int) -> int:
    """floor(share * n), at most (n - 1) // 2; products like 0.29 * 100 count as the whole number they stand for."""
    return min(int(share * n + 1e-9), (n - 1) // 2)


def middle_mean(values: Tensor, k: int) -> Tensor:
    """[width], mean of each row of `values` [width, n] without its k smallest and k largest."""
    ordered = torch.from_numpy(np.sort(values.numpy()))  # torch takes three times as long on short rows
    return ordered[:, k : values.shape[1] - k].mean(dim=1)
