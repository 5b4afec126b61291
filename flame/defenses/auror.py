"""Auror (Shen et al., ACSAC 2016, section 4): split the clients in two on each feature, and distrust the smaller side.

A feature is indicative if the centres of its two clusters lie more than alpha apart; which ones are is decided anew in
each of the first rounds and then kept. Clients in the cluster with fewer than half of the members are suspicious on
that feature, and rejected if they are so on more than a share tau of the indicative features.

Deviations and open points: the features are the last layer's parameters of this round's update (the paper: the shared
gradients of small networks; public re-implementations: the output layer). The two clusters of a feature are the exact
optimum of k-means in one dimension, found by sorting, so that nothing is drawn at random. Without indicative features,
and on features split half and half, nobody is suspicious. (FLPoison's Auror keeps the larger of two clusters of all
indicative features at once.) BatchNorm statistics are averaged over the accepted clients, counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, uniform
from flame.defenses.columns import slabs
from flame.round.types import ServerState, Updates, Verdict

FEATURES = "defense/auror"  # [h] bool in the server's memory, the indicative features


@dataclass(frozen=True)
class Auror:
    """The mean of the clients that are with the majority on most indicative features."""

    threshold: float  # alpha, > 0, distance of the two centres that makes a feature indicative
    find_rounds: int  # rounds in which the indicative features are found, >= 1
    vote: float  # tau, share of indicative features on which a rejected client is suspicious, [0.5, 1)

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"defense.threshold={self.threshold} is out of range: must be > 0, in units of updates")
        if self.find_rounds < 1:
            raise ValueError(f"defense.find_rounds={self.find_rounds} is out of range: must be >= 1 (10 is usual)")
        if not 0.5 <= self.vote < 1:
            raise ValueError(
                f"defense.vote={self.vote} is out of range: must be in [0.5, 1), below which all can be rejected"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        head = updates.rows[:, updates.layout.spans["head"]]  # [n, h]
        gaps, outvoted = zip(*(split(part.double()) for part in slabs(head)), strict=True)
        indicative = state.memory.get(FEATURES)
        if indicative is None or state.round < self.find_rounds:
            indicative = torch.cat(gaps) > self.threshold
        suspicious = torch.cat(outvoted, dim=1)[:, indicative].sum(dim=1)  # [n] votes
        shares = uniform(suspicious <= self.vote * indicative.sum())
        after = replace(state, row=average(state, updates, shares), memory={**state.memory, FEATURES: indicative})
        return Verdict(after, shares, {"auror/indicative_features": float(indicative.sum())})


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of features `values` [n, h]: distance of the two means [h], and who is in the minority [n, h] bool."""
    gaps, upper = two_means(values)
    return gaps, minority(upper)


def two_means(values: Tensor) -> tuple[Tensor, Tensor]:
    """The best split of each column of `values` [n, h] in two: distance of the means [h], who is above [n, h] bool.

    Of all splits of the sorted column the one with the largest spread between the clusters is k-means' optimum. A
    column of equal values (n = 1 included) has distance 0 and nobody above.
    """
    n = len(values)
    ordered, below = values.sort(dim=0).values, torch.arange(1, n, dtype=values.dtype)[:, None]
    if n == 1:
        return values.new_zeros(values.shape[1]), torch.zeros_like(values, dtype=torch.bool)
    sums = ordered.cumsum(dim=0)
    gaps = (sums[-1] - sums[:-1]) / (n - below) - sums[:-1] / below  # [n - 1, h]
    best = (below * (n - below) * gaps.square()).argmax(dim=0, keepdim=True)
    return gaps.gather(0, best)[0], values > ordered.gather(0, best)


def minority(upper: Tensor) -> Tensor:
    """[n, h] bool, who is in the cluster with fewer than half of the clients; nobody where the halves are equal."""
    n, above = len(upper), upper.sum(dim=0)
    return torch.where(2 * above < n, upper, ~upper) & (2 * above != n)
