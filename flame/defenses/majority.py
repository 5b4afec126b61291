"""A control, no defense: n//2 + 1 of n clients are averaged, as many as FLAME's clustering leaves, chosen otherwise.

`by="draw"` says what it costs to average so few of them, whoever they are; `by="length"`, what it costs that they are
those who sent the shortest updates, which a majority cluster mostly is. No source: ours, for RESULTS.md, question 3.

Lengths are those of the trainable parameters, equal ones by client number; BatchNorm statistics are averaged over the
accepted clients; counters stay the server's, as in FLAME.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator

from flame.defenses.base import average, check_choice, uniform
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class Majority:
    """The mean of n//2 + 1 updates."""

    by: str  # "draw": at random | "length": the shortest

    def __post_init__(self) -> None:
        check_choice("by", self.by, ("draw", "length"))

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Neither clips nor adds noise."""
        n = len(updates)
        order = updates.ids.argsort()  # so that the order of arrival plays no part
        if self.by == "draw":
            order = order[torch.randperm(n, generator=stream)]
        else:
            order = order[updates.geometry.norms("weights_only")[order].argsort(stable=True)]
        accepted = torch.zeros(n, dtype=torch.bool)
        accepted[order[: n // 2 + 1]] = True
        shares = uniform(accepted)
        return Verdict(replace(state, row=average(state, updates, shares)), shares)
