"""A backdoor whose trigger keeps its place while its values are learned, in every round anew.

Each compromised client searches on its own data, from the values that the colluders agreed on last, and poisons with
what it found; the colluders' mean is remembered and is what the backdoor is tested with.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from attacks.badnets import BadNets
from attacks.base import Crafted, Scene
from attacks.triggers import Painted, PixelTrigger
from flame.data.samples import Samples
from flame.round.client import LocalJob
from flame.round.types import Notes


@dataclass(frozen=True)
class LearnedTrigger(BadNets):
    """BadNets; a subclass says how to search."""

    own_training = True

    trigger: PixelTrigger  # which pixels, and the values they start from
    key: ClassVar[str]  # of the values [C, k] float32, grey levels, in the attack's memory and in a client's notes

    @abstractmethod
    def search(self, job: LocalJob) -> Tensor:
        """The trigger's new values [C, k] in [0, 255]."""

    def compromise(self, job: LocalJob) -> LocalJob:
        """As BadNets, with the trigger of the moment: just found, or remembered."""
        known = job.notes if self.key in job.notes else job.memory
        return BadNets.compromise(replace(self, trigger=self.current(known, job.images.x)), job)

    def train(self, job: LocalJob) -> float:
        """Search, then train as in BadNets."""
        job.notes[self.key] = self.search(job)
        return super().train(job)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Rows as trained; the mean trigger is remembered."""
        return Crafted(rows, {self.key: torch.stack([noted[self.key] for noted in scene.notes]).mean(0)})

    def restamp(self, x: Tensor, memory: Notes) -> Tensor:
        """The trigger of the moment covers the one before."""
        return self.current(memory, x).stamp(x)

    def current(self, memory: Notes, x: Tensor) -> Painted:
        """The remembered trigger for images [N, C, H, W], or the one to start from."""
        if self.key in memory:
            return Painted(self.trigger, memory[self.key])
        values = self.trigger.pixels(*x.shape[-2:])[2]
        return Painted(self.trigger, values.float().expand(x.shape[1], -1).clone())

    def painted(self, job: LocalJob, images: Samples, values: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] with the trigger on them, a function of its values [C, k] with a gradient."""
        rows, columns, _ = self.trigger.pixels(*images.x.shape[-2:])
        black, white = (levels[0, :, rows, columns] for levels in black_and_white(job, images.x))
        x = job.normalise(images.x).clone()
        x[:, :, rows, columns] = torch.lerp(black, white, values / 255)
        return x


def black_and_white(job: LocalJob, x: Tensor) -> tuple[Tensor, Tensor]:
    """A normalised black and a white image [1, C, H, W]: normalisation is affine, they tell what any grey becomes."""
    return job.normalise(torch.zeros_like(x[:1])), job.normalise(torch.full_like(x[:1], 255))
