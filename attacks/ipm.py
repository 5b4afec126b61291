"""Inner product manipulation (Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
Manipulation", UAI 2019): all colluders send -epsilon times the mean benign update, so that the aggregate's inner
product with the true one becomes negative. A plain mean is turned around by epsilon > (n - m) / m, while a small
epsilon is what robust rules fail to see.

Deviations: the mean is that of the colluders' own benign updates, not of all benign clients (which the paper grants).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from attacks.base import Scene, require
from attacks.crafting import Crafting


@dataclass(frozen=True)
class IPM(Crafting):
    """The mean, turned around."""

    epsilon: float  # > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epsilon > 0, "epsilon", self.epsilon, "> 0")

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """-epsilon * mean for all."""
        return -self.epsilon * own.mean(0)
