"""Local training: the one training loop of the project, and the job a compromised client's attack may reshape."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from flame.data.samples import Samples
from flame.round.augment import UNCHANGED, Augment, View, as_stored
from flame.round.device import CPU, device_of
from flame.round.hardener import Hardener
from flame.round.hardening import Hardening
from flame.round.losses import Mixture, Normalise, Objective, batch_loss
from flame.round.optimizers import Optimizer
from flame.round.rates import Constant
from flame.round.seeding import generator

ModelHook = Callable[[nn.Module], None]


def cross_entropy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of a batch; a share `smoothing` in [0, 1) of each label goes to all classes alike."""
    logits, y = rows(model(x).float(), y)  # bf16 logits lose the loss's digits
    return F.cross_entropy(logits, y, label_smoothing=smoothing)


def rows(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, classes, T] and labels [B, T] as [B T, classes] and [B T], which torch compares faster; or as is."""
    return (logits.movedim(1, -1).flatten(0, -2), y.flatten()) if logits.dim() > 2 else (logits, y)


@dataclass(frozen=True)
class LocalTraining:
    """A client's recipe (McMahan et al., AISTATS 2017, ClientUpdate): a fresh optimiser per client and round."""

    lr: float  # > 0
    optimizer: Optimizer
    epochs: float  # whole >= 1, passes over the shard; in (0, 1): one pass over that share of it, drawn
    batch_size: int  # >= 1
    schedule: Constant = field(default=Constant(warmup=0, rounds=1), kw_only=True, repr=False)  # of the rate, by round
    # shares of the epochs, in (0, 1): once so many are over, the rate falls to a tenth (MultiStepLR stepped each epoch)
    lr_tenths: Sequence[float] = field(default=(), kw_only=True)
    max_steps: int | None = field(default=None, kw_only=True)  # >= 1, in a round; None: as many as the epochs have
    clip_norm: float | None = field(default=None, kw_only=True)  # > 0, L2, of the gradient of a step; None: not clipped
    label_smoothing: float = field(default=0.0, kw_only=True)  # [0, 1), of the benign objective
    proximal: float = field(default=0.0, kw_only=True)  # >= 0, mu of FedProx (Li et al., MLSys 2020)
    noise_std: float = field(default=0.0, kw_only=True)  # >= 0, per coordinate of a step's gradient, once it is clipped
    hardening: Hardening | None = field(default=None, kw_only=True)  # triggers on benign clients' images; None: none

    def __post_init__(self) -> None:
        inf, epochs = float("inf"), self.epochs
        require(0 < self.lr < inf, "lr", self.lr, "in (0, inf)")
        whole = epochs >= 1 and epochs % 1 == 0
        require(whole or 0 < epochs < 1, "epochs", epochs, "a whole number >= 1 or a share of one pass in (0, 1)")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a whole number >= 1")
        inside = all(0 < share < 1 for share in self.lr_tenths)
        require(inside, "lr_tenths", list(self.lr_tenths), "shares in (0, 1)")
        steps, norm = self.max_steps, self.clip_norm
        require(steps is None or steps >= 1, "max_steps", steps, "null (all of the epochs) or a whole number >= 1")
        require(norm is None or 0 < norm < inf, "clip_norm", norm, "null (none) or in (0, inf)")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        require(0 <= self.proximal < inf, "proximal", self.proximal, "in [0, inf)")
        require(0 <= self.noise_std < inf, "noise_std", self.noise_std, "in [0, inf)")

    def rate(self, epoch: int, round: int) -> float:
        """The learning rate of an epoch of a round, both counted from 0."""
        over = [share for share in self.lr_tenths if share * self.epochs <= epoch + 1e-9]  # 0.28 * 25 is above 7
        return self.lr * 0.1 ** len(over) * self.schedule(round)

    @property
    def unhardened(self) -> LocalTraining:
        """The recipe as those follow it who do not search for triggers."""
        return self if self.hardening is None else replace(self, hardening=None)

    def smallest_batch(self, sizes: Tensor) -> int:
        """1 or 2, the smallest batch (up to 2) that shards of these sizes [clients] are cut into; see `batches`."""
        return min(2, self.batch_size, int(sizes.min()))

    def loss(self, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The recipe's own objective: mean cross entropy of a batch, its labels smoothed."""
        return cross_entropy(model, x, y, self.label_smoothing)

    def fit(
        self,
        model: nn.Module,
        images: Samples,
        normalise: Normalise,
        stream: Generator,
        *,
        round: int,
        objective: Objective | None = None,
        mixture: Mixture | None = None,
        after_backward: ModelHook | None = None,
        after_step: ModelHook | None = None,
        view: View = as_stored,
        precision: str = "float32",
    ) -> float:
        """Train `model` in place, on its device; the mean loss per step of the last epoch is returned,
        NaN if it had none.

        The images go to the device once, an epoch's order once an epoch, and nothing comes back before the end.

        `objective` (None: `loss`), `mixture` (batches may be changed, or several weighed), `after_backward` (gradients
        may be changed) and `after_step` (weights may be changed) are where an attack bends the loop. `view` is how a
        batch is seen (`flame/round/augment.py`).
        """
        optimizer = self.optimizer.over(model.parameters(), self.lr)
        device, bend = device_of(model), self._bend(model, stream)
        images, left = images.to(device), self.max_steps or sys.maxsize
        cast = autocast(device, precision)
        harden = None if self.hardening is None else Hardener(self.hardening, model, images, normalise, stream)
        loss_of = batch_loss(model, images, normalise, objective or self.loss, mixture, view, harden)
        model.train()
        losses: list[Tensor] = []
        for epoch in range(max(1, int(self.epochs))):
            if not left:
                break
            losses = []
            for group in optimizer.param_groups:
                group["lr"] = self.rate(epoch, round)
            for batch in islice(batches(len(images), self.batch_size, stream, device, share=min(1, self.epochs)), left):
                left -= 1
                with cast:
                    loss = loss_of(batch)
                if loss is None:
                    continue
                optimizer.zero_grad()
                loss.backward()
                for hook in (bend, after_backward):
                    if hook:
                        hook(model)
                optimizer.step()
                if after_step:
                    after_step(model)
                losses.append(loss.detach())
        return float(torch.stack(losses).mean()) if losses else math.nan

    def _bend(self, model: nn.Module, stream: Generator) -> ModelHook | None:
        """The gradient of mu / 2 ||w - start||^2, then clipping, then noise; None: none of them.

        The start is the model as it is now. The reported loss is without the term, as the objective gives it. Noise has
        a stream beside the one of the batches, whose order is the same without noise.
        """
        if not self.proximal and self.clip_norm is None and not self.noise_std:
            return None
        noise = generator(stream.initial_seed(), "gradient noise")
        start = [p.detach().clone() for p in model.parameters()] if self.proximal else []

        @torch.no_grad()
        def bend(model: nn.Module) -> None:
            for p, s in zip(model.parameters(), start, strict=False):
                if p.grad is not None:
                    p.grad.add_(p - s, alpha=self.proximal)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
            for p in model.parameters() if self.noise_std else ():
                if p.grad is not None:
                    p.grad.add_(torch.randn(p.shape, generator=noise).to(p.grad.device), alpha=self.noise_std)

        return bend


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """In here a model computes in `precision`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def batches(
    count: int, size: int, stream: Generator, device: torch.device = CPU, *, share: float = 1.0
) -> Iterator[Tensor]:
    """Index tensors of one shuffled epoch, drawn on the CPU whatever the device; of a share of the images, drawn.

    A last batch of one image joins the one before (BatchNorm needs two; a share is of two images or more, too).
    """
    kept = max(min(2, count), round(share * count))
    order = torch.randperm(count, generator=stream)[:kept].to(device)
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


@dataclass(frozen=True)
class LocalJob:
    """One client's work of one round, as an attack sees it: everything the client itself knows, nothing more."""

    model: nn.Module  # holds the global model on entry and the local model on return
    images: Samples  # the client's own shard
    training: LocalTraining  # the benign recipe, or the attacker's own
    normalise: Normalise
    memory: Mapping[str, Tensor]  # what the attack keeps between rounds (ServerState.memory)
    seed: int
    round: int
    client: int
    notes: dict[str, Tensor] = field(default_factory=dict)  # left for the attack's `craft`; nobody else sees them
    precision: str = "float32"  # of `fit`; what an attack trains or searches beside it is float32
    mixture: Mixture | None = None  # of `fit`: how an attack poisons batch by batch
    augment: Augment = UNCHANGED  # of what trains a model; what an attack searches or measures is as stored

    def stream(self, role: str) -> Generator:
        """The client's own random stream for a purpose."""
        return generator(self.seed, role, self.round, self.client)

    def view(self, role: str = "augment") -> View:
        """How one training sees the client's batches; trainings beside `fit` have roles of their own."""
        return self.augment.view(self.stream(role))

    def fit(
        self,
        images: Samples,
        *,
        training: LocalTraining | None = None,
        objective: Objective | None = None,
        after_backward: ModelHook | None = None,
        after_step: ModelHook | None = None,
    ) -> float:
        """The client's recipe on `images`, or another, with whatever an attack bends."""
        return (training or self.training).fit(
            self.model,
            images,
            self.normalise,
            self.stream("shuffle"),
            round=self.round,
            objective=objective,
            mixture=self.mixture,
            after_backward=after_backward,
            after_step=after_step,
            view=self.view(),
            precision=self.precision,
        )


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """A ValueError that names the client's key, its value and what is allowed, unless the condition holds."""
    if not holds:
        raise ValueError(f"client.{key}={value} is out of range: must be {allowed}")
