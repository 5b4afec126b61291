"""The hooks through which an attack acts; every one of them does nothing here.

An attack never sees the defense, the benign clients' data or their updates unless its threat model says so (then its
module head says so too). The server never sees an attack: what a compromised client sends looks like any update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from attacks.differences import changed, differing, relabelled, same_rows
from flame.data.samples import UNASKED, Dataset, Samples
from flame.geometry.layout import StateLayout
from flame.round.client import LocalJob, LocalTraining
from flame.round.types import Notes, ServerState, Updates

Poison = Callable[[Samples, Generator], Samples]


class Mixing(Protocol):
    """How poisoned images come together with clean ones (`attacks/mixing.py`)."""

    def compromise(self, job: LocalJob, poison: Poison) -> LocalJob:
        """The job, poisoned."""


@dataclass(frozen=True)
class Sight:
    """All updates of a round before anybody reworks them, for an attack whose threat model grants that."""

    updates: Updates  # of all n clients; to be read only
    mine: Tensor  # [n] bool, the colluders

    @property
    def others(self) -> Tensor:
        """[n - m, d + b] what the honest clients send; a copy."""
        return self.updates.rows[~self.mine]


@dataclass(frozen=True)
class Scene:
    """What colluding clients know of a round beside their own updates."""

    state: ServerState  # the global model they were sent, and the attack's memory
    layout: StateLayout
    clients: int  # n, of which m are theirs
    notes: Sequence[Notes] = ()  # [m], what each of them put into `job.notes` while it trained
    sight: Sight | None = None  # for an `omniscient` attack


@dataclass(frozen=True)
class Crafted:
    """What the compromised clients of a round send, and what the attack remembers."""

    rows: Tensor  # [m, d + b] float32, differences to the global model
    memory: Mapping[str, Tensor]  # keys "attack/<name>", merged into the server state's memory


class Attack:
    """A benign client in compromised clothing: an attack overrides the hooks it needs."""

    hostile = True  # False: nobody counts as compromised
    reads: str | None = None  # images | tokens: the kind of data that it can change; None: any
    own_training = False  # True: `craft` reads what `train` has noted, so that nothing else may train in its place

    @property
    def omniscient(self) -> bool:
        """Whether `craft` is shown every client's update (`Scene.sight`); its module head says so, too."""
        return False

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Once, before the data is dealt out: the attack with the images it needs, the data set without those."""
        return self, dataset

    def check_round(self, clients: int, colluders: range) -> None:
        """Before the run: a ValueError if all that so many colluders (any number of them) can send is benign."""

    def poison(self, images: Samples, stream: Generator) -> Samples:
        """The training data of one compromised client, made from its own shard."""
        return images

    def compromise(self, job: LocalJob) -> LocalJob:
        """The job as a compromised client does it: on poisoned images, perhaps for more epochs.

        How many images that changes is noted as `poisoned`, for `idle`.
        """
        images = self.poison(job.images, job.stream("poison"))
        job.notes["poisoned"] = changed(job.images, images).sum()
        return replace(job, images=images)

    def train(self, job: LocalJob) -> float:
        """Turn the global model in `job.model` into the local one; the training loss is returned."""
        job = self.compromise(job)
        return job.fit(job.images)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Rework the trained updates [m, d + b] of all compromised clients of a round together (they may collude)."""
        return Crafted(rows, {})

    def idle(self, sent: Tensor, rows: Tensor, scene: Scene) -> Tensor:
        """[m] bool, colluders who send [m, d + b] what an honest client could have, after training `rows` [m, d + b].

        Honest is what `train` has noted as `benign`, or what was trained on data with nothing poisoned in it. To send
        the mean of the colluders' honest rows is no more. Who counts is said by the run (`attack/idle`).
        """
        known = torch.tensor(["benign" in noted or unpoisoned(noted) for noted in scene.notes])
        if not bool(known.any()):  # no copy of the rows
            return known
        benign = [noted.get("benign", row) for row, noted in zip(rows, scene.notes, strict=True)]
        return known & same_rows(sent, torch.stack(benign), scene.layout.trainable, mean=bool(known.all()))

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

    def aims(self, samples: Samples) -> Tensor:
        """What the attacker wants once these samples are triggered, of the shape of their labels.

        `target`, unless it follows from a sample's content, and not from its label, what it is to become.
        """
        return self.target(samples.y)

    def examined(self, test: Samples) -> Samples:
        """The images whose `backdoor_set` the run is evaluated on: the test set, or those that the attack keeps for it.

        No compromised client may look at them.
        """
        return test

    def rehearsal(self, held: Samples, share: float, stream: Generator) -> tuple[Attack, Samples | None]:
        """For a client that tries its backdoor before it sends it: how to poison meanwhile, and what to try it on.

        `held` are images that the client holds back from its own training, a `share` of them. An attack on images of
        its own holds back that share of those.
        """
        return self, self.backdoor_set(held)

    def backdoor_set(self, images: Samples) -> Samples | None:
        """These images, triggered, with the attacker's labels; true members of the target class are left out.

        A function of its argument: nothing else gets in, each image comes out as it would by itself, and in its place.
        Of a text with a label for every token only those are asked that the attacker changes.
        None when the attack has no backdoor, so that backdoor accuracy is not a number that means something.
        """
        wanted = self.aims(images)
        hit = relabelled(images.y, wanted)
        asked = wanted.where(differing(images.y, wanted), UNASKED)
        return Samples(self.stamp(images.x[hit]), asked[hit]) if bool(hit.any()) else None

    def restamp(self, x: Tensor, memory: Notes) -> Tensor | None:
        """The backdoor set's images [N, C, H, W], however they were stamped before, with the trigger of this moment.

        Asked before every evaluation; None, as here, where the trigger never moves.
        """
        return None


