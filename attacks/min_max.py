"""Min-Max (Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", NDSS 2021): all colluders send mean + gamma * p with the largest gamma for which the crafted update
is no further from any benign one than two benign ones are from each other.

Agnostic to the defense; the benign updates are the colluders' own (the paper's case of unknown benign gradients).
Deviations: the constraint is a quadratic in gamma for each benign update, so the largest gamma is computed, where the
paper's algorithm 1 searches for it; the std is the population's, and added: the authors subtract from gradients, which
is this in updates.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from attacks.base import Scene, require_two
from attacks.collusion import check_direction, pushed
from attacks.crafting import Crafting
from flame.geometry.products import squared_distances


@dataclass(frozen=True)
class MinMax(Crafting):
    """As far off as the two most distant benign updates allow."""

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
    """max gamma with ||gamma p - c_i||^2 <= max_jk ||c_j - c_k||^2 for all i; c [m, d] centred on the mean, p [d].

    gamma^2 p.p - 2 gamma c_i.p + c_i.c_i - D^2 <= 0 holds up to its larger root; the smallest of those counts.
    """
    gram, along, square = (centred @ centred.T).double(), (centred @ p).double(), float(p @ p)
    if square == 0:
        return 0.0
    room = (squared_distances(gram).max() - gram.diagonal()).clamp_min(0)  # [m], D^2 - c_i.c_i
    return float(((along + (along.square() + square * room).sqrt()) / square).min())
