"""FedDLAD (Ding, Yang and Huang, "FedDLAD: A Federated Learning Dual-Layer Anomaly Detection Framework for Enhancing
Resilience Against Backdoor Attacks", IJCAI 2025): a group of reference, and whoever goes its way after all.

1. The connectivity-based outlier factor (COF; Tang et al., PAKDD 2002) of each client, by the Euclidean distance
   between rows of the matrix of the local models' cosine distances, with all others as neighbours. The r lowest are
   the group of reference.
2. Every update is clipped to the median length of that group. Then, coordinate by coordinate, a value further outside
   the quartiles of all clients than `fence` times their distance has its sign turned.
3. Of the others, the p with the largest positive cosine to the group's mean are pardoned. The model moves by the mean
   of both means, weighed by r and p; in the second one a client weighs its cosine.

Deviations and open points: written after the authors' public code (`combined_aggregation` of FedDLAD/src/aggregation.py
in dingbinb/FedDLAD at d5d328f6, COF as of pyod) and the paper's title; its text could not be read and is not cited. The
authors' r = 12, p = 3 and 24 neighbours are of 25 clients a round, and are shares here; BackFed has the numbers
themselves, so that rounds of ten are of reference as a whole (feddlad_server.py at a00c07de). Uniform mean of the group
(there, by sample counts). One or two clients are all of reference. Equal factors go to the client that comes first. All
of this is about trainable parameters. BatchNorm statistics are averaged by the same weights, neither clipped nor
turned, and counters stay the server's. As signs are turned, too, the factors are not reported as clipping. Cosines are
those of turned updates, as there: one that points away from all others is turned as a whole, and may be pardoned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import clip_to, uniform
from flame.defenses.columns import slabs
from flame.defenses.krum import lowest
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class FedDLAD:
    """The mean of a group of reference and of those who go its way, clipped, with outlying values turned."""

    reference: float  # r, a share of the clients, (0, 1]
    pardoned: float  # p, a share of the clients at most, [0, 1]
    fence: float  # distances of the quartiles beyond which a value is turned, >= 0

    def __post_init__(self) -> None:
        if not 0 < self.reference <= 1:
            raise ValueError(f"defense.reference={self.reference} is out of range: must be in (0, 1], a share")
        if not 0 <= self.pardoned <= 1:
            raise ValueError(f"defense.pardoned={self.pardoned} is out of range: must be in [0, 1], a share")
        if not 0 <= self.fence < float("inf"):
            raise ValueError(f"defense.fence={self.fence} is out of range: must be >= 0 (the authors: 0.6)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The group of reference and the pardoned are accepted."""
        n, trainable, norms = len(updates), updates.layout.span("weights_only"), updates.geometry.norms("weights_only")
        outlying = outlier_factors(updates.geometry.cosine_distances("weights_only"))
        group = lowest(outlying, max(1, round(self.reference * n)) if n > 2 else n)
        bound = float(norms[group].quantile(0.5))
        rows, scale = updates.rows[:, trainable], clip_to(bound, norms).float()
        limits = fences(rows, scale, self.fence)
        cosines = cosines_to(turned(rows, scale, limits), uniform(group)).masked_fill(group, 0).relu()
        late = lowest(-cosines, round(self.pardoned * n)) & (cosines > 0)
        shares = mixed(group, cosines * late)
        row = state.row.clone()
        row[trainable] += torch.cat([shares.float() @ slab for slab in turned(rows, scale, limits)])
        row[trainable.stop :] += shares.float() @ updates.rows[:, trainable.stop :]
        info = {"feddlad/clip_bound": bound, "feddlad/pardoned": float(late.sum())}
        return Verdict(replace(state, row=row), shares, info)


def outlier_factors(gaps: Tensor) -> Tensor:
    """[n] float64, COF of clients by the rows of `gaps` [n, n], all others being neighbours; 0 where all are alike."""
    apart = torch.cdist(gaps, gaps, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(-1)  # itself first
    n = len(gaps)
    falling = 2 * torch.arange(n - 1, 0, -1, dtype=torch.float64) / max(1, n * (n - 1))  # a near step counts most
    chains = torch.stack([(falling * steps(apart, order)).sum() for order in apart.argsort(dim=1, stable=True)])
    return (chains * (n - 1) / (chains.sum() - chains)).nan_to_num(0, 0, 0)


def steps(apart: Tensor, order: Tensor) -> Tensor:
    """[n - 1], from each client in `order` [n] but the first to the nearest of those before, under `apart` [n, n]."""
    ordered = apart[order][:, order]
    return ordered.masked_fill(torch.ones_like(ordered).triu().bool(), torch.inf)[1:].min(dim=1).values


def fences(rows: Tensor, scale: Tensor, width: float) -> Tensor:
    """[2, d], the quartiles of `rows` [n, d] times `scale` [n], moved outward by `width` times their distance."""
    limits = []
    for part in slabs(rows):
        low, high = torch.quantile(part * scale[:, None], part.new_tensor([0.25, 0.75]), dim=0)
        limits.append(torch.stack([low - width * (high - low), high + width * (high - low)]))
    return torch.cat(limits, dim=1)


def turned(rows: Tensor, scale: Tensor, limits: Tensor) -> Iterator[Tensor]:
    """Slabs [n, width] of `rows` [n, d] times `scale` [n], the signs of values outside `limits` [2, d] turned."""
    for part, (low, high) in zip(slabs(rows), slabs(limits, len(rows)), strict=True):
        part = part * scale[:, None]
        yield torch.where((part < low) | (part > high), -part, part)


def cosines_to(parts: Iterable[Tensor], shares: Tensor) -> Tensor:
    """[n] float64, cosines of rows in slabs `parts` [n, width] to their mean by `shares` [n]; 0 without a length."""
    n = len(shares)
    inner, squares, square = torch.zeros(n).double(), torch.zeros(n).double(), torch.zeros(()).double()
    for part in parts:
        wide = part.double()
        mean = shares @ wide
        inner, squares, square = inner + wide @ mean, squares + wide.square().sum(dim=1), square + mean.dot(mean)
    return (inner / (squares * square).sqrt()).nan_to_num(0, 0, 0)


def mixed(group: Tensor, trust: Tensor) -> Tensor:
    """[n] float64, of the `group` [n] bool and those of `trust` [n] > 0 together as many parts as there are members.

    The group's are equal, those of the others in proportion to their trust.
    """
    members, late = group.sum(), (trust > 0).sum()
    beside = late * trust / trust.sum() if late else torch.zeros_like(trust)
    return (group.double() + beside) / (members + late)
