"""Centered clipping (Karimireddy, He and Jaggi, "Learning from History", ICML 2021).

v starts at the last round's aggregate and takes L steps v <- v + mean_i (U_i - v) min(1, tau / ||U_i - v||): no client
moves it by more than tau / n in a step. v is always a weighted sum of the updates and of where it started, so that each
distance follows from inner products and the rows are read twice, before the steps and after them. With one step nobody
weighs more than 1/n, however little it sends.

Deviations and open points: updates take the place of the paper's worker momenta (the local optimiser has a momentum of
its own, which ends with the round). v starts at 0 in the first round. Distances are those of the trainable parameters;
BatchNorm statistics get the clients' weights, made to add up to 1, and counters stay the server's. What is left of the
old v is no client's, so the weights of a round can add up to less than 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average
from flame.geometry.products import inner_products, squared_length
from flame.round.types import ServerState, Updates, Verdict

CENTRE = "defense/centered_clipping"  # [d] float32 in the server's memory, v after the last round


@dataclass(frozen=True)
class CenteredClipping:
    """The mean of updates clipped about the last aggregate."""

    bound: float  # tau, > 0, L2 distance from v that counts in full
    iterations: int  # L, >= 1

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise ValueError(f"defense.bound={self.bound} is out of range: must be > 0, an L2 norm of updates")
        if self.iterations < 1:
            raise ValueError(f"defense.iterations={self.iterations} is out of range: must be >= 1 (the paper: 1)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Nobody is rejected; far updates weigh less."""
        trainable = updates.layout.span("weights_only")
        centre = state.memory.get(CENTRE, torch.zeros(updates.layout.trainable))  # [d]
        gram = updates.geometry.scope("weights_only").gram
        along, square = inner_products(updates.rows[:, trainable], centre), float(squared_length(centre))
        kept, weights = centred(gram, along, square, self.bound, self.iterations)
        total = weights.sum()
        row = average(state, updates, weights / total, total.expand_as(weights))
        row[trainable] += kept * centre
        memory = {**state.memory, CENTRE: row[trainable] - state.row[trainable]}
        return Verdict(replace(state, row=row, memory=memory), weights, {"centered_clipping/kept": kept})


def centred(gram: Tensor, along: Tensor, square: float, bound: float, iterations: int) -> tuple[float, Tensor]:
    """v as `kept` times its start plus `weights` [n] times the updates; kept and the weights add up to 1.

    Of the updates: inner products [n, n], and with the start [n]; `square` is the start's squared length.
    """
    kept, weights = 1.0, torch.zeros_like(along)
    for _ in range(iterations):
        cross = kept * along + gram @ weights  # [n] <U_i, v>
        length = kept * (kept * square + weights @ along) + weights @ cross  # ||v||^2
        distances = (gram.diagonal() - 2 * cross + length).clamp_min(0).sqrt()
        factors = torch.where(distances > bound, bound / distances, 1.0)
        left = float(1 - factors.mean())
        kept, weights = left * kept, left * weights + factors / len(factors)
    return kept, weights
