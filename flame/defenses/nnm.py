"""NNM, nearest-neighbour mixing (Allouah et al., "Fixing by Mixing", AISTATS 2023) before any other rule.

Each update is replaced by the mean of its n - f nearest ones, itself included; the inner rule then aggregates the n
means. A client's weight is its share of what the inner rule accepted.

Deviations and open points: f is a share of the round's clients, at most (n - 1) // 2. Distances are those of the
trainable parameters; BatchNorm statistics are mixed and handed on like everything else, and what becomes of them and of
the counters is the inner rule's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flame.defenses.base import Defense, check_minority, minority
from flame.defenses.mixing import PreAggregation, mix, unmix
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class NNM(PreAggregation):
    """The inner rule on means of neighbours."""

    malicious_share: float  # f / n that is assumed, [0, 0.5)
    rule: Defense  # what aggregates the means

    def __post_init__(self) -> None:
        check_minority(self.malicious_share)

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The inner rule's verdict on the means, as one on clients."""
        n = len(updates)
        f = minority(self.malicious_share, n)
        mixing = neighbours(updates.geometry.squared_distances("weights_only"), n - f)
        return unmix(self.rule(state, mix(updates, mixing, updates.ids), stream), mixing)


def neighbours(squared: Tensor, count: int) -> Tensor:
    """[n, n] float64, in each row 1 / count at the `count` nearest of squared distances [n, n]."""
    nearest = squared.argsort(dim=1, stable=True)[:, :count]  # [n, count]
    return torch.zeros_like(squared).scatter_(1, nearest, 1 / count)
