"""Min-Sum (Shejwalkar and Houmansadr, NDSS 2021): as `min_max`, but it is the sum of squared distances to all benign
updates that must not exceed the largest such sum of a benign one.

Deviations: as for `min_max`; here the largest gamma is a square root, since the deviations from the mean add up to 0.
The bound is the paper's: all sixteen notebooks of the authors that have Min-Sum (vrt1shjwlkr/NDSS21-Model-Poisoning
f2879cd) take the smallest sum; FLPoison, as here, the largest. Of two colluders both are one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from attacks.base import Scene, require_two
from attacks.collusion import check_direction, pushed
from attacks.crafting import Crafting
from flame.geometry.products import squared_distances


@dataclass(frozen=True)
class MinSum(Crafting):
    """As far off as the most distant benign update is from all others together."""

    direction: str  # of p: std (the standard deviation) | unit (minus the unit mean) | sign (minus its sign)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_direction(self.direction)

    def check_round(self, clients: int, colluders: range) -> None:
        """A ValueError for a single colluder."""
        require_two(self, clients, colluders, "has no distance to another")

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """mean + gamma * p for all."""
        return pushed(own, self.direction, largest_gamma)


def largest_gamma(centred: Tensor, p: Tensor) -> float:
    """max gamma with sum_i ||gamma p - c_i||^2 <= max_i sum_j ||c_i - c_j||^2; c [m, d] centred on the mean, p [d].

    The left side is m gamma^2 p.p + sum_i c_i.c_i.
    """
    gram, square = (centred @ centred.T).double(), float(p @ p)
    if square == 0:
        return 0.0
    room = squared_distances(gram).sum(1).max() - gram.trace()
    return float((room.clamp_min(0) / (len(centred) * square)).sqrt())
