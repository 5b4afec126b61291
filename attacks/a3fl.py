"""A3FL (Zhang, Jia, Chen, Lin and Wu, "A3FL: Adversarially Adaptive Backdoor Attacks to Federated Learning", NeurIPS
2023, algorithm 1): the trigger is optimised in every round, against the global model and against one that has just
unlearned it, so that it goes on working after the server has moved on.

In each compromised client, from the global model theta and the trigger delta of the last round:
1. a rival theta' starts from theta and unlearns delta: a few epochs on triggered images with their true labels;
2. delta descends L(theta, x + delta, target) + lambda L(theta', x + delta, target) by signed steps, lambda = lambda_0
   times the similarity of the two models' gradients, and is clamped to the range of pixels;
3. 1 and 2 alternate: a new rival every `rival_every` epochs, none in the first ones, as in the authors' code;
4. the client trains as in BadNets with the new trigger.

What its BA means: the trigger fools models that admitted little of the attacker, too. With equal work before FLAME, at
Dirichlet 1 on digits, 2 to 27 % of its updates were admitted and BA was 96 to 100 % (seeds 0 to 2, both vectors); with
two epochs beside the benign one, which FLAME rejects as such, none was.

The trigger replaces the pixels of `trigger`, whose values are where it starts; the backdoor is tested with the trigger
of the moment.

Deviations: the authors let one attacker of a round search and all use what it finds; here the colluders search at the
same time, each on its own data, poison with what they found, and start the next round (and test) with the mean. Pixels
and steps are grey levels of 0..255, theirs normalised ones. The similarity is the mean cosine over weights of two or
more axes between the last batch's unlearning gradient and the last epoch's trigger loss (their code: convolutions, and
a sum since the search began). Both models are in evaluation mode in 2 (theirs leaves the rival in training mode). The
authors search for far longer, see the YAML.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.base import require
from attacks.learned_trigger import LearnedTrigger
from attacks.triggers import Painted
from flame.round.augment import Stamped, View
from flame.round.client import LocalJob, LocalTraining, batches
from flame.round.device import device_of

TRIGGER = "attack/a3fl"  # [C, k] float32 grey levels, in the attack's memory


@dataclass(frozen=True)
class A3FL(LearnedTrigger):
    """BadNets with a trigger that adapts."""

    key: ClassVar[str] = TRIGGER
    search_epochs: int  # of step 2 in a round, >= 0
    step: float  # grey levels, > 0
    rival: LocalTraining  # the unlearning of step 1
    rival_every: int  # epochs of step 2, >= 1
    balance: float  # lambda_0, >= 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.search_epochs >= 0, "search_epochs", self.search_epochs, "a whole number >= 0")
        require(self.step > 0, "step", self.step, "> 0")
        require(self.rival_every >= 1, "rival_every", self.rival_every, "a whole number >= 1")
        require(self.balance >= 0, "balance", self.balance, ">= 0")

    def search(self, job: LocalJob) -> Tensor:
        """Steps 1 to 3."""
        rival: nn.Module | None = None
        model, weight = deepcopy(job.model), 0.0
        values, stream = self.current(job.memory, job.images.x).values, job.stream("trigger")
        view = job.view("trigger augment")
        for epoch in range(self.search_epochs):
            if epoch and epoch % self.rival_every == 0:
                rival = self._unlearned(job, values, stream, view)
                weight = self.balance * similarity(model, rival)
            model.zero_grad()
            for batch in batches(len(job.images), job.training.batch_size, stream):
                values = values.detach().requires_grad_()
                x, y = self.painted(job, job.images[batch], values), job.images.y[batch]
                loss = self._loss(model, x, y)
                if rival is not None:
                    loss = loss + weight * self._loss(rival, x, y)
                loss.backward()
                assert values.grad is not None
                values = (values.detach() - self.step * values.grad.sign()).clamp(0, 255)
        return values.detach()

    def _loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        device = device_of(model)
        return F.cross_entropy(model(x.to(device)), self.wanted(y).to(device))

    def _unlearned(self, job: LocalJob, values: Tensor, stream: Generator, view: View) -> nn.Module:
        """Step 1; its parameters keep the gradient of the last batch."""
        rival = deepcopy(job.model)
        stamp, (x, y) = Painted(self.trigger, values).stamp, (job.images.x, job.images.y)
        stamped = Stamped(stamp(x), y, x, torch.ones_like(y, dtype=torch.bool), stamp)
        self.rival.fit(rival, stamped, job.normalise, stream, round=job.round, view=view)
        return rival


def similarity(model: nn.Module, rival: nn.Module) -> float:
    """Mean cosine between the two models' gradients of each weight of two or more axes; 0 for a zero gradient."""
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), rival.parameters(), strict=True) if p.ndim > 1]
    cosines = [
        F.cosine_similarity(g.flatten(), h.flatten(), dim=0) for g, h in pairs if g is not None and h is not None
    ]
    return float(torch.stack(cosines).mean()) if cosines else 0.0
