"""Sign flipping (Li, Xu, Chen, Giannakis and Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods", AAAI 2019):
each compromised client sends its benign update times a negative factor. Nobody needs to collude.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from attacks.base import Scene, require
from attacks.crafting import Crafting


@dataclass(frozen=True)
class SignFlip(Crafting):
    """The own update, turned around."""

    factor: float  # > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.factor > 0, "factor", self.factor, "> 0")

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """-factor times each own update."""
        return -self.factor * own
