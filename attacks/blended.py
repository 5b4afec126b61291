"""The blended injection attack (Chen, Liu, Li, Lu and Song, "Targeted Backdoor Attacks on Deep Learning Systems Using
Data Poisoning", arXiv 1712.05526, 2017): x' = alpha * k + (1 - alpha) * x with a key pattern k, here the paper's random
pattern, drawn once from a seed of its own.

Poisoning and relabelling are those of `attacks/badnets.py`; only the trigger is here.
Deviations: k is uniform on 0..255 per pixel and channel, and the same alpha is used for training and testing (the paper
trains with a fainter pattern than it tests with).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import require
from flame.round.seeding import generator


@dataclass(frozen=True)
class Blend:
    """A random pattern blended over the whole image."""

    reads = "images"

    opacity: float  # alpha, in (0, 1]
    seed: int  # of the pattern, which belongs to the attack and not to the run

    def __post_init__(self) -> None:
        require(0 < self.opacity <= 1, "trigger.opacity", self.opacity, "in (0, 1]")

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        """k, [C, H, W] with whole values in 0..255, float32."""
        return torch.randint(256, (channels, height, width), generator=generator(self.seed, "pattern")).float()

    def stamp(self, x: Tensor) -> Tensor:
        """A copy of images [N, C, H, W] uint8, blended and rounded."""
        pattern = self.pattern(*x.shape[1:]).to(x.device)
        return torch.lerp(x.float(), pattern, self.opacity).round().to(torch.uint8)
