"""CAF, the covariance-bound agnostic filter (Allouah, Guerraoui and Stephan, "Towards Trustworthy Federated Learning
with Untrusted Participants", ICML 2025), as ByzFL has it (LPD-EPFL/byzfl 69bd1ac, byzfl/aggregators/aggregators.py).

Every client starts with weight c_i = 1. While the weights add up to more than n - 2f, the weighted mean and the
direction v of largest weighted variance are found, and each weight falls by the client's own part in it:
c_i <- c_i (1 - t_i / max_j t_j), t_i = <x_i - mean, v>^2. Of all means that were passed, the one with the smallest
largest variance is the answer.

Every mean is a weighted sum of the updates, so that all of this happens in their n x n Gram matrix.

Deviations and open points: v is exact, where ByzFL takes one step of the power method from a random vector, so that its
answer is another one in each call. The maximum of t is over clients that have a weight left. ByzFL's is over all, and
one far client, once it has weight 0, keeps the others' weights where they are: its loop then has no end. With f = 0 the
answer is the mean (ByzFL: None). f is a share of the round's clients, at most (n - 1) // 2. Variances are those of the
trainable parameters; BatchNorm statistics get the same weights, counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, check_minority, minority
from flame.round.types import ServerState, Updates, Verdict

ROUNDING = 1e-12  # of the mean squared length of an update: a variance below that is none


@dataclass(frozen=True)
class CAF:
    """The weighted mean around which updates spread least."""

    malicious_share: float  # f / n that is assumed, [0, 0.5)

    def __post_init__(self) -> None:
        check_minority(self.malicious_share)

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Weights in proportion to c."""
        n = len(updates)
        f = minority(self.malicious_share, n)
        shares, variance = filtered(updates.geometry.scope("weights_only").gram, n - 2 * f)
        info = {"caf/f": float(f), "caf/largest_variance": variance}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)


def filtered(gram: Tensor, least: float) -> tuple[Tensor, float]:
    """[n] float64 weights adding up to 1, from inner products [n, n], and the largest variance around their mean.

    The filter goes on while more than `least` of the weight that all had is left.
    """
    c = gram.new_ones(len(gram))
    best, smallest = c / len(c), float("inf")
    while c.sum() > least:
        variance, squares = along_main_direction(gram, c)
        if variance < smallest:
            best, smallest = c / c.sum(), variance
        most = squares[c > 0].max()
        if variance <= ROUNDING * float(gram.diagonal()[c > 0].mean()):  # all are in one place
            break
        c = c * (1 - squares / most).clamp_min(0)
    return best, smallest if smallest < float("inf") else along_main_direction(gram, c)[0]


def along_main_direction(gram: Tensor, c: Tensor) -> tuple[float, Tensor]:
    """The largest variance under weights c [n], and [n] squared distances from the weighted mean along its direction.

    With K the Gram matrix [n, n] centred on the weighted mean and C = diag(c), the eigenvectors u of sqrt(C) K sqrt(C)
    give the directions sum_i sqrt(c_i) u_i (x_i - mean), and K sqrt(C) u the inner products with one of them.
    """
    shares, root = c / c.sum(), c.sqrt()
    cross = gram @ shares
    centred = gram - cross[:, None] - cross + shares @ cross
    values, vectors = torch.linalg.eigh(root[:, None] * centred * root)
    value = values[-1].clamp_min(0)
    projections = centred @ (root * vectors[:, -1])
    squares = projections.square() / value.clamp_min(torch.finfo(gram.dtype).tiny)
    return float(value / c.sum()), squares
