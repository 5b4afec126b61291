"""HDBSCAN as FLAME uses it, one majority cluster and everything else noise; and as others do, with labels.

With min_cluster_size = n//2 + 1 at most one cluster can exist. Its members are the smallest single-linkage node with a
majority of the clients, most often exactly n//2 + 1 of them, attack or not: see `filter/floor` in
`flame/round/score.py`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from hdbscan import HDBSCAN  # more than a second, so never in the first round; workers do without this module
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clustering:
    """Who stands with the majority."""

    accepted: Tensor  # [n] bool
    outlier_scores: Tensor  # [n] float64 in [0, 1], GLOSH: larger is further out (Campello et al., TKDD 2015)


def majority_cluster(
    distances: Tensor, min_cluster_size: int | None = None, min_samples: int | None = 1, rows: bool = False
) -> Clustering:
    """The largest HDBSCAN cluster under `distances` [n, n] float64.

    min_cluster_size None means n//2 + 1; min_samples None means HDBSCAN's default, which is min_cluster_size. With
    `rows`, clients are compared by the Euclidean distance between their rows of the matrix, as some public code does.

    n = 1 and n = 2 have no majority to speak of: everyone is accepted. So is everyone when no cluster is found, which
    with finite distances does not happen (allow_single_cluster).
    """
    n = len(distances)
    everyone = Clustering(torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.float64))
    if n <= 2:
        return everyone
    found = HDBSCAN(
        metric="euclidean" if rows else "precomputed",
        min_cluster_size=n // 2 + 1 if min_cluster_size is None else min_cluster_size,
        min_samples=min_samples,
        allow_single_cluster=True,
    ).fit(distances.double().numpy())
    scores = torch.from_numpy(np.nan_to_num(found.outlier_scores_))
    labels = torch.from_numpy(found.labels_.astype(np.int64))
    if labels.max() < 0:
        log.warning("no cluster among %d clients: everyone is accepted; is cluster.min_cluster_size too large?", n)
        return Clustering(everyone.accepted, scores)
    return Clustering(labels == labels[labels >= 0].bincount().argmax(), scores)


def cluster_labels(distances: Tensor, min_cluster_size: int, min_samples: int, single: bool) -> Tensor:
    """[n] int64, the HDBSCAN cluster of each client under `distances` [n, n] float64, -1 outside of all.

    Without `single` a cluster of everyone does not count. A round of fewer clients than a cluster has none.
    """
    if len(distances) < max(3, min_cluster_size):
        return torch.full((len(distances),), -1)
    found = HDBSCAN(
        metric="precomputed",
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        allow_single_cluster=single,
    ).fit(distances.double().numpy())
    return torch.from_numpy(found.labels_.astype(np.int64))
