"""LASA (Xu, Zhang and Hu, "Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model
Aggregation", WACV 2025), after its authors' code (JiiahaoXU/LASA 6fb9e54, algorithms/defense/lasa.py and
utils/mask_help.py), which decides here: the paper was not at hand.

1. Updates are clipped to their median length.
2. Of each update's weights (tensors of two or four axes, all together) the `sparsity` share of smallest magnitude is
   set to 0, and the smallest of the rest, too; other tensors stay as they are.
3. For each tensor apart, whoever lies `norm_radius` standard deviations or more from the median of the lengths, or
   `sign_radius` from that of the share of positive signs, is left out of that tensor's mean; if that is everybody,
   nobody is.

`aggregated` says of what the mean is: the clipped and sparse updates, as in the authors' code, where both lists hold
the same tensors; or the clipped ones, as FLPoison (vio1etus/FLPoison 368c940, aggregators/lasa.py) and the library of
CRYPTO-KU (32922ca) have it.

Deviations and open points: a spread below 1e-9 is none, and everyone then lies at the median (there, the division by 0
lets everybody pass both tests); a tensor of zeros alone has as many positive signs as negative ones. The median of an
even number is the mean of the middle two (there, of the lengths in step 1, the lower one). Trainable parameters are
clipped, sparsified and filtered. BatchNorm statistics are averaged with the clients' weights (there, filtered as
tensors and clipped), counters stay the server's. A client's weight is its share in the mean coordinate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.alignins import ROUNDING, mz_scores
from flame.defenses.base import check_choice, clip_to, uniform
from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, Updates, Verdict

AGGREGATED = ("sparse", "clipped")
WEIGHTS = (2, 4)  # axes of what is made sparse


@dataclass(frozen=True)
class LASA:
    """The mean of each tensor over the clients who are usual there."""

    sparsity: float  # share of the weights that are set to 0, [0, 1)
    norm_radius: float  # lambda_n, > 0, standard deviations of the lengths
    sign_radius: float  # lambda_s, > 0, of the shares of positive signs
    aggregated: str  # sparse | clipped

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"defense.sparsity={self.sparsity} is out of range: must be in [0, 1), a share")
        for key in ("norm_radius", "sign_radius"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be > 0 (the authors: 1)")
        check_choice("aggregated", self.aggregated, AGGREGATED)

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Each tensor's accepted clients share equally."""
        layout, norms = updates.layout, updates.geometry.norms("weights_only")
        bound = float(norms.quantile(0.5))
        factors = clip_to(bound, norms)
        clipped = updates.rows[:, : layout.trainable] * factors.float()[:, None]  # [n, d]
        sparse = self.sparsified(clipped, layout)
        mean_of = sparse if self.aggregated == "sparse" else clipped
        row, weights, kept = state.row.clone(), torch.zeros_like(norms), 0.0
        for e in layout.entries:
            if e.stop <= layout.trainable:
                accepted = self.usual(sparse[:, e.start : e.stop])
                shares = uniform(accepted)
                row[e.start : e.stop] += shares.float() @ mean_of[:, e.start : e.stop]
                weights += shares * (e.stop - e.start) / layout.trainable
                kept += float(accepted.sum()) * (e.stop - e.start) / layout.trainable
        row[layout.trainable :] += weights.float() @ updates.rows[:, layout.trainable :]
        info = {"lasa/clip_bound": bound, "lasa/kept": kept}
        return Verdict(replace(state, row=row), weights, info, factors)

    def sparsified(self, rows: Tensor, layout: StateLayout) -> Tensor:
        """Step 2 of clipped rows [n, d], a copy."""
        masked = torch.zeros(rows.shape[1], dtype=torch.bool)
        for e in layout.entries:
            if e.stop <= layout.trainable and len(e.shape) in WEIGHTS:
                masked[e.start : e.stop] = True
        sparse, count = rows.clone(), int(int(masked.sum()) * (1 - self.sparsity))
        if self.sparsity and count:
            weights = rows[:, masked]
            least = weights.abs().topk(count, dim=1).values[:, -1:]  # [n, 1]
            sparse[:, masked] = torch.where(weights.abs() > least, weights, 0.0)
        return sparse

    def usual(self, rows: Tensor) -> Tensor:
        """[n] bool, step 3 for one tensor's sparse updates [n, k]; everyone if it would be nobody."""
        norms = rows.double().norm(dim=1)
        signs = rows.sign().double()
        shares = 0.5 * (1 + (1 - self.sparsity) * signs.sum(1) / signs.abs().sum(1).clamp_min(1))
        alike = (mz_scores(norms) < self.norm_radius - ROUNDING) & (mz_scores(shares) < self.sign_radius - ROUNDING)
        return alike if bool(alike.any()) else torch.ones_like(alike)
