"""FoolsGold (Fung et al., RAID 2020, algorithm 1): clients that push in one direction over the rounds are sybils.

H_i is the sum of client i's updates over the rounds, cs_ij the cosine of H_i and H_j on the indicative features,
v_i = max_j cs_ij. Pardoning scales cs_ij by v_i / v_j where v_j > v_i; then alpha_i = 1 - max_j cs_ij, divided by the
largest, goes through kappa * (ln(alpha / (1 - alpha)) + 0.5), cut to [0, 1].

Deviations and open points: the indicative features are the last layer's, bias included (in the authors' code,
its weight), all with equal importance (the paper: output layer, optionally weighted). Weights are alpha_i / n as in
that code, so they add up to at most 1: a round whose clients resemble one another moves the model less, and one of
identical clients, all sybils to this rule, leaves it as it is. alpha below 1e-9 counts as 0, or rounding would decide
such a round. Negative cosines count as 0, as in that code. BatchNorm statistics get the same weights, counters stay the
server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average
from flame.defenses.per_client import recall, remember
from flame.round.types import ServerState, Updates, Verdict

HISTORY = "defense/foolsgold"
ROUNDING = 1e-9  # a dissimilarity below this is not one


@dataclass(frozen=True)
class FoolsGold:
    """Weights by how little a client's history resembles anyone else's."""

    confidence: float  # kappa, > 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < math.inf:
            raise ValueError(f"defense.confidence={self.confidence} is out of range: must be > 0 (the paper: 1)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The weights of this round, and the histories with this round's updates in them."""
        head = updates.rows[:, updates.layout.spans["head"]]  # [n, h]
        history = recall(state.memory, HISTORY, updates.ids, head.shape[1]) + head
        alpha = foolsgold_weights(cosines(history), self.confidence)
        shares = alpha / len(updates)
        memory = remember(state.memory, HISTORY, updates.ids, history)
        row = average(state, updates, shares)
        return Verdict(replace(state, row=row, memory=memory), shares, {"foolsgold/mean_weight": float(alpha.mean())})


def cosines(rows: Tensor) -> Tensor:
    """[n, n] float64, pairwise cosines of `rows` [n, h]; 0 for a zero row."""
    wide = rows.double()
    unit = wide / wide.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return unit @ unit.T


def foolsgold_weights(similarity: Tensor, confidence: float) -> Tensor:
    """[n] float64 in [0, 1], alpha, from pairwise cosines [n, n]."""
    cs = similarity.clone().fill_diagonal_(0)
    v = cs.max(dim=1).values  # [n], at least the 0 on the diagonal
    pardon = torch.where(v > v[:, None], v[:, None] / v, 1.0)  # [n, n], v_i / v_j where v_j is the larger
    alpha = (1 - (cs * pardon).max(dim=1).values).clamp(0, 1)
    alpha = torch.where(alpha < ROUNDING, 0.0, alpha)
    if not bool(alpha.any()):
        return alpha
    return (confidence * ((alpha / alpha.max()).logit() + 0.5)).clamp(0, 1)  # logit(0) = -inf, logit(1) = inf
