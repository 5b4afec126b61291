"""FedAvg (McMahan et al., AISTATS 2017, Algorithm 1): no defense, the baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator

from flame.defenses.base import average, check_choice
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class FedAvg:
    """The mean of all updates."""

    weights: str  # "uniform": 1/n each, as FLAME averages; "samples": by training images, as the paper of FedAvg

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, ("uniform", "samples"))

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone is accepted."""
        counts = updates.samples if self.weights == "samples" else torch.ones_like(updates.samples)
        shares = counts.double() / counts.sum()
        return Verdict(replace(state, row=average(state, updates, shares)), shares)
