"""Step 1 and 2: the clustering vector, pairwise distances, HDBSCAN.

1 - cos of federated models is 1e-2 to 1e-6, and float32 resolves cos near 1 to 6e-8. Below about 1e-4 the rounding
decides who is accepted, and with it the order of coordinates and the formula. So each float32 variant is computed as
public code does, client by client in state_dict order; Algorithm 1 uses the stable float64 form of
`flame/geometry/products.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flame.defenses.base import check_choice
from flame.geometry.clustering import majority_cluster
from flame.geometry.layout import SCOPES, scope_blocks
from flame.round.types import Updates


@dataclass(frozen=True)
class Vector:
    """What of a client is compared, and in which arithmetic."""

    scope: str  # which blocks: weights_only | all_state | full_state | head
    of: str  # model: W, the local model | rebuilt: G + (W - G), W but for the last bit | update: W - G
    arithmetic: str  # stable: float64 from inner products of the updates | pairs | product | numpy: see LITERAL

    def __post_init__(self) -> None:
        check_choice("vector.scope", self.scope, tuple(SCOPES))
        check_choice("vector.of", self.of, tuple(SOURCES))
        check_choice("vector.arithmetic", self.arithmetic, ("stable", *LITERAL))

    def distances(self, updates: Updates) -> Tensor:
        """[n, n] float64, pairwise cosine distances."""
        if self.arithmetic == "stable":
            return updates.geometry.cosine_distances(self.scope, "update" if self.of == "update" else "model")
        return LITERAL[self.arithmetic](self.pieces(updates)).double()

    def pieces(self, updates: Updates) -> list[list[Tensor]]:
        """Each client's tensors in state_dict order, flat; counters are integers still."""
        blocks, layout = scope_blocks(self.scope), updates.layout
        keys = {e.key for e in (*layout.entries, *layout.counters) if e.block in blocks}
        counters = updates.counters - updates.base_counters if self.of == "update" else updates.counters
        states = (layout.unflatten(*pair) for pair in zip(SOURCES[self.of](updates), counters, strict=True))
        return [[value.flatten() for key, value in state.items() if key in keys] for state in states]


SOURCES: Mapping[str, Callable[[Updates], Tensor]] = {
    "model": lambda updates: updates.models,
    "rebuilt": lambda updates: updates.base + updates.rows,
    "update": lambda updates: updates.rows,
}


def _pairs(clients: Sequence[Sequence[Tensor]]) -> Tensor:
    """1 - cos_ij in float32, one pair after the other; the diagonal too, where rounding can leave +-6e-8."""
    vectors = [torch.cat(list(pieces)) for pieces in clients]  # promotes counters to float32
    table = torch.empty(len(vectors), len(vectors))
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors[: i + 1]):
            table[i, j] = table[j, i] = 1 - F.cosine_similarity(a, b, dim=0, eps=1e-6)
    return table


def _product(clients: Sequence[Sequence[Tensor]]) -> Tensor:
    """1 - cos_ij by one float32 matrix product of unit rows, clamped at 0; the diagonal can be 6e-8."""
    models = torch.stack([torch.cat(list(pieces)) for pieces in clients])  # [n, d]
    unit = models / models.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return (1 - (unit @ unit.T).clamp(-1, 1)).clamp(min=0)


def _numpy(clients: Sequence[Sequence[Tensor]]) -> Tensor:
    """scikit-learn's on numpy's concatenation: in float32, but in float64 as soon as integer counters are in it."""
    from sklearn.metrics.pairwise import cosine_distances

    models = np.stack([np.concatenate([piece.numpy() for piece in pieces]) for pieces in clients])
    return torch.from_numpy(cosine_distances(models))


LITERAL: Mapping[str, Callable[[Sequence[Sequence[Tensor]]], Tensor]] = {
    "pairs": _pairs,
    "product": _product,
    "numpy": _numpy,
}


@dataclass(frozen=True)
class Cluster:
    """HDBSCAN on the distances."""

    min_cluster_size: int | None  # None: n//2 + 1 | 0: no clustering, everyone is accepted
    min_samples: int | None  # 1 in near-universal use | None: HDBSCAN's default, which is min_cluster_size
    metric: str  # precomputed: the distances themselves | euclidean: between the rows of the distance table

    def __post_init__(self) -> None:
        check_choice("cluster.metric", self.metric, ("precomputed", "euclidean"))
        if (size := self.min_cluster_size) is not None and size != 0 and size < 2:
            limits = "must be null (n//2 + 1), 0 (no clustering) or >= 2"
            raise ValueError(f"defense.cluster.min_cluster_size={size} is out of range: {limits}")
        if self.min_samples is not None and self.min_samples < 1:
            raise ValueError(f"defense.cluster.min_samples={self.min_samples} is out of range: must be null or >= 1")

    def check_clients(self, clients: int) -> None:
        """A ValueError if no cluster of a round can be so large."""
        if (size := self.min_cluster_size) is not None and size > clients:
            raise ValueError(
                f"defense.cluster.min_cluster_size={size} is out of range: must be at most {clients}, the"
                " updates of a round, null (n//2 + 1) or 0 (no clustering); without a cluster everyone is accepted"
            )

    def accept(self, distances: Tensor) -> Tensor:
        """[n] bool, the majority cluster of [n, n] distances."""
        if self.min_cluster_size == 0:
            return torch.ones(len(distances), dtype=torch.bool)
        rows = self.metric == "euclidean"
        return majority_cluster(distances, self.min_cluster_size, self.min_samples, rows).accepted
