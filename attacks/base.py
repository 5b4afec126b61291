"""The hooks through which an attack acts; every one of them does nothing here.

An attack never sees the defense, the benign clients' data or their updates unless its threat model says so (then its
module head says so too). The server never sees an attack: what a compromised client sends looks like any update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from flame.data.samples import Dataset, LabelledImages
from flame.geometry.layout import StateLayout
from flame.round.client import LocalJob
from flame.round.types import Notes, ServerState


@dataclass(frozen=True)
class Scene:
    """What colluding clients know of a round beside their own updates."""

    state: ServerState  # the global model they were sent, and the attack's memory
    layout: StateLayout
    clients: int  # n, of which m are theirs
    notes: Sequence[Notes] = ()  # [m], what each of them put into `job.notes` while it trained


@dataclass(frozen=True)
class Crafted:
    """What the compromised clients of a round send, and what the attack remembers."""

    rows: Tensor  # [m, d + b] float32, differences to the global model
    memory: Mapping[str, Tensor]  # keys "attack/<name>", merged into the server state's memory


class Attack:
    """A benign client in compromised clothing: an attack overrides the hooks it needs."""

    hostile = True  # False: nobody counts as compromised
    own_training = False  # True: `craft` reads what `train` has noted, so that nothing else may train in its place

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Once, before the data is dealt out: the attack with the images it needs, the data set without those."""
        return self, dataset

    def poison(self, images: LabelledImages, stream: Generator) -> LabelledImages:
        """The training data of one compromised client, made from its own shard."""
        return images

    def compromise(self, job: LocalJob) -> LocalJob:
        """The job as a compromised client does it: on poisoned images, perhaps for more epochs."""
        return replace(job, images=self.poison(job.images, job.stream("poison")))

    def train(self, job: LocalJob) -> float:
        """Turn the global model in `job.model` into the local one; the training loss is returned."""
        job = self.compromise(job)
        return job.fit(job.images)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Rework the trained updates [m, d + b] of all compromised clients of a round together (they may collude)."""
        return Crafted(rows, {})

    def report(self, losses: Tensor) -> Tensor:
        """What compromised clients say when a defense lets the round's clients judge models (`Lab.class_losses`).

        Their own losses [m, k, classes] of k models, all of them at once, so that they can lie together: the truth
        here, and in every attack of the project. The first model is usually the global one.
        """
        return losses

    def stamp(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] uint8 with the whole trigger on them; a copy."""
        return x.clone()

    def target(self, y: Tensor) -> Tensor:
        """The label [N] that the attacker wants for each image once it is triggered; `y` itself where none."""
        return y

    def backdoor_set(self, test: LabelledImages) -> LabelledImages | None:
        """The triggered test set with the attacker's labels, true members of the target class left out.

        None when the attack has no backdoor, so that backdoor accuracy is not a number that means something.
        """
        wanted = self.target(test.y)
        hit = wanted != test.y
        return LabelledImages(self.stamp(test.x[hit]), wanted[hit]) if bool(hit.any()) else None

    def backdoor_classes(self, test: LabelledImages) -> Tensor:
        """The true classes [N] of the images of `backdoor_set`, in their order, where there is such a set."""
        return test.y[self.target(test.y) != test.y]

    def restamp(self, x: Tensor, memory: Notes) -> Tensor | None:
        """The backdoor set's images [N, C, H, W], however they were stamped before, with the trigger of this moment.

        Asked before every evaluation; None, as here, where the trigger never moves.
        """
        return None


@dataclass(frozen=True)
class Paced(Attack):
    """A poisoner of data whose clients train at their own pace: how long, at which rate, and when that falls.

    Subclasses have `epochs`: None, as benign clients; a whole number; or a share of one pass, in (0, 1).
    """

    local_lr: float | None = field(default=None, kw_only=True)  # > 0, where it starts; None: as benign ones
    lr_tenths: Sequence[float] = field(default=(), kw_only=True)  # as `LocalSGD.lr_tenths`

    def __post_init__(self) -> None:
        require(
            self.local_lr is None or self.local_lr > 0, "local_lr", self.local_lr, "null (as benign clients) or > 0"
        )
        inside = all(0 < share < 1 for share in self.lr_tenths)
        require(inside, "lr_tenths", list(self.lr_tenths), "a list of shares of the epochs, each in (0, 1)")

    @property
    def pace(self) -> dict[str, Any]:
        """Rate and schedule, for another attack that is to train alike."""
        return {"local_lr": self.local_lr, "lr_tenths": self.lr_tenths}

    def paced(self, job: LocalJob, epochs: float | None) -> LocalJob:
        """The job at the attacker's own pace.

        Below one epoch, it is one pass over that share of the shard, drawn, of two images or more (BatchNorm).
        """
        if epochs is not None and epochs < 1:
            count = max(min(2, len(job.images)), round(epochs * len(job.images)))
            part = torch.randperm(len(job.images), generator=job.stream("part"))[:count]
            job, epochs = replace(job, images=job.images[part]), 1
        whole, lr = int(epochs or job.sgd.epochs), self.local_lr or job.sgd.lr
        return replace(job, sgd=replace(job.sgd, epochs=whole, lr=lr, lr_tenths=self.lr_tenths))


def share_of(count: int, share: float, stream: Generator) -> Tensor:
    """round(share * count) positions out of `count`, drawn without replacement."""
    return torch.randperm(count, generator=stream)[: round(share * count)]


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """A ValueError that names the key, its value and what is allowed, unless the condition holds."""
    if not holds:
        raise ValueError(f"attack.{key}={value} is out of range: must be {allowed}")


def check_poisoning(rate: float, epochs: float | None) -> None:
    """The ranges that all data poisoning shares."""
    require(0 <= rate <= 1, "poisoned_data_rate", rate, "in [0, 1]")
    allowed = "null (as benign clients), a whole number >= 1 or a share of one pass in (0, 1)"
    require(epochs is None or 0 < epochs < 1 or (epochs >= 1 and epochs == int(epochs)), "epochs", epochs, allowed)


def check_class(key: str, label: int | None, dataset: Dataset) -> None:
    """A label, where one is given, is one of the data set's."""
    require(label is None or 0 <= label < dataset.classes, key, label, f"in [0, {dataset.classes - 1}]")
