"""Bucketing (Karimireddy, He and Jaggi, ICLR 2022) before any other rule.

The clients are shuffled and dealt into buckets of s; the inner rule aggregates the buckets' means, which differ less
from one another than non-IID clients do. A client's weight is its share of the bucket's weight.

Deviations and open points: the shuffle is drawn over client numbers, so that the order of arrival plays no part. The
last bucket may be smaller. An attacker spoils its bucket, so an inner rule's assumed share of attackers should be up to
s times that of the clients. An inner rule that remembers clients has nothing to remember here: buckets are new in
every round. BatchNorm statistics and counters are the inner rule's choice, from the buckets' means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flame.defenses.base import Defense
from flame.defenses.mixing import PreAggregation, mix, unmix
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class Bucketing(PreAggregation):
    """The inner rule on means of random buckets."""

    size: int  # s, clients in a bucket, >= 1; 1 is the inner rule itself
    rule: Defense  # what aggregates the means

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"defense.size={self.size} is out of range: must be >= 1 (the paper: 2)")

    def check_clients(self, clients: int) -> None:
        """The inner rule's answer for the number of buckets."""
        super().check_clients(-(-clients // self.size))

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The inner rule's verdict on the buckets, as one on clients."""
        order = updates.ids.argsort()[torch.randperm(len(updates), generator=stream)]
        mixing = buckets(order, self.size)
        return unmix(self.rule(state, mix(updates, mixing, torch.arange(len(mixing))), stream), mixing)


def buckets(order: Tensor, size: int) -> Tensor:
    """[ceil(n / size), n] float64, the mean of each `size` clients that follow one another in `order` [n]."""
    place = torch.arange(len(order)) // size  # [n]
    members = torch.zeros(int(place[-1]) + 1, len(order), dtype=torch.float64)
    members[place, order] = 1
    return members / members.sum(dim=1, keepdim=True)
