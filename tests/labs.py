"""Real laboratories around small nets and random images, for tests that feed defenses without training anyone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from attackers import recipe
from torch import Generator, Tensor, nn

from attacks.base import Attack
from flame.data.reading import normalise, whole
from flame.data.samples import Samples, Shards
from flame.engine.laboratory import Laboratory
from flame.engine.spill import Spill
from flame.engine.workbench import Task
from flame.geometry.layout import StateLayout
from flame.round.types import Cohort, ServerState

PER_CLIENT = 12  # images of each client


class Tiny(nn.Module):
    """Linear, BatchNorm, linear, on flat images; its first layer is called conv."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Linear(inputs, hidden, bias=False)
        self.bn = nn.BatchNorm1d(hidden)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x.flatten(1))))


class Constant(nn.Module):
    """Answers its two output weights, whatever the image: a model that can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ParameterDict({"w": torch.zeros(1)})
        self.out = nn.ParameterDict({"w": torch.zeros(2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.out["w"].expand(len(x), -1)


def laboratory(
    net: nn.Module,
    image: tuple[int, int, int],
    compromised: Tensor,
    y: Tensor | None = None,
    attack: Attack | None = None,
    classes: int = 2,
) -> Laboratory:
    """For the clients 0, 1, ... of `compromised` [n], each with PER_CLIENT images of labels `y` (default: in turns).

    The server has those of the first client.
    """
    count = PER_CLIENT * len(compromised)
    x = torch.randint(0, 256, (count, *image), generator=Generator().manual_seed(0), dtype=torch.uint8)
    layout = StateLayout.of(net)
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(net.state_dict(), row, counters)
    task = Task(
        model=net,
        layout=layout,
        train=Samples(x, torch.arange(count) % classes if y is None else y),
        shards=Shards.cut(
            torch.cat([torch.arange(count), torch.arange(PER_CLIENT)]), torch.full((len(compromised) + 1,), PER_CLIENT)
        ),
        eval_sets={},
        normalise=partial(normalise, mean=(0.5,) * image[0], std=(0.25,) * image[0]),
        noise=partial(whole, shape=image, below=256, dtype=torch.uint8),
        training=recipe(lr=0.1, momentum=0.0, weight_decay=0.0, epochs=1, batch_size=10),
        attack=attack or Attack(),
        seed=0,
        spill=Spill(1.0, "."),
        device="cpu",
        precision="float32",
        smoothing=None,
    )
    cohort = Cohort(torch.arange(len(compromised)), compromised)
    return Laboratory.of(task, ServerState(row, counters), cohort)


def honest(n: int) -> Tensor:
    """[n] bool, nobody is compromised."""
    return torch.zeros(n, dtype=torch.bool)


@dataclass(frozen=True)
class Liar(Attack):
    """Says that losses are ten times what they are, or something that is no answer."""

    sense: bool = True

    def report(self, losses: Tensor) -> Tensor:
        return 10 * losses if self.sense else losses[:, :1]
