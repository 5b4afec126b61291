"""FoolsGold (Fung et al., RAID 2020, algorithm 1): clients that push in one direction over the rounds are sybils.

H_i is the sum of client i's updates over the rounds, cs_ij the cosine of H_i and H_j on the indicative features,
v_i = max_j cs_ij. Pardoning scales cs_ij by v_i / v_j where v_j > v_i; then alpha_i = 1 - max_j cs_ij, divided by the
largest, goes through kappa * (ln(alpha / (1 - alpha)) + 0.5), cut to [0, 1].

The authors have two programs (DistributedML/FoolsGold at 0aa55114). `cut=False` is deep-fg/, for deep networks: the
last layer is compared, and the model moves by the mean of alpha_i U_i. Weights say who moves the model, not how far:
one long update takes it along. `cut=True` is ML/, for softmax regression and a small network: every update is cut to
length 1 first, all parameters are compared, and the model moves by the sum of alpha_i U_i, by at most n.

Deviations and open points: the last layer's bias is compared, too (deep-fg/: its weight), all features with equal
importance (the paper: output layer, optionally weighted). Weights are alpha_i / n, at most 1/n and whatever the
lengths, so they add up to at most 1: a round whose clients resemble one another moves the model less, and one of
identical clients, all sybils to this rule, leaves it as it is. alpha below 1e-9 counts as 0, or rounding would decide
such a round (ML/ adds 1e-5 here and there instead). Negative cosines count as 0, as in both programs. BatchNorm
statistics are averaged by weight under `cut`, too; counters stay the server's. The histories are of cut updates, and
hold 4 d bytes per client seen under `cut`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, clip_to
from flame.defenses.per_client import recall, remember
from flame.round.types import ServerState, Updates, Verdict

HISTORY = "defense/foolsgold"
LENGTH = 1.0  # to which updates are cut
ROUNDING = 1e-9  # a dissimilarity below this is not one


@dataclass(frozen=True)
class FoolsGold:
    """Weights by how little a client's history resembles anyone else's."""

    confidence: float  # kappa, > 0
    cut: bool  # the authors' second program: cut to length 1, compared as a whole, summed

    def __post_init__(self) -> None:
        if not 0 < self.confidence < math.inf:
            raise ValueError(f"defense.confidence={self.confidence} is out of range: must be > 0 (the paper: 1)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The weights of this round, and the histories with this round's updates in them."""
        n, layout = len(updates), updates.layout
        factors = clip_to(LENGTH, updates.geometry.norms("weights_only")) if self.cut else None
        compared = updates.rows[:, layout.span("weights_only") if self.cut else layout.spans["head"]]  # [n, h]
        if factors is not None:
            compared = compared * factors[:, None].float()
        history = recall(state.memory, HISTORY, updates.ids, compared.shape[1]) + compared
        alpha = foolsgold_weights(cosines(history), self.confidence)
        shares = alpha / n
        memory = remember(state.memory, HISTORY, updates.ids, history)
        row = average(state, updates, shares, None if factors is None else n * factors)
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
