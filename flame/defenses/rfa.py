"""RFA: the geometric median (Pillutla et al., IEEE Transactions on Signal Processing 2022, algorithm 2).

Smoothed Weiszfeld steps, R of them: beta_i = alpha_i / max(nu, ||v - U_i||), then v = sum beta_i U_i / sum beta_i. As v
is always a weighted sum of the updates, each distance follows from the Gram matrix and the rows are read once, at the
end.

Deviations and open points: v starts at the global model (an update of zero); from the mean, one huge update would
still lead after three steps; the steps are R, never fewer (the authors' code: from the weighted mean, four or five at
most, an end where the objective hardly changes). alpha_i = 1/n as in FLAME, not by the sample counts that clients
claim. Distances are those of the trainable parameters; BatchNorm statistics get the same weights, counters stay the
server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from flame.defenses.base import average
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class RFA:
    """The approximate geometric median of all updates."""

    iterations: int  # R, >= 1
    smoothing: float  # nu, > 0, the least distance that counts

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"defense.iterations={self.iterations} is out of range: must be >= 1 (the paper: 3)")
        if not 0 < self.smoothing < math.inf:
            raise ValueError(f"defense.smoothing={self.smoothing} is out of range: must be > 0 (the paper: 1e-6)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Nobody is rejected; far updates weigh less."""
        gram = updates.geometry.scope("weights_only").gram
        shares = weiszfeld(gram, self.iterations, self.smoothing)
        info = {"rfa/largest_weight": float(shares.max())}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)


def weiszfeld(gram: Tensor, iterations: int, smoothing: float) -> Tensor:
    """[n] float64 weights adding up to 1 of the smoothed geometric median, from inner products [n, n]."""
    own = gram.diagonal()
    shares = gram.new_zeros(len(gram))
    for _ in range(iterations):
        cross = gram @ shares  # <U_i, v>
        squares = own - 2 * cross + shares @ cross  # ||U_i - v||^2
        closeness = 1 / squares.clamp_min(0).sqrt().clamp_min(smoothing)
        shares = closeness / closeness.sum()
    return shares
