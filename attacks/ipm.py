"""Inner product manipulation (Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
Manipulation", UAI 2019): all colluders send -epsilon times the mean benign update, so that the aggregate's inner
product with the true one becomes negative. A plain mean is turned around by epsilon > (n - m) / m, while a small
epsilon is what robust rules fail to see.

With `search` (attack=ipm_optimal) epsilon is the factor that hurts the rule in force most, as in ByzFL's Optimal IPM:
the attacker then knows that rule and sees all honest updates, whose mean it takes (`line_search.py`).

Deviations: without a search, the mean is that of the colluders' own benign updates, not of all benign clients (which
the paper grants).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Generator, Tensor

from attacks.base import Scene, require
from attacks.crafting import Crafting
from attacks.line_search import LineSearch, honest_moments


@dataclass(frozen=True)
class IPM(Crafting):
    """The mean, turned around."""

    epsilon: float  # > 0
    search: LineSearch | None = field(default=None, kw_only=True)  # finds epsilon in its place

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epsilon > 0, "epsilon", self.epsilon, "> 0")

    @property
    def omniscient(self) -> bool:
        """With a search alone."""
        return self.search is not None

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """-epsilon * mean for all."""
        if self.search is not None:
            columns = self.columns(scene)
            mean, _ = honest_moments(scene, columns)
            return -self.search.factor(lambda factor: -factor * mean, scene, columns, stream) * mean
        return -self.epsilon * own.mean(0)
