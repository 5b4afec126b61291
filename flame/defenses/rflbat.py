"""RFLBAT (Wang et al., "RFLBAT: A Robust Federated Learning Algorithm against Backdoor Attack", 2022, arXiv
2201.03772): cluster the updates' first two principal components.

Who lies far from everyone else is dropped (sum of distances above eps_1 times the median); k-means with the number of
clusters that the gap statistic finds splits the rest; the cluster whose members resemble one another least (median of
their mean cosines) is kept, as poisoned updates are alike; and who lies far within it (eps_2) is dropped too.

Deviations and open points: written after a public re-implementation, ybdai7/Backdoor-indicator-defense's
(participants/servers/RflbatServer.py at 7f08114f), which is of updates, as here. thinh-dao/BackFed has a copy: at
a78f3ec7 of whole local models, where the cosines of all clusters are near 1, and with an index that slips after the
first filter; at a8676d35 of updates again, with two clusters always. k-means is that of `kmeans.py` (there, k-means++),
and the gap statistic that of `points.py`, of squared distances in one unit, where that code adds up plain ones with
each component stretched to [0, 1]. A cluster of one has no mutual cosine and is kept only if there are no others, and
then all of them are. A sum of distances at its bound passes (there, it does not). BatchNorm statistics are averaged
over the accepted clients, counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, uniform
from flame.defenses.kmeans import optimum
from flame.defenses.points import distances, embed, gap_clusters
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class RFLBAT:
    """The mean of the least uniform cluster."""

    first_filter: float  # eps_1, >= 1, multiple of the median sum of distances
    second_filter: float  # eps_2, >= 1, likewise within the cluster
    most_clusters: int  # K_max of the gap statistic, >= 1
    references: int  # B, >= 1, uniform samples that the gap statistic compares with

    def __post_init__(self) -> None:
        for key in ("first_filter", "second_filter"):
            if not 1 <= getattr(self, key) < math.inf:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be >= 1, times the median")
        for key in ("most_clusters", "references"):
            if getattr(self, key) < 1:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be a whole number >= 1")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        points = embed(updates.geometry.scope("weights_only").gram)[:, :2]
        cosines = 1 - updates.geometry.cosine_distances("weights_only", of="update")
        accepted = central(points, torch.ones(len(points), dtype=torch.bool), self.first_filter)
        k = gap_clusters(points[accepted], self.most_clusters, self.references, stream)
        members = torch.zeros(len(points), k, dtype=torch.float64)
        members[accepted] = optimum(points[accepted], k)
        accepted = central(points, least_alike(members.bool(), cosines), self.second_filter)
        shares, info = uniform(accepted), {"rflbat/clusters": float(k)}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)


def central(points: Tensor, among: Tensor, factor: float) -> Tensor:
    """[n] bool, those `among` [n] whose distances to the others add up to at most `factor` times the median sum."""
    kept = among.clone()
    sums = distances(points[among]).sum(dim=1)
    kept[among] = sums <= factor * sums.quantile(0.5)
    return kept


def least_alike(members: Tensor, cosines: Tensor) -> Tensor:
    """[n] bool, the column of `members` [n, k] bool with the lowest median of mean mutual `cosines` [n, n]."""
    several = members[:, members.sum(dim=0) > 1]
    if not several.shape[1]:
        return members.any(dim=1)
    likeness = [cosines[own][:, own].mean(dim=1).quantile(0.5) for own in several.T]
    return several[:, int(torch.stack(likeness).argmin())]
