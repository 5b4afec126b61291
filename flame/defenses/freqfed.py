"""FreqFed (Fereidooni, Pegoraro, Rieger, Dmitrienko and Sadeghi, NDSS 2024): compare local models by low frequencies.

Each local model is laid out as a square and goes through a two-dimensional discrete cosine transform. Its low
frequencies, the coefficients (i, j) with i + j <= side / 2, are kept: a triangle, an eighth of all. HDBSCAN on the
pairwise cosine distances of what is kept names the majority, which is averaged.

Deviations and open points: no code of the authors is known to us, and the paper's sections could not be checked.
Transform and triangle are what public re-implementations agree on where they quote the paper: SecretFlow's
(examples/security/h_bd/agg_freqfed.py at 76f50d70), which transforms the weight matrix of the last layer as it is, and
others, which lay the whole model out as a square. Here it is the trainable parameters in the row's order, the square
filled up with 0, or with `scope: head` the last layer's, bias included. Other re-implementations transform the flat
vector in one dimension. Some are of local models, as here, some of updates; the abstract's "model updates (i.e.,
weights)" can be read as either. As the transform is linear, the distances come from the transformed updates and the
transformed global model, in the stable form of `flame/geometry/products.py`. min_cluster_size, min_samples and
allow_single_cluster are FLAME's, by the same group, with which there is always a largest cluster; they are not traced
to the paper (SecretFlow: clusters from two clients on). Uniform mean. BatchNorm statistics are averaged over the
accepted clients, counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Generator, Tensor

from flame.defenses.base import average, check_choice, uniform
from flame.defenses.steps.vector import Cluster
from flame.geometry.products import Products
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class FreqFed:
    """The mean of the majority in the frequency domain."""

    scope: str  # weights_only | head: what is transformed
    low: float  # i + j of what is kept, as a share of the side, (0, 2]; 2 keeps everything and is FLAME's distance
    cluster: Cluster

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, ("weights_only", "head"))
        if not 0 < self.low <= 2:
            raise ValueError(f"defense.low={self.low} is out of range: must be in (0, 2], a share of the square's side")

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
    """[..., k], what is kept of the orthonormal two-dimensional DCT-II of `rows` [..., d], line by line in a square."""
    side = math.isqrt(rows.shape[-1] - 1) + 1
    square = F.pad(rows, (0, side * side - rows.shape[-1])).unflatten(-1, (side, side))
    spectrum = torch.from_numpy(dctn(square.numpy(), axes=(-2, -1), norm="ortho"))
    place = torch.arange(side)
    return spectrum[..., place[:, None] + place <= low * side]
