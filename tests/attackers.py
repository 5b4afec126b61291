"""Attackers on small nets and random images: their jobs, and what they see of a round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attacks.badnets import BadNets
from attacks.base import Attack, Scene
from attacks.scaling import Scaling
from attacks.triggers import Square
from flame.client import LocalJob, LocalSGD
from flame.layout import StateLayout
from flame.seeding import generator
from flame.types import Dataset, LabelledImages, ServerState

CORNER = Square(size=2, row=0, column=0, value=255)
PLAIN = BadNets(CORNER, target_class=2, source_class=None, poisoned_data_rate=0.5, append=False, epochs=None)
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


def images(count: int = 40, classes: int = 4, size: int = 6) -> LabelledImages:
    """Random images without a white corner, all classes equally often."""
    x = torch.randint(200, (count, 1, size, size), dtype=torch.uint8, generator=generator(0, "test images"))
    return LabelledImages(x, torch.arange(count) % classes)


def dataset(count: int = 40) -> Dataset:
    return Dataset("made up", images(count), images(count // 2), (0.0,), (1.0,), 4)


def job(epochs: int = 1, batch_size: int = 40, lr: float = 0.5, momentum: float = 0.0) -> LocalJob:
    """One client with a linear model on 40 images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    stream = generator(1, "test model")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=stream) / 10)
    sgd = LocalSGD(lr, momentum, 0.0, epochs, batch_size)
    return LocalJob(model, images(), sgd, lambda x: x.float() / 255, {}, seed=0, round=3, client=5)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(attack: Attack, **sgd: Any) -> tuple[Tensor, Tensor]:
    """Parameters before and after an attacker's local training."""
    work = job(**sgd)
    before = vector(work.model)
    attack.train(work)
    return before, vector(work.model)


def scene(clients: int) -> Scene:
    return Scene(ServerState(torch.zeros(6), torch.zeros(0, dtype=torch.int64)), LAYOUT, clients)
