"""RFA: the geometric median (Pillutla et al., IEEE Transactions on Signal Processing 2022, algorithm 2).

Smoothed Weiszfeld steps from the mean: beta_i = alpha_i / max(nu, ||v - U_i||), then v = sum beta_i U_i / sum beta_i.
As v is always a weighted mean of the updates, each distance follows from the Gram matrix and the rows are read once, at
the end.

A client's weight is how near it lies to the median, beside the others. An update of length 0 is as near as the median
is short: beside n - 1 updates of one length at right angles its weight is 1 / sqrt(n) (at n = 10: 0.316, where its own
update at full length has 0.1), less where these resemble one another. Where the others cancel in pairs it has all of
it. This is the geometric median itself, whose pull is a unit vector for every client, not an error of the steps.

Deviations and open points: the steps go on until the unit vectors from v to the updates cancel out, to MOST_PULL of
their number. The authors' code (krishnap25/RFA, models/model.py at 40945d27) starts at the weighted mean, too, and ends
after four steps, or where the sum of distances changes by less than 1e-6; its scripts set two, the paper has R = 3. In
ordinary rounds that is nearly the same (0.02 per cent of the length apart in the recorded round of the tests), but of
one huge update four steps leave 1 / (n - 1)^5. alpha_i = 1/n as in FLAME, not by the sample counts that clients claim.
Distances are those of the trainable parameters; BatchNorm statistics get the same weights, counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from flame.defenses.base import average
from flame.round.types import ServerState, Updates, Verdict

MOST_PULL = 1e-6  # of all clients', in which the steps end
ROUNDING = 1e-6  # of the median distance: less is no distance, or an update at a far mean would hold v there


@dataclass(frozen=True)
class RFA:
    """The geometric median of all updates."""

    iterations: int  # R, >= 1, most steps
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
    own, n = gram.diagonal(), len(gram)
    shares = gram.new_full((n,), 1 / n)
    for _ in range(iterations):
        cross = gram @ shares  # <U_i, v>
        squares = own - 2 * cross + shares @ cross  # ||U_i - v||^2, as the shares add up to 1
        distances = squares.clamp_min(0).sqrt()
        closeness = 1 / distances.clamp_min(max(smoothing, ROUNDING * float(distances.median())))
        step = closeness / closeness.sum() - shares
        shares = shares + step
        moved = (step @ gram @ step).clamp_min(0).sqrt()
        if closeness.sum() * moved <= MOST_PULL * n:  # the sum of (U_i - v) / ||U_i - v||
            break
    return shares
