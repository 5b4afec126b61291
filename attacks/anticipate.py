"""Anticipate (Wen, Geiping, Fowl, Souri, Chellappa, Goldblum and Goldstein, "Thinking Two Moves Ahead: Anticipating
Other Users Improves Backdoor Attacks in Federated Learning", 2022, arXiv 2210.09305): the attacker trains what is a
backdoor only after the other clients have been averaged in, and have gone on training.

As in the authors' code (YuxinWenRick/thinking-two-moves-ahead 091f08b, training.py), for each batch of poisoned images:

1. what the n - 1 other clients will send is estimated by a few steps of gradient descent from the global model, on a
   batch of the attacker's own clean images;
2. the next global model is (own model + (n - 1) that one) / n; each later one is the one before after as many steps on
   another clean batch, of all n;
3. the own model descends the sum of the poisoned batch's losses under all `horizon` models, differentiated through the
   steps of the others.

The attacker knows its own data, n, and the benign recipe: its rate and its number of steps.

Deviations: poisoning is the inner attack's, on the whole shard beforehand (theirs: half of each batch). The steps of
the others are plain descent at the benign rate of those rounds. BatchNorm normalises by the batch throughout, and the
running statistics and counters that the attacker sends are the global model's, as in their code. Of the recipe the own
training takes rate, optimiser, epochs and batch size; it is float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from attacks.around import Around
from attacks.base import require
from flame.data.samples import Samples
from flame.round.client import LocalJob, batches
from flame.round.device import device_of

Model = Mapping[str, Tensor]  # parameters by name


@dataclass(frozen=True)
class Anticipate(Around):
    """Train the inner attack's backdoor for the global models to come."""

    inner_trains = False

    horizon: int  # global models that the loss is a sum over, >= 1
    steps: int  # of gradient descent that the others take in a round, >= 1
    clients: int  # n, >= 1

    def __post_init__(self) -> None:
        for key in ("horizon", "steps", "clients"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number >= 1")

    def train(self, job: LocalJob) -> float:
        """The inner attack's images; the last epoch's mean loss per model."""
        bad = self.compromise(job)
        model, training, device = job.model, bad.training, device_of(job.model)
        model.train()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        own = {name: nn.Parameter(p.clone()) for name, p in start.items()}
        optimizer = training.optimizer.over(own.values(), training.lr)
        stream, clean, losses = job.stream("shuffle"), self._clean_batches(job), list[float]()
        for epoch in range(max(1, int(training.epochs))):
            losses = []
            for group in optimizer.param_groups:
                group["lr"] = training.rate(epoch, job.round)
            order = batches(len(bad.images), training.batch_size, stream, share=min(1, training.epochs))
            for parts in (self._poisoned(bad, batch, device) for batch in order):
                total = self._ahead(job, start, own, parts, clean)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                losses.append(float(total.detach()) / self.horizon)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(own[name])
        return sum(losses) / len(losses)

    def _ahead(
        self,
        job: LocalJob,
        start: Model,
        own: Model,
        parts: list[tuple[float, Tensor, Tensor]],
        clean: Iterator[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Steps 1 to 3 of one poisoned batch, given as weights, inputs and labels of its parts."""
        total, current = torch.zeros(()), start
        for move in range(self.horizon):
            rate = job.training.lr * job.training.schedule(job.round + move)
            current = self._stepped(job.model, current, *next(clean), rate, traced=move > 0)
            if move == 0:
                current = {k: (own[k] + (self.clients - 1) * p) / self.clients for k, p in current.items()}
            total = total + sum(weight * loss(job.model, current, x, y) for weight, x, y in parts)
        return total

    def _stepped(self, model: nn.Module, current: Model, x: Tensor, y: Tensor, rate: float, traced: bool) -> Model:
        """After `steps` steps of gradient descent on a batch; `traced`: with a gradient through them."""
        for _ in range(self.steps):
            leaves = current if traced else {k: p.detach().requires_grad_() for k, p in current.items()}
            slopes = torch.autograd.grad(loss(model, leaves, x, y), list(leaves.values()), create_graph=traced)
            current = {k: p - rate * g for (k, p), g in zip(leaves.items(), slopes, strict=True)}
        return current if traced else {k: p.detach() for k, p in current.items()}

    def _clean_batches(self, job: LocalJob) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the client's own images as they were dealt, one shuffled epoch after another."""
        stream, view, device = job.stream("anticipate"), job.view("anticipate augment"), device_of(job.model)
        while True:
            for batch in batches(len(job.images), job.training.batch_size, stream):
                yield job.normalise(view(job.images, batch).to(device)), job.images.y[batch].to(device)

    def _poisoned(self, job: LocalJob, batch: Tensor, device: torch.device) -> list[tuple[float, Tensor, Tensor]]:
        """One batch of the compromised job, in as many weighed parts as its mixture makes of it."""

        def shown(images: Samples) -> tuple[Tensor, Tensor]:
            return job.normalise(images.x.to(device)), images.y.to(device)

        mixed = job.mixture(job.images[batch]) if job.mixture else [(1.0, job.images[batch])]
        return [(weight, *shown(images)) for weight, images in mixed]


def loss(model: nn.Module, parameters: Model, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy under other parameters; the model's own buffers are read, and stay as they are."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return F.cross_entropy(functional_call(model, {**parameters, **buffers}, (x,)).float(), y)
