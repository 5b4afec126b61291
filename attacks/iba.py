"""IBA (Nguyen, Nguyen, Tran, Doan and Wong, "IBA: Towards Irreversible Backdoor Attacks in Federated Learning", NeurIPS
2023): a network makes a faint noise for each image; it is learned first, poisoning follows, where others do not write.

x' = clip(x + epsilon T(x)) with T in [-1, 1], in every compromised client from the global model and the T of last time:
1. while T has not reached `success` on the local model, the client trains as a benign one, and T then learns to make
   the local model answer the target class;
2. from then on the client trains on every image twice, once with its noise and the target label; the gradient is
   projected onto the `ratio` of the coordinates that clean data has moved least, by the mean of |gradient| over the
   attacked rounds (as Neurotoxin, with a memory);
3. epsilon falls from `trigger.epsilon` to `least_epsilon` by the factor (1 - decay) in each such round, and T learns
   again in every other one.

The attacker knows the colluders' data and updates and the global models they are sent. Phases, alternation and the
decay are those of the authors' code (sail-research/iba), where the projection is an option.

Deviations: the colluders learn at the same time and start the next round (and test) with their mean T; T is a small
network without BatchNorm (theirs: a U-Net, for MNIST an autoencoder); epsilon is in grey levels (theirs in the units of
the attacker's inputs: of [0, 1] for MNIST, normalised otherwise); clean and triggered images are two halves of one
shuffled shard (theirs two losses of weight 0.5 on each batch); success is counted on the client's own images that are
not of the target class (theirs: on all test images); quiet coordinates are measured once a round, on all of the
client's images (theirs: in every local epoch, on its last batch alone, since gradients are zeroed before each); T
learns with Adam (theirs: SGD); the paper's projection of the update onto a ball is not here (`pgd` does that).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from attacks.badnets import BadNets
from attacks.base import Attack, Crafted, Scene, require
from attacks.learned_trigger import black_and_white
from attacks.neurotoxin import bottom, clean_gradient, projection
from attacks.snapshot import Snapshot
from flame.data.samples import Dataset
from flame.round.client import LocalJob, batches, cross_entropy
from flame.round.evaluate import evaluate
from flame.round.optimizers import BareAdam
from flame.round.seeding import generator
from flame.round.types import Notes

THETA = "attack/iba/theta"  # [p] float32, parameters of T
ROUNDS = "attack/iba/rounds"  # int64, rounds of phase 2 begun
HISTORY = "attack/iba/history"  # [d] mean |gradient| of clean data over them
SLICE = 500  # images that get their noise at a time


@dataclass(frozen=True)
class Noise:
    """x + epsilon T(x): two convolutions at half the size, joined with the image by a third."""

    reads = "images"

    width: int  # channels, >= 1
    epsilon: float  # grey levels, in (0, 255]
    seed: int  # of T's initialisation, which belongs to the attack and not to the run
    theta: Tensor | None = None  # [p]; None: as initialised

    def __post_init__(self) -> None:
        require(self.width >= 1, "trigger.width", self.width, "a whole number >= 1")
        require(0 < self.epsilon <= 255, "trigger.epsilon", self.epsilon, "in (0, 255]")

    def stamp(self, x: Tensor) -> Tensor:
        """See `Trigger.stamp`."""
        theta = self.parameters(x.shape[1]).to(x.device)
        return torch.cat([self.painted(part, theta).round().to(torch.uint8) for part in x.split(SLICE)])

    def painted(self, x: Tensor, theta: Tensor) -> Tensor:
        """Images [B, C, H, W] of grey levels, float32 in [0, 255], with their noise; a function of theta."""
        first, second, last = self._layers(x.shape[1], theta)
        x = x.float()
        hidden = F.relu(F.conv2d(x / 255 - 0.5, *first, stride=2, padding=1))
        hidden = F.interpolate(F.relu(F.conv2d(hidden, *second, padding=1)), size=list(x.shape[-2:]))
        noise = F.conv2d(torch.cat([x / 255 - 0.5, hidden], dim=1), *last, padding=1).tanh()
        return (x + self.epsilon * noise).clamp(0, 255)

    def parameters(self, channels: int) -> Tensor:
        """Theta, or He et al.'s initialisation for images with that many channels."""
        if self.theta is not None:
            return self.theta
        stream = generator(self.seed, "noise network")
        drawn = [torch.randn(s, generator=stream) * math.sqrt(2 / math.prod(s[1:])) for s in self._shapes(channels)]
        return torch.cat([torch.cat([w.flatten(), torch.zeros(len(w))]) for w in drawn])

    def _shapes(self, channels: int) -> list[tuple[int, ...]]:
        inputs = (channels, self.width, channels + self.width)
        return [(out, into, 3, 3) for out, into in zip((self.width, self.width, channels), inputs, strict=True)]

    def _layers(self, channels: int, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each convolution, views of theta."""
        layers, start = [], 0
        for shape in self._shapes(channels):
            stop = start + math.prod(shape)
            layers.append((theta[start:stop].view(shape), theta[stop : stop + shape[0]]))
            start = stop + shape[0]
        return layers


@dataclass(frozen=True)
class IBA(BadNets):
    """Learned noise, then poisoning of quiet coordinates."""

    own_training = True

    trigger: Noise
    least_epsilon: float  # grey levels, in (0, epsilon]
    decay: float  # of epsilon per round of phase 2, in [0, 1)
    success: float  # share of the client's images at which phase 2 begins, in [0, 1]
    search_epochs: int  # of T in a round, >= 1
    search_lr: float  # Adam's, > 0
    ratio: float  # share of the coordinates that may move, in (0, 1]
    exam: Tensor = field(default_factory=lambda: torch.zeros(0))  # [N, C, H, W] the backdoor set's images, clean

    def __post_init__(self) -> None:
        super().__post_init__()
        top = self.trigger.epsilon
        require(0 < self.least_epsilon <= top, "least_epsilon", self.least_epsilon, f"in (0, {top}], trigger.epsilon")
        require(0 <= self.decay < 1, "decay", self.decay, "in [0, 1)")
        require(0 <= self.success <= 1, "success", self.success, "in [0, 1]")
        require(self.search_epochs >= 1, "search_epochs", self.search_epochs, "a whole number >= 1")
        require(self.search_lr > 0, "search_lr", self.search_lr, "> 0")
        require(0 < self.ratio <= 1, "ratio", self.ratio, "in (0, 1]")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Keep the test images that will be triggered: noise cannot be stamped over noise."""
        super().prepare(dataset, stream)
        return replace(self, exam=dataset.test.x[self.target(dataset.test.y) != dataset.test.y]), dataset

    def compromise(self, job: LocalJob) -> LocalJob:
        """As BadNets, with the noise of the moment."""
        return BadNets.compromise(replace(self, trigger=self.current(job.memory)), job)

    def train(self, job: LocalJob) -> float:
        """Steps 1 to 3."""
        noise, begun = self.current(job.memory), int(job.memory.get(ROUNDS, 0))
        job.notes["poisoned"] = torch.tensor(0)  # in phase 1
        loss = self._poisoned(job, begun) if begun else job.fit(job.images)
        if begun % 2 or not begun:
            noise = replace(noise, theta=self._search(job, noise))
        job.notes.update({THETA: noise.parameters(job.images.x.shape[1]), "success": self._success(job, noise)})
        return loss

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Rows as trained; T, its mean success and the quiet coordinates are remembered."""
        theta, success = (torch.stack([noted[key] for noted in scene.notes]).mean(0) for key in (THETA, "success"))
        begun = int(scene.state.memory.get(ROUNDS, 0))
        memory = {THETA: theta, ROUNDS: torch.tensor(begun + (begun > 0 or float(success) >= self.success))}
        if begun:
            memory[HISTORY] = torch.stack([noted["movement"] for noted in scene.notes]).mean(0)
        return Crafted(rows, memory)

    def restamp(self, x: Tensor, memory: Notes) -> Tensor | None:
        """The noise of the moment on the clean images."""
        return self.current(memory, over=1).stamp(self.exam) if len(self.exam) else None

    def current(self, memory: Mapping[str, Tensor], over: int = 0) -> Noise:
        """The remembered T, at the epsilon of the next round, or of the one that is over: what was poisoned with."""
        later = max(0, int(memory.get(ROUNDS, 0)) - 1 - over)
        epsilon = max(self.least_epsilon, self.trigger.epsilon * (1 - self.decay) ** later)
        return replace(self.trigger, epsilon=epsilon, theta=memory.get(THETA))

    def _poisoned(self, job: LocalJob, begun: int) -> float:
        """Step 2; the mean movement, this round's included, is noted."""
        start = Snapshot.of(job.model)
        movement = clean_gradient(job, start).abs()
        if HISTORY in job.memory:
            movement = torch.lerp(job.memory[HISTORY], movement, 1 / begun)
        job.notes["movement"] = movement
        job = self.compromise(job)
        return job.fit(job.images, after_backward=projection(bottom(movement, self.ratio), start.layout))

    def _search(self, job: LocalJob, noise: Noise) -> Tensor:
        """[p] T learns on the local model, which is in evaluation mode and keeps its gradients."""
        theta = noise.parameters(job.images.x.shape[1]).clone().requires_grad_()
        optimizer, stream = BareAdam([theta], self.search_lr), job.stream("trigger")
        black, white = black_and_white(job, job.images.x)
        job.model.eval()
        for _ in range(self.search_epochs):
            for batch in batches(len(job.images), job.training.batch_size, stream):
                x = torch.lerp(black, white, noise.painted(job.images.x[batch], theta) / 255)
                loss = cross_entropy(job.model, x, self.wanted(job.images.y[batch]))
                (theta.grad,) = torch.autograd.grad(loss, theta)
                optimizer.step()
        return theta.detach()

    def _success(self, job: LocalJob, noise: Noise) -> Tensor:
        """Share of the client's own images, the target class left out, that the local model takes for it."""
        exam = replace(self, trigger=noise).backdoor_set(job.images)
        return torch.tensor(evaluate(job.model, exam, job.normalise).accuracy if exam else 1.0)
