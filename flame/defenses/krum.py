"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017, section 4): keep the updates closest to their neighbours.

The score of a client is the sum of squared distances to its n - f - 2 nearest others; Krum takes the one with the
lowest score, Multi-Krum the mean of the m lowest. What Krum takes has all the weight, a short update as any other:
among unlike ones it is the closest to all. Of Multi-Krum nobody has more than 1 / m.

Deviations and open points: f is a share of the round's clients, rounded as the cohort rounds its attackers. The paper
needs n >= 2f + 3; a smaller round gets the largest f that satisfies it (`krum/f` records it), and rounds of one or two
clients, which have no neighbours to compare, accept everyone. Ties go to the client that comes first; with three or
four clients, where one or two neighbours count, they are common. Distances are those of the trainable parameters;
BatchNorm statistics are averaged over the accepted clients, counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, uniform
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class Krum:
    """The mean of the updates with the lowest scores."""

    malicious_share: float  # f / n that is assumed, [0, 0.5)
    keep: int | None  # m, updates in the mean: 1 is Krum; None: n - f

    def __post_init__(self) -> None:
        if not 0 <= self.malicious_share < 0.5:
            raise ValueError(
                f"defense.malicious_share={self.malicious_share} is out of range: must be in [0, 0.5); "
                "Krum cannot outvote a majority (0.2 fits the default poisoned_model_rate)"
            )
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"defense.keep={self.keep} is out of range: must be >= 1, or null for n - f")

    def check_clients(self, clients: int) -> None:
        """A ValueError if more updates are to be kept than a round has."""
        if self.keep is not None and self.keep > clients:
            raise ValueError(
                f"defense.keep={self.keep} is out of range: must be in [1, {clients}], the updates of a round, or null"
                " for n - f; all would be kept"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The chosen clients share equally."""
        n = len(updates)
        f = min(round(self.malicious_share * n), max(0, (n - 3) // 2))
        accepted = torch.ones(n, dtype=torch.bool)
        if n > 2:
            scores = krum_scores(updates.geometry.squared_distances("weights_only"), n - f - 2)
            accepted = lowest(scores, n - f if self.keep is None else self.keep)
        shares = uniform(accepted)
        return Verdict(replace(state, row=average(state, updates, shares)), shares, {"krum/f": float(f)})


def krum_scores(squared: Tensor, neighbours: int) -> Tensor:
    """[n], sum of the squared distances [n, n] from each client to its nearest `neighbours` others."""
    others = squared.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, :neighbours].sum(dim=1)


def lowest(scores: Tensor, count: int) -> Tensor:
    """[n] bool, the `count` lowest scores; all if there are fewer."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.argsort(stable=True)[:count]] = True
    return mask
