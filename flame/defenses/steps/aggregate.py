"""Step 5: the mean of the clipped accepted updates, and what becomes of BatchNorm's counters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flame.defenses.base import check_choice
from flame.geometry.layout import COUNTERS
from flame.round.types import Updates


@dataclass(frozen=True)
class Aggregate:
    """How much each accepted client moves the global model."""

    weights: str  # uniform | samples: by number of training images
    divide_by: str  # accepted: the weights add up to 1 over the accepted | participants: over all n clients
    server_lr: float  # eta > 0; 1: G' = G + mean, else G' = G + eta * mean, BatchNorm's statistics included
    counters: str  # keep the server's | first_increment | mean | mean_of_integers: see COUNTER_RULES

    def __post_init__(self) -> None:
        check_choice("aggregate.weights", self.weights, ("uniform", "samples"))
        check_choice("aggregate.divide_by", self.divide_by, ("accepted", "participants"))
        check_choice("aggregate.counters", self.counters, tuple(COUNTER_RULES))
        if not 0 < self.server_lr < math.inf:
            raise ValueError(f"defense.aggregate.server_lr={self.server_lr} is out of range: must be > 0 (FLAME: 1)")

    def shares(self, updates: Updates, accepted: Tensor) -> Tensor:
        """[n] float64, what each clipped update is multiplied by; 0 for the rejected."""
        votes = self.votes(updates)
        whole = votes[accepted] if self.divide_by == "accepted" else votes
        return self.server_lr * votes * accepted / whole.sum()

    def votes(self, updates: Updates) -> Tensor:
        """[n] float64, weights before they are divided."""
        return torch.ones(len(updates)).double() if self.weights == "uniform" else updates.samples.double()

    def row(self, updates: Updates, shares: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """[d + b], the reference plus the sum of shares * factors * updates, block by block."""
        row = updates.base.clone()
        for block, span in updates.layout.spans.items():
            row[span] += updates.weighted(shares * factors[block], span)
        return row

    def counter_row(self, updates: Updates, accepted: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """[c] int64."""
        votes, scale = self.votes(updates)[accepted, None], factors[COUNTERS][accepted, None]
        increments = updates.counters[accepted] - updates.base_counters
        return COUNTER_RULES[self.counters](updates.base_counters, increments, votes, scale).long()


def _keep(base: Tensor, increments: Tensor, votes: Tensor, scale: Tensor) -> Tensor:
    return base


def _first_increment(base: Tensor, increments: Tensor, votes: Tensor, scale: Tensor) -> Tensor:
    """The first accepted client's steps of this round, in place of a count."""
    return increments[0]


def _mean(base: Tensor, increments: Tensor, votes: Tensor, scale: Tensor) -> Tensor:
    """Reference plus the mean scaled increment, through float32; the caller cuts it to an integer."""
    return (base + (votes * scale * increments).sum(0) / votes.sum()).float()


def _mean_of_integers(base: Tensor, increments: Tensor, votes: Tensor, scale: Tensor) -> Tensor:
    """Each scaled increment is cut to an integer, then their mean is."""
    return base + ((increments * scale.float()).long().sum(0) / len(votes)).trunc()


CounterRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # base [c], increments [k, c], votes and scale [k, 1]
COUNTER_RULES: Mapping[str, CounterRule] = {
    "keep": _keep,
    "first_increment": _first_increment,
    "mean": _mean,
    "mean_of_integers": _mean_of_integers,
}
