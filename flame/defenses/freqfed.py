"""FreqFed (Fereidooni, Pegoraro, Rieger, Dmitrienko and Sadeghi, NDSS 2024): compare local models by low frequencies.

Each local model goes through a discrete cosine transform, the low-frequency half is kept, and HDBSCAN on the pairwise
cosine distances of these halves names the majority, which is averaged.

Deviations and open points: no code of the authors is known to us, and public re-implementations differ. The transform
is one DCT-II over the flat vector of trainable parameters, in the row's order (there, also of the last layer, `scope:
head`, or tensor by tensor); it is of local models (there, of updates; the abstract's "model updates (i.e., weights)"
can be read as either). As it is linear, the distances come from the transformed updates and the transformed global
model, in the stable form of `flame/geometry/products.py`. min_cluster_size, min_samples and allow_single_cluster are
FLAME's, by the same group, with which there is always a largest cluster; they are not traced to the paper (there, the
library's defaults, or clusters from two clients on). Uniform mean. BatchNorm statistics are averaged over the accepted
clients, counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.fft import dct
from torch import Generator, Tensor

from flame.defenses.base import average, check_choice, uniform
from flame.defenses.steps.vector import Cluster
from flame.geometry.products import Products
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class FreqFed:
    """The mean of the majority in the frequency domain."""

    scope: str  # weights_only | head: what is transformed
    low: float  # share of the frequencies that is kept, from the lowest on, (0, 1]; 1 is FLAME's distance
    cluster: Cluster

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, ("weights_only", "head"))
        if not 0 < self.low <= 1:
            raise ValueError(f"defense.low={self.low} is out of range: must be in (0, 1], a share of the frequencies")

    def check_clients(self, clients: int) -> None:
        """See `Cluster.check_clients`."""
        self.cluster.check_clients(clients)

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        span = updates.layout.span(self.scope)
        low = Products.measure(frequencies(updates.base[span], self.low), frequencies(updates.rows[:, span], self.low))
        shares = uniform(self.cluster.accept(low.cosine_distances()))
        return Verdict(replace(state, row=average(state, updates, shares)), shares)


def frequencies(rows: Tensor, low: float) -> Tensor:
    """[..., k], the lowest share `low` (at least one) of the orthonormal DCT-II of `rows` [..., d]."""
    spectrum = dct(rows.numpy(), norm="ortho")
    return torch.from_numpy(spectrum)[..., : max(1, round(low * rows.shape[-1]))]
