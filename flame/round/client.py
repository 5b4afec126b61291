"""Local training: the one training loop of the project, and the job a compromised client's attack may reshape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from flame.data.samples import LabelledImages
from flame.round.augment import UNCHANGED, Augment, View, as_stored
from flame.round.device import CPU, device_of
from flame.round.seeding import generator

Normalise = Callable[[Tensor], Tensor]  # uint8 [B, C, H, W] -> float32, channels_last
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> scalar loss
ModelHook = Callable[[nn.Module], None]


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The benign objective: mean cross entropy of a batch."""
    return F.cross_entropy(model(x).float(), y)  # bf16 logits lose the loss's digits


@dataclass(frozen=True)
class LocalSGD:
    """SGD with a fresh optimiser per client and round (McMahan et al., AISTATS 2017, ClientUpdate)."""

    lr: float  # > 0
    momentum: float  # [0, 1)
    weight_decay: float  # >= 0
    epochs: int  # >= 1, passes over the shard
    batch_size: int  # >= 1
    # shares of the epochs, in (0, 1): once so many are over, the rate falls to a tenth (MultiStepLR stepped each epoch)
    lr_tenths: Sequence[float] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for key, low, high in (("lr", 0, float("inf")), ("momentum", 0, 1), ("weight_decay", 0, float("inf"))):
            value = getattr(self, key)
            if not (low <= value < high) or (key == "lr" and value == 0):
                raise ValueError(
                    f"client.{key}={value} is out of range: must be in {'(' if key == 'lr' else '['}{low}, {high})"
                )
        for key in ("epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"client.{key}={getattr(self, key)} is out of range: must be a whole number >= 1")
        if not all(0 < share < 1 for share in self.lr_tenths):
            raise ValueError(f"client.lr_tenths={list(self.lr_tenths)} is out of range: must be shares in (0, 1)")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        over = [share for share in self.lr_tenths if share * self.epochs <= epoch + 1e-9]  # 0.28 * 25 is above 7
        return self.lr * 0.1 ** len(over)

    def smallest_batch(self, sizes: Tensor) -> int:
        """1 or 2, the smallest batch (up to 2) that shards of these sizes [clients] are cut into; see `batches`."""
        return min(2, self.batch_size, int(sizes.min()))

    def fit(
        self,
        model: nn.Module,
        images: LabelledImages,
        normalise: Normalise,
        stream: Generator,
        *,
        objective: Objective = cross_entropy,
        after_backward: ModelHook | None = None,
        after_step: ModelHook | None = None,
        view: View = as_stored,
        precision: str = "float32",
    ) -> float:
        """Train `model` in place, on its device; the mean loss per step of the last epoch is returned.

        The images go to the device once, an epoch's order once an epoch, and nothing comes back before the end.

        `objective`, `after_backward` (gradients may be changed) and `after_step` (weights may be changed) are where an
        attack bends the loop. `view` is how a batch is seen (`flame/round/augment.py`).
        """
        optimizer = torch.optim.SGD(
            model.parameters(), self.lr, momentum=self.momentum, weight_decay=self.weight_decay, foreach=True
        )
        device = device_of(model)
        images = images.to(device)
        cast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        model.train()
        losses: list[Tensor] = []
        for epoch in range(self.epochs):
            losses = []
            for group in optimizer.param_groups:
                group["lr"] = self.rate(epoch)
            for batch in batches(len(images), self.batch_size, stream, device):
                x = view(images, batch)
                with cast:
                    loss = objective(model, normalise(x), images.y[batch])
                optimizer.zero_grad()
                loss.backward()
                if after_backward:
                    after_backward(model)
                optimizer.step()
                if after_step:
                    after_step(model)
                losses.append(loss.detach())
        return float(torch.stack(losses).mean())


def batches(count: int, size: int, stream: Generator, device: torch.device = CPU) -> Iterator[Tensor]:
    """Index tensors of one shuffled epoch, drawn on the CPU whatever the device.

    A last batch of one image joins the one before (BatchNorm needs two).
    """
    order = torch.randperm(count, generator=stream).to(device)
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


@dataclass(frozen=True)
class LocalJob:
    """One client's work of one round, as an attack sees it: everything the client itself knows, nothing more."""

    model: nn.Module  # holds the global model on entry and the local model on return
    images: LabelledImages  # the client's own shard
    sgd: LocalSGD  # the benign recipe
    normalise: Normalise
    memory: Mapping[str, Tensor]  # what the attack keeps between rounds (ServerState.memory)
    seed: int
    round: int
    client: int
    notes: dict[str, Tensor] = field(default_factory=dict)  # left for the attack's `craft`; nobody else sees them
    precision: str = "float32"  # of `fit`; what an attack trains or searches beside it is float32
    augment: Augment = UNCHANGED  # of what trains a model; what an attack searches or measures is as stored

    def stream(self, role: str) -> Generator:
        """The client's own random stream for a purpose."""
        return generator(self.seed, role, self.round, self.client)

    def view(self, role: str = "augment") -> View:
        """How one training sees the client's batches; trainings beside `fit` have roles of their own."""
        return self.augment.view(self.stream(role))

    def fit(
        self,
        images: LabelledImages,
        *,
        sgd: LocalSGD | None = None,
        objective: Objective = cross_entropy,
        after_backward: ModelHook | None = None,
        after_step: ModelHook | None = None,
    ) -> float:
        """The benign loop on `images`, with whatever an attack bends."""
        return (sgd or self.sgd).fit(
            self.model,
            images,
            self.normalise,
            self.stream("shuffle"),
            objective=objective,
            after_backward=after_backward,
            after_step=after_step,
            view=self.view(),
            precision=self.precision,
        )
