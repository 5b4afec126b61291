"""BNGuard (Xu, Zhang and Hu, "On the Out-of-Distribution Backdoor Attack for Federated Learning", 2025, arXiv
2509.13219): clients whose BatchNorm statistics stand apart are rejected.

Four numbers describe a client: mean and variance over the channels of the first BatchNorm layer's running mean and of
its running variance. k-means splits the clients in two by them, and the larger cluster is averaged.

Deviations and open points: written after the authors' code (JiiahaoXU/SoDa-BNGuard, src/aggregation.py at 12690d38),
where the four numbers enter as they are. k-means is the optimum of `kmeans.py` (there, scikit-learn's default, one or
ten random starts by its version). Two clusters of one size accept everyone (there, the one that is numbered first). The
variance over the channels is the population's (there, the sample's). Uniform mean (there, by sample counts). Counters
stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, uniform
from flame.defenses.kmeans import optimum
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class BNGuard:
    """The mean of the clients with the usual BatchNorm statistics."""

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally.

        Raises:
            ValueError: the model has no BatchNorm statistics.
        """
        points = first_statistics(updates)
        members = optimum(points, 2)  # [n, 2]
        sizes = members.sum(dim=0)
        shares = uniform((members @ (sizes == sizes.max()).double()).bool())
        return Verdict(replace(state, row=average(state, updates, shares)), shares)


def first_statistics(updates: Updates) -> Tensor:
    """[n, 4] float64, mean and variance over channels of each client's first running_var and first running_mean."""
    features = []
    for block in ("running_var", "running_mean"):
        first = next((e for e in updates.layout.entries if e.block == block), None)
        if first is None:
            raise ValueError(
                "defense=bnguard reads BatchNorm statistics, and this model has none: take a model that has"
                " them (model.norm=batch, where there is that key), or another defense"
            )
        span = slice(first.start, first.stop)
        values = (updates.base[span] + updates.rows[:, span]).double()  # [n, channels]
        features += [values.mean(dim=1), values.var(dim=1, correction=0)]
    return torch.stack(features, dim=1)