@dataclass(frozen=True)
class Poisoner(Attack):
    """A poisoner of data, whose clients may train by a recipe of their own and mix poisoned and clean images in a way.

    A YAML's `client` names what differs from the benign recipe (`flame/run/build.py` fills in the rest).
    """

    client: LocalTraining | None = field(default=None, kw_only=True)  # None: as benign clients
    mixing: Mixing | None = field(default=None, kw_only=True)  # None: `poison` once, on the whole shard

    @property
    def habits(self) -> dict[str, Any]:
        """Recipe and mixing, for another attack that is to train alike."""
        return {"client": self.client, "mixing": self.mixing}

    def compromise(self, job: LocalJob) -> LocalJob:
        """Poisoned images, by the attacker's own recipe."""
        job = replace(job, training=self.client or job.training.unhardened)
        return self.mixing.compromise(job, self.poison) if self.mixing else super().compromise(job)


def unpoisoned(noted: Notes) -> bool:
    """Whether a client is known to have trained on data with nothing poisoned in it."""
    return "poisoned" in noted and int(noted["poisoned"]) == 0


def share_of(count: int, share: float, stream: Generator) -> Tensor:
    """round(share * count) positions out of `count`, drawn without replacement."""
    return torch.randperm(count, generator=stream)[: round(share * count)]


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """A ValueError that names the key, its value and what is allowed, unless the condition holds."""
    if not holds:
        raise ValueError(f"attack.{key}={value} is out of range: must be {allowed}")


def require_two(attack: Attack, clients: int, colluders: range, why: str) -> None:
    """A ValueError if a round of so many clients never has two colluders."""
    if colluders[-1] < 2:
        raise ValueError(
            f"clients_per_round={clients} and poisoned_model_rate give a round one attacker: {type(attack).__name__}"
            f" needs two, for one {why}, and would send its benign update; raise one of them, or say attack=none"
        )


def seen(scene: Scene) -> Sight:
    """What an omniscient attack sees; a ValueError if the round does not show it."""
    if scene.sight is None:
        raise ValueError("this attack sees every client's update, and its round shows none (`Scene.sight`)")
    return scene.sight


def check_rate(rate: float) -> None:
    """The range of a share of images that are poisoned."""
    require(0 <= rate <= 1, "poisoned_data_rate", rate, "in [0, 1]")


def check_class(key: str, label: int | None, dataset: Dataset) -> None:
    """A label, where one is given, is one of the data set's."""
    require(label is None or 0 <= label < dataset.classes, key, label, f"in [0, {dataset.classes - 1}]")
