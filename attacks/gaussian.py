"""Gaussian noise in place of an update (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent", NeurIPS 2017, experiments): each compromised client sends N(0, std^2) in every coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Scene, require
from attacks.crafting import Crafting


@dataclass(frozen=True)
class Gaussian(Crafting):
    """Noise, a draw of its own for each client."""

    std: float  # in units of a weight, >= 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.std >= 0, "std", self.std, ">= 0")

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """N(0, std^2), independent over clients and coordinates."""
        return self.std * torch.randn(own.shape, generator=stream)
