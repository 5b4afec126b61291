"""RLR, robust learning rate (Ozdayi et al., AAAI 2021): where too few agree on a direction, go the other way.

A coordinate moves by the mean update if the signs of the clients' updates add up to at least theta in absolute value,
and by its negative otherwise.

Deviations and open points: theta is a share of the round's clients. The mean is uniform as in FLAME (the paper: by
sample count), server learning rate 1. BatchNorm statistics, which have no sign to vote on, are averaged; counters stay
the server's. Nobody is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, uniform
from flame.defenses.columns import columnwise
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class RLR:
    """The mean with its sign flipped where the vote is close."""

    threshold: float  # theta / n, [0, 1]; 0 is the mean

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"defense.threshold={self.threshold} is out of range: must be in [0, 1], theta as a share of n"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone votes and everyone is in the mean."""
        trainable = updates.layout.span("weights_only")
        shares = uniform(torch.ones(len(updates), dtype=torch.bool))
        row = average(state, updates, shares)
        votes = columnwise(updates.rows[:, trainable], agreement)  # [d]
        against = votes < self.threshold * len(updates) - 1e-9  # 0.7 * 10 is not exactly 7
        row[trainable] = torch.where(against, 2 * state.row[trainable] - row[trainable], row[trainable])  # G - mean
        return Verdict(replace(state, row=row), shares, {"rlr/flipped_share": float(against.float().mean())})


def agreement(values: Tensor) -> Tensor:
    """[width], |sum of signs| along each row of `values` [width, n]."""
    return values.sign().sum(dim=1).abs()
