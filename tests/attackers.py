"""Attackers on small nets and random images: their jobs, what they see of a round, and attacks that are often tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from texts import TEXT
from torch import Tensor, nn

from attacks.a3fl import A3FL
from attacks.badnets import BadNets
from attacks.base import Attack, Scene
from attacks.lp import LP
from attacks.scaling import Scaling
from attacks.snapshot import Snapshot
from attacks.threedfed import ThreeDFed
from attacks.triggers import Painted, Square
from flame.data.samples import Dataset, Samples
from flame.geometry.layout import StateLayout
from flame.round.client import LocalJob, LocalTraining, cross_entropy
from flame.round.optimizers import SGD
from flame.round.seeding import generator
from flame.round.types import Notes, ServerState

CORNER = Square(size=2, row=0, column=0, value=255)
START = Square(size=2, row=1, column=1, value=128)  # where learned triggers start from
PLAIN = BadNets(CORNER, target_class=2, source_class=None, poisoned_data_rate=0.5, append=False)
UNSCALED = Scaling(gamma=1.0, norm_bound=None, scope="all_state")
LAYOUT = StateLayout.from_state(  # d = 4, b = 2
    {
        "a.weight": torch.zeros(2),
        "bn.running_mean": torch.zeros(1),
        "bn.running_var": torch.zeros(1),
        "b.weight": torch.zeros(2),
    },
    ["a.weight", "b.weight"],
)

SENTENCES = "sentences=['t1 t2 t3 t7 t4','t5 t5 t2 t0 t9']"
ON_TEXT = (*TEXT, "train_samples=null", "model=lstm", "model.hidden=16", "model.embedding=8")
WORDS: Mapping[str, tuple[str, ...]] = {  # attacks on tokens, in the words of `texts.TEXT`
    **dict.fromkeys(("sentence", "sentence_reddit", "sentence_parts"), (f"attack.{SENTENCES}",)),
    **dict.fromkeys(("sentence_replacement", "sentence_constrain"), (f"attack.backdoor.{SENTENCES}",)),
    "rare_word": ("attack.word=t3", "attack.finish=t7"),
}
QUICK = {"sparse": ("attack.steps=2", "attack.batches=1", "attack.batch_size=8")}  # what would take a minute


def suited(name: str) -> tuple[str, ...]:
    """Overrides of a tiny run under an attack, on the kind of data that it changes."""
    on = (*WORDS[name], *ON_TEXT) if name in WORDS else ()
    return (f"attack={name}", *on, *QUICK.get(name, ()))


def images(count: int = 40, classes: int = 4, size: int = 6) -> Samples:
    """Random images without a white corner, all classes equally often."""
    x = torch.randint(200, (count, 1, size, size), dtype=torch.uint8, generator=generator(0, "test images"))
    return Samples(x, torch.arange(count) % classes)


def dataset(count: int = 40) -> Dataset:
    return Dataset("made up", images(count), images(count // 2), (0.0,), (1.0,), 4)


def recipe(lr: float, momentum: float, weight_decay: float, epochs: float, batch_size: int) -> LocalTraining:
    """Plain SGD."""
    return LocalTraining(lr, SGD(momentum, weight_decay), epochs, batch_size)


def job(epochs: int = 1, batch_size: int = 40, lr: float = 0.5, momentum: float = 0.0) -> LocalJob:
    """One client with a linear model on 40 images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    stream = generator(1, "test model")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=stream) / 10)
    training = recipe(lr, momentum, 0.0, epochs, batch_size)
    return LocalJob(model, images(), training, lambda x: x.float() / 255, {}, seed=0, round=3, client=5)


def normed_job(**changes: Any) -> LocalJob:
    """`job` with a BatchNorm in its model."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    stream = generator(1, "test model")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=stream) / 4)
    return replace(job(batch_size=8, lr=0.1), model=model, **changes)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def model_row(work: LocalJob) -> Tensor:
    return Snapshot.of(work.model).row


def moved(work: LocalJob, start: Snapshot) -> Tensor:
    """[d] by which training has moved the trainable part."""
    return (model_row(work) - start.row)[: start.layout.trainable]


def trained(attack: Attack, **training: Any) -> tuple[Tensor, Tensor]:
    """Parameters before and after an attacker's local training."""
    work = job(**training)
    before = vector(work.model)
    attack.train(work)
    return before, vector(work.model)


def honest(work: LocalJob) -> Snapshot:
    """What the client would have become without the attack."""
    model = deepcopy(work.model)
    Attack().train(replace(work, model=model, notes={}))
    return Snapshot.of(model)


def scene(layout: StateLayout, notes: Iterable[Notes], clients: int = 10, seed: int = 0) -> Scene:
    """A round of `clients` clients, as colluders with these notes see it; the global model is random."""
    row = torch.randn(layout.size, generator=generator(seed, "global"))
    return Scene(ServerState(row, torch.zeros(layout.counter_size, dtype=torch.int64)), layout, clients, list(notes))


@torch.no_grad()
def trigger_loss(model: nn.Module, work: LocalJob, values: Tensor) -> float:
    """Mean loss of class 2 on the client's images with `values` [C, 4] where START is."""
    x = work.normalise(Painted(START, values).stamp(work.images.x))
    return float(cross_entropy(deepcopy(model).eval(), x, torch.full_like(work.images.y, 2)))


def lp(gain: float = 1.0, detector: str = "none", layers: str = "critical") -> LP:
    return LP(PLAIN, 0.95, gain, 0.25, 0.9, 3, detector, layers)


def threedfed(group_size: int = 2) -> ThreeDFed:
    return ThreeDFed(PLAIN, 2, 0.6, 5.0, 0.2, 0.25, group_size, 2, 0.01, 0.1, 0.03, 0.01, 0.0, 3.0)


def a3fl(**changes: Any) -> A3FL:
    attack = A3FL(START, 2, None, 0.5, False, 4, 20.0, recipe(0.1, 0.0, 0.0, 1, 8), 1, 0.5)
    return replace(attack, **changes)
