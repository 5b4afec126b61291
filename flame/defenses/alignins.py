"""AlignIns (Xu, Zhang and Hu, "Detecting Backdoor Attacks in Federated Learning via Direction Alignment Inspection",
CVPR 2025, algorithm 1).

Each update gets two numbers: TDA, its cosine to the global model, and MPSA, the share of its k largest coordinates
whose sign is the sign that most clients have there. Whoever lies further than lambda_c or lambda_s standard deviations
from the median of the one or the other (the MZ-score) is rejected; the rest is clipped to its own median length and
averaged.

Deviations and open points: a spread below 1e-9 is none, and everyone then lies at the median. The standard deviation is
the population's, as in public code, and a score equal to the radius passes (each of two clients always scores 1); in
that code it does not, and without a spread nobody passes. If nobody passes both, the model stays as it is, as there.
Uniform mean (there, by sample counts). The median length of an even number is the mean of the middle two (there, the
lower one). Trainable parameters are inspected and clipped; BatchNorm statistics are averaged over the accepted clients,
counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, clip_to, uniform
from flame.defenses.columns import columnwise
from flame.round.types import ServerState, Updates, Verdict

ROUNDING = 1e-9


@dataclass(frozen=True)
class AlignIns:
    """The clipped mean of updates whose direction is aligned as most are."""

    sparsity: float  # k / d, share of the largest coordinates whose signs count, (0, 1]
    sign_radius: float  # lambda_s, > 0, standard deviations of MPSA
    direction_radius: float  # lambda_c, > 0, standard deviations of TDA

    def __post_init__(self) -> None:
        if not 0 < self.sparsity <= 1:
            raise ValueError(f"defense.sparsity={self.sparsity} is out of range: must be in (0, 1], a share")
        for key in ("sign_radius", "direction_radius"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be > 0 (the paper: 1)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        rows = updates.rows[:, updates.layout.span("weights_only")]
        whole, norms = updates.geometry.scope("weights_only"), updates.geometry.norms("weights_only")
        tda = (whole.along / (norms * whole.base.sqrt())).nan_to_num(0, 0, 0)  # [n]
        principal = columnwise(rows, lambda values: values.sign().sum(dim=1).sign())  # [d]
        count = max(1, int(self.sparsity * rows.shape[1]))
        mpsa = torch.stack([sign_alignment(row, principal, count) for row in rows])  # [n]
        usual_signs = mz_scores(mpsa) <= self.sign_radius + ROUNDING
        usual_direction = mz_scores(tda) <= self.direction_radius + ROUNDING
        accepted = usual_signs & usual_direction
        bound = float(norms[accepted].quantile(0.5)) if bool(accepted.any()) else 0.0
        shares, factors = uniform(accepted), clip_to(bound, norms)
        info = {
            "alignins/clip_bound": bound,
            "alignins/usual_signs": float(usual_signs.sum()),
            "alignins/usual_direction": float(usual_direction.sum()),
        }
        return Verdict(replace(state, row=average(state, updates, shares, factors)), shares, info, factors)


def sign_alignment(row: Tensor, principal: Tensor, count: int) -> Tensor:
    """[] float64, share of the `count` largest coordinates of `row` [d] that have the `principal` [d] sign."""
    top = row.abs().topk(count).indices
    return (row[top].sign() == principal[top]).double().mean()


def mz_scores(values: Tensor) -> Tensor:
    """[n], distance of `values` [n] from their median in standard deviations."""
    spread = values.std(correction=0)
    return (values - values.quantile(0.5)).abs() / spread if spread > ROUNDING else torch.zeros_like(values)
