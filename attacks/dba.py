"""DBA (Xie, Huang, Chen and Li, ICLR 2020): a distributed backdoor. The global trigger is cut into parts; each
compromised client trains on its own part, and the whole is what triggers the aggregated model.

The paper attacks in many rounds without scaling (A-M) or once per attacker with the update scaled by gamma (A-S).

Deviations: the part of a client is its number modulo the number of parts, fixed for the run, so that a round's
attackers, or all of a small federation, need not cover the trigger (there, attacker i has part i, and all four attack);
single shot (`attack_rounds.stop`) has all attackers in the same round, where the authors' have one each. The share of
poisoned images is that of `badnets` (there 5 of 64 images in a batch on CIFAR-10 and 20 on MNIST, from a model that has
learned). Training is theirs on CIFAR-10 (AI-secure/DBA 3cabf7e): 6 epochs to the benign 2, from half the rate, which
falls to a tenth once 0.2 and 0.8 of the epochs are over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Generator, Tensor

from attacks.badnets import BadNets
from attacks.base import Attack, Crafted, Scene, require
from attacks.scaling import Scaling
from attacks.triggers import Part, PixelTrigger
from flame.data.samples import Dataset
from flame.round.client import LocalJob


@dataclass(frozen=True)
class DBA(BadNets):
    """BadNets whose training trigger is a part of the tested one."""

    trigger: PixelTrigger
    parts: int  # >= 1; the paper: 4
    scaling: Scaling

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.parts >= 1, "parts", self.parts, "a whole number >= 1")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Check that the trigger has a pixel for each part, too."""
        self.part(0).pixels(*dataset.train.x.shape[-2:])
        return super().prepare(dataset, stream)

    def compromise(self, job: LocalJob) -> LocalJob:
        """Train on this client's part of the trigger."""
        return BadNets.compromise(replace(self, trigger=self.part(job.client)), job)

    def part(self, client: int) -> Part:
        """The local trigger of a client."""
        return Part(self.trigger, client % self.parts, self.parts)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Scaled; each attacker does so for itself."""
        return Crafted(self.scaling.apply(rows, scene), {})
