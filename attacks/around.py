"""An attack around another one: the inner attack chooses the data, the outer one how to train on it or what to send.

So every way to poison (a trigger, an edge case, a flipped label) goes with every way to disguise the update:
`attack=pgd attack@attack.backdoor=edge_case`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Generator, Tensor

from attacks.base import Attack, Crafted, Scene
from flame.data.samples import Dataset, Samples
from flame.round.client import LocalJob
from flame.round.types import Notes


@dataclass(frozen=True)
class Around(Attack):
    """Every hook is the inner attack's, until a subclass overrides it."""

    backdoor: Attack

    inner_trains = True  # False: the outer attack trains, or tests, on the inner one's images by itself

    @property
    def omniscient(self) -> bool:
        """As the inner attack."""
        return self.backdoor.omniscient

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The inner attack is prepared.

        Raises:
            ValueError: it is no attack, or learns in a training that the outer one replaces.
        """
        if not self.backdoor.hostile:
            inner, outer = type(self.backdoor).__name__, type(self).__name__
            raise ValueError(
                f"attack.backdoor={inner} attacks nobody, and nor would {outer} around it: must be a way to poison"
                " data, such as badnets or dba; or say attack=none"
            )
        if self.backdoor.own_training and not self.inner_trains:
            inner, outer = type(self.backdoor).__name__, type(self).__name__
            raise ValueError(
                f"attack.backdoor={inner} trains in its own way, and so does {outer} in its place: must be a way to"
                f" poison data, such as badnets or dba; model_replacement and flame_aware go around {inner}"
            )
        backdoor, rest = self.backdoor.prepare(dataset, stream)
        return replace(self, backdoor=backdoor), rest

    def check_round(self, clients: int, colluders: range) -> None:
        """As the inner attack."""
        self.backdoor.check_round(clients, colluders)

    def poison(self, images: Samples, stream: Generator) -> Samples:
        """As the inner attack."""
        return self.backdoor.poison(images, stream)

    def compromise(self, job: LocalJob) -> LocalJob:
        """As the inner attack."""
        return self.backdoor.compromise(job)

    def train(self, job: LocalJob) -> float:
        """As the inner attack."""
        return self.backdoor.train(job)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """As the inner attack."""
        return self.backdoor.craft(rows, scene, stream)

    def idle(self, sent: Tensor, rows: Tensor, scene: Scene) -> Tensor:
        """As the inner attack."""
        return self.backdoor.idle(sent, rows, scene)

    def report(self, losses: Tensor) -> Tensor:
        """As the inner attack."""
        return self.backdoor.report(losses)

    def stamp(self, x: Tensor) -> Tensor:
        """As the inner attack."""
        return self.backdoor.stamp(x)

    def target(self, y: Tensor) -> Tensor:
        """As the inner attack."""
        return self.backdoor.target(y)

    def aims(self, samples: Samples) -> Tensor:
        """As the inner attack."""
        return self.backdoor.aims(samples)

    def examined(self, test: Samples) -> Samples:
        """As the inner attack."""
        return self.backdoor.examined(test)

    def rehearsal(self, held: Samples, share: float, stream: Generator) -> tuple[Attack, Samples | None]:
        """As the inner attack."""
        backdoor, exam = self.backdoor.rehearsal(held, share, stream)
        return replace(self, backdoor=backdoor), exam

    def backdoor_set(self, images: Samples) -> Samples | None:
        """As the inner attack."""
        return self.backdoor.backdoor_set(images)

    def restamp(self, x: Tensor, memory: Notes) -> Tensor | None:
        """As the inner attack."""
        return self.backdoor.restamp(x, memory)
