"""SignGuard (Xu, Huang, Song and Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient
Filtering", ICDCS 2022): filter by length, filter by the statistics of signs, clip to the median length.

Accepted is who passes both filters: a length within [lower, upper] times the median; and membership of the largest
mean-shift cluster of the shares of positive, zero and negative values among randomly chosen coordinates.

Deviations and open points: the plain variant, without the cosine feature of SignGuard-Sim. Mean shift is scikit-learn's
with the bandwidth that it estimates at quantile 0.5, as in the authors' code (JianXu95/SignGuard), but from all clients
(there, from 50), at least one coordinate's worth, and it starts from every client (there, from bins); at least one
coordinate is drawn. That code divides each share by the largest among the clients, which makes of a single zero as
much as of all signs, and takes coordinates that lie side by side; here the shares count as they are. It clips to the
lower of the two middle lengths where n is even, and filters by their mean; here both are the mean, and a length at a
bound passes. If nobody passes both filters the model stays as it is. Lengths and signs are those of the trainable
parameters; BatchNorm statistics are averaged over the accepted clients, unclipped, and counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, clip_to, uniform
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class SignGuard:
    """The clipped mean of updates of usual length and usual signs."""

    lower: float  # L, least length as a multiple of the median, [0, 1]
    upper: float  # R, largest, >= 1
    coordinates: float  # share of the trainable parameters whose signs are counted, (0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= 1 <= self.upper:
            raise ValueError(
                f"defense.lower={self.lower}, defense.upper={self.upper} are out of range: must be in [0, 1] and >= 1, "
                "multiples of the median length"
            )
        if not 0 < self.coordinates <= 1:
            raise ValueError(f"defense.coordinates={self.coordinates} is out of range: must be in (0, 1], a share")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        norms, d = updates.geometry.norms("weights_only"), updates.layout.trainable
        median = float(norms.quantile(0.5))
        usual = (norms >= self.lower * median) & (norms <= self.upper * median)
        chosen = torch.randperm(d, generator=stream)[: max(1, int(self.coordinates * d))]
        alike = largest_cluster(sign_shares(updates.rows[:, chosen]), 1 / len(chosen))
        shares, factors = uniform(usual & alike), clip_to(median, norms)
        info = {
            "signguard/clip_bound": median,
            "signguard/usual_length": float(usual.sum()),
            "signguard/usual_signs": float(alike.sum()),
        }
        return Verdict(replace(state, row=average(state, updates, shares, factors)), shares, info, factors)


def sign_shares(rows: Tensor) -> Tensor:
    """[n, 3] float64, shares of positive, zero and negative values in each of `rows` [n, k]."""
    return torch.stack([(rows.sign() == sign).double().mean(dim=1) for sign in (1, 0, -1)], dim=1)


def largest_cluster(points: Tensor, least_bandwidth: float) -> Tensor:
    """[n] bool, the largest mean-shift cluster of `points` [n, p]; orphans belong to none."""
    from sklearn.cluster import MeanShift, estimate_bandwidth  # imports that workers and --help do without

    bandwidth = max(estimate_bandwidth(points.numpy(), quantile=0.5), least_bandwidth)
    labels = torch.from_numpy(MeanShift(bandwidth=bandwidth, cluster_all=False).fit(points.numpy()).labels_)
    return labels == labels[labels >= 0].bincount().argmax()
