"""Bulyan of Krum (El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability", ICML 2018).

Krum picks n - 2f updates one after another, each time among those that are left; each coordinate then becomes the mean
of the n - 4f of their values that are closest to their median.

Deviations and open points: f is a share of the round's clients, rounded as the cohort rounds its attackers; the paper
needs n >= 4f + 3, and a smaller round gets the largest f that satisfies it (`bulyan/f` records it). Krum's number of
neighbours shrinks with what is left, m - f - 2 of m, and is at least two, as the two of a pair would tie by one. Ties
go to the client that comes first, equally close values to the smaller. The median of an even number is the mean of the
middle two. (The code of an author, AggregaThor, picks means of Multi-Krum, n - 2f - 2 of them, and its median is a
value.) Distances are those of the trainable parameters;
BatchNorm statistics are coordinates like the others, counters stay the server's. The picked clients have equal weight
in the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from flame.defenses.base import uniform
from flame.defenses.columns import columnwise
from flame.defenses.krum import krum_scores
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class Bulyan:
    """The coordinate-wise middle of what Krum picks."""

    malicious_share: float  # f / n that is assumed, [0, 0.25)

    def __post_init__(self) -> None:
        if not 0 <= self.malicious_share < 0.25:
            raise ValueError(
                f"defense.malicious_share={self.malicious_share} is out of range: must be in [0, 0.25); "
                "Bulyan needs four times as many clients as attackers"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The picked clients are the accepted ones."""
        n = len(updates)
        f = min(round(self.malicious_share * n), max(0, (n - 3) // 4))
        picked = picks(updates.geometry.squared_distances("weights_only"), f, n - 2 * f)
        row = state.row + columnwise(updates.rows, lambda values: closest_mean(values[:, picked], n - 4 * f))
        return Verdict(replace(state, row=row), uniform(picked), {"bulyan/f": float(f)})


def picks(squared: Tensor, f: int, count: int) -> Tensor:
    """[n] bool, the `count` clients that Krum picks one by one under squared distances [n, n]."""
    left = torch.arange(len(squared))
    for _ in range(count):
        scores = krum_scores(squared[left][:, left], max(2, len(left) - f - 2))
        left = left[torch.arange(len(left)) != int(scores.argmin())]
    return torch.ones(len(squared), dtype=torch.bool).index_fill(0, left, False)


def closest_mean(values: Tensor, count: int) -> Tensor:
    """[width], mean of the `count` values of each row of `values` [width, n] that are closest to the row's median."""
    ordered = np.sort(values.numpy())  # torch takes three times as long on short rows
    n = ordered.shape[1]
    median = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    nearest = np.argsort(np.abs(ordered - median[:, None]), kind="stable")[:, :count]
    return torch.from_numpy(np.take_along_axis(ordered, nearest, axis=1)).mean(dim=1)
