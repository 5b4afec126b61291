"""Model replacement (Bagdasaryan, Veit, Hua, Estrin and Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020,
arXiv 1807.00459): the backdoored update is scaled so that it replaces the average. With a norm bound it is the paper's
train-and-scale.

Deviations: gamma defaults to n / m (the authors' code, too, divides the factor among the attackers of a round) instead
of an estimate of n / eta, and each of the m sends its own update, where there one sends all and the others nothing; the
backdoor is an inner attack, a trigger by default, which trains at the authors' ratio to benign clients in epochs and
rate (`retrained_badnets`, `semantic`). Their epoch is 200 batches of 64 images, 3,000 steps beside 16; here it is a
pass over the client's own shard. They lower the rate to a fiftieth and further where the global model already has the
backdoor, and stop early; we do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Generator, Tensor

from attacks.around import Around
from attacks.base import Crafted, Scene
from attacks.scaling import Scaling


@dataclass(frozen=True)
class ModelReplacement(Around):
    """Train as the inner attack, then scale."""

    scaling: Scaling

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """What the inner attack would send, scaled."""
        crafted = super().craft(rows, scene, stream)
        return replace(crafted, rows=self.scaling.apply(crafted.rows, scene))
