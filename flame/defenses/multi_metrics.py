"""Multi-metrics (Huang, Li, Chen, Shi and Gao, "Multi-metrics adaptively identifies backdoors in Federated learning",
ICCV 2023): three measures of how far a client is from the others, weighed by how they vary together.

For each client i, three sums over the others j: (1 - cos(W_i, W_j))^2, ||W_i - W_j||_1 and | ||W_i|| - ||W_j|| |, W
the local models. With their covariance S over the clients, the score is t_i' S^-1 t_i, a squared Mahalanobis length
from 0. The share p with the lowest scores is averaged.

Deviations and open points: written after the authors' public code (`Multi_metrics` of defense.py in
siquanhuang/Multi-metrics_against_backdoors_in_FL at ed02e901) and the paper's abstract; its sections could not be read
and are not cited. BackFed has the same arithmetic (backfed/servers/anomaly_detection/multi_metrics_server.py at
05ba905e, with p = 0.5), while FedDLAD's authors take differences of each client's three distances to the global model.
Uniform mean of the accepted (there, by sample counts). A covariance without an inverse has the pseudo-inverse of the
correlations here, and a measure in which nobody differs plays no part (there, numpy stops). Fewer than four clients
never have an inverse, and everyone is accepted; of fewer than seven one client is (there, of fewer than four nobody).
Equal scores go to the client that comes first. Trainable parameters are measured; BatchNorm statistics are averaged
over the accepted clients, counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, uniform
from flame.defenses.krum import lowest
from flame.geometry.products import Products
from flame.round.types import ServerState, Updates, Verdict

FEWEST = 4  # clients whose three measures can have a covariance with an inverse
WIDTH = 4096  # columns whose absolute differences are summed at once: they stay in the cache
ROUNDING = 1e-9  # of a measure, or of the largest eigenvalue of the correlations: a difference below it is none


@dataclass(frozen=True)
class MultiMetrics:
    """The mean of the clients whose three distances are short together."""

    share: float  # p, of the clients that are accepted, (0, 1]

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"defense.share={self.share} is out of range: must be in (0, 1] (the authors: 0.3)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        n = len(updates)
        scores, rank = mahalanobis(measures(updates)) if n >= FEWEST else (torch.zeros(n).double(), 0)
        accepted = lowest(scores, max(1, int(self.share * n)) if n >= FEWEST else n)
        shares = uniform(accepted)
        info = {"multi_metrics/rank": float(rank)}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)


def measures(updates: Updates) -> Tensor:
    """[n, 3] float64, sums over the others: squared cosine distances, Manhattan distances, differences in length."""
    scope, trainable = updates.geometry.scope("weights_only"), updates.layout.span("weights_only")
    gaps = (
        scope.cosine_distances().square(),
        manhattan_distances(updates.rows[:, trainable]),
        length_differences(scope),
    )
    return torch.stack([gap.sum(dim=1) for gap in gaps], dim=1)


def manhattan_distances(rows: Tensor) -> Tensor:
    """[n, n] float64, ||U_i - U_j||_1 = ||W_i - W_j||_1 of `rows` [n, d]."""
    upper = torch.ones(len(rows), len(rows)).triu(1).bool()
    gaps = torch.zeros(upper.shape, dtype=torch.float64)
    gaps[upper] = torch.stack([torch.pdist(part.double(), p=1) for part in rows.split(WIDTH, dim=1)]).sum(dim=0)
    return gaps + gaps.T


def length_differences(scope: Products) -> Tensor:
    """[n, n] float64, | ||W_i|| - ||W_j|| |, out of differences of updates (`flame/geometry/products.py`)."""
    own = scope.gram.diagonal()  # [n]
    squares = 2 * scope.along + own  # [n], ||W_i||^2 - ||G||^2
    lengths = (scope.base + squares).clamp_min(0).sqrt()
    gaps = (squares[:, None] - squares).abs()
    return torch.where(gaps > 0, gaps / (lengths[:, None] + lengths), 0.0)


def mahalanobis(points: Tensor) -> tuple[Tensor, int]:
    """[n] float64, x' S^-1 x of `points` [n, p], S their covariance, and its rank."""
    spread, size = points.std(dim=0), points.abs().max(dim=0).values
    scaled = torch.where(spread > ROUNDING * size, points / spread, 0.0)  # [n, p]
    correlations = torch.cov(scaled.T)
    inverse = torch.linalg.pinv(correlations, rtol=ROUNDING, hermitian=True)
    rank = int(torch.linalg.matrix_rank(correlations, rtol=ROUNDING, hermitian=True))
    return ((scaled @ inverse) * scaled).sum(dim=1), rank
