"""What each clustering vector would have accepted on the very same updates, and which block drives the distances.

Read-only observers of a round: they run whatever the defense is, on inner products that were computed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from flame.geometry.clustering import Clustering, majority_cluster
from flame.geometry.products import squared_distances
from flame.round.types import Updates


def shadow_verdicts(updates: Updates, scopes: Sequence[str]) -> Mapping[str, Clustering]:
    """Algorithm 1's acceptance for each scope; unusable updates are rejected with the largest outlier score."""
    usable, _ = updates.guarded
    geometry, verdicts = updates.geometry.select(usable), {}
    for scope in scopes:
        accepted, scores = torch.zeros(len(updates), dtype=torch.bool), torch.ones(len(updates), dtype=torch.float64)
        if bool(usable.any()):
            found = majority_cluster(geometry.cosine_distances(scope))
            accepted[usable], scores[usable] = found.accepted, found.outlier_scores
        verdicts[scope] = Clustering(accepted, scores)
    return verdicts


def xray(updates: Updates) -> dict[str, float]:
    """Each float block's share of the mean squared norm and of the summed pairwise squared distance, in [0, 1]."""
    usable, _ = updates.guarded
    blocks = updates.geometry.select(usable).blocks
    norm = {b: float(blocks[b].gram.diagonal().sum()) for b in updates.layout.spans}
    spread = {b: float(squared_distances(blocks[b].gram).sum()) for b in updates.layout.spans}
    return {
        f"xray/{b}/{name}": values[b] / total
        for name, values in (("norm_share", norm), ("distance_share", spread))
        if (total := sum(values.values())) > 0
        for b in values
    }
