"""DnC, divide and conquer (Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021).

Updates are centred on a random choice of coordinates and projected on their direction of largest spread; the c * f
clients that lie furthest along it are dropped. This is repeated on other coordinates, and only who is never dropped is
averaged. The projections come from the n x n Gram matrix of the chosen coordinates: with the leading eigenpair (l, u)
of the centred matrix, the squared projection of client i is l u_i^2.

Deviations and open points: f is a share of the round's clients, rounded as the cohort rounds its attackers; a pass
leaves at least one client, and a round in which everyone is dropped in some pass leaves the model as it is. Coordinates
are trainable parameters; BatchNorm statistics are averaged over the accepted clients, counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, check_minority, uniform
from flame.defenses.krum import lowest
from flame.defenses.points import embed
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class DnC:
    """The mean of the clients that never lie far along the direction of largest spread."""

    malicious_share: float  # f / n that is assumed, [0, 0.5)
    filter_factor: float  # c, >= 0: a pass drops c * f clients
    coordinates: int  # b, >= 1, drawn in each pass; all if the model has fewer
    passes: int  # niters, >= 1

    def __post_init__(self) -> None:
        check_minority(self.malicious_share)
        if not 0 <= self.filter_factor < math.inf:
            raise ValueError(f"defense.filter_factor={self.filter_factor} is out of range: must be >= 0 (the paper: 1)")
        for key in ("coordinates", "passes"):
            if getattr(self, key) < 1:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be a whole number >= 1")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        n, d = len(updates), updates.layout.trainable
        kept = max(1, n - round(self.filter_factor * round(self.malicious_share * n)))
        accepted = torch.ones(n, dtype=torch.bool)
        for _ in range(self.passes):
            chosen = torch.randperm(d, generator=stream)[: self.coordinates]
            accepted &= lowest(outlier_scores(updates.rows[:, chosen]), kept)
        shares = uniform(accepted)
        return Verdict(replace(state, row=average(state, updates, shares)), shares, {"dnc/kept": float(accepted.sum())})


def outlier_scores(rows: Tensor) -> Tensor:
    """[n] float64, squared projection of the centred `rows` [n, b] on their leading right singular vector."""
    wide = rows.double()
    return embed(wide @ wide.T)[:, 0].square()
