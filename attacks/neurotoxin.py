"""Neurotoxin (Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran and Mittal, "Neurotoxin: Durable Backdoors in
Federated Learning", ICML 2022, algorithm 1): the backdoor is written where benign clients do not write.

1. What benign clients move is observed: |G_t - G_s|, the step of the global model since the attacker last saw it.
2. The coordinates it moved most are left out: the constraint set is the bottom `ratio` of all coordinates by magnitude.
3. Every gradient of the local backdoor training is projected onto that set before the optimiser steps.

The authors' code replaces step 1 by a gradient of clean data, that of thirty clients of the federation. `observe:
gradient` takes the attacker's own; we do so, too, in the first attacked round, where no earlier global model is known.

Deviations: the observed step is that of all clients, accepted attackers included; their clipping of the update is not
here (`pgd` does that); with `client.weight_decay` > 0 the decay reaches the other coordinates, as in their code.

Pace: ten epochs beside two benign ones (jhcknzzm/Federated-Learning-Backdoor 21a9eaf), at the clients' rate unless
`backdoor.client.lr` says otherwise. Their commands give it another rate than the baseline that it is compared with: 6
to 7 times that on CIFAR and for the Reddit LSTM, a tenth for GPT-2, the same on EMNIST-byClass, which is what is taken
here (recipe `durability_rates_digits` takes rate and coordinates apart). Their baseline is this attack with ratio 1
(`neurotoxin_unmasked`): it trains as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from attacks.around import Around
from attacks.base import Crafted, Scene, require
from attacks.snapshot import Snapshot
from flame.geometry.layout import StateLayout
from flame.round.client import LocalJob, ModelHook, batches, cross_entropy
from flame.round.device import device_of

SEEN = "attack/neurotoxin"  # [d] in the attack's memory: the trainable part of the last global model it was sent
OBSERVE = ("update", "gradient")


@dataclass(frozen=True)
class Neurotoxin(Around):
    """Train the inner attack's backdoor in the coordinates that benign training moves least."""

    inner_trains = False

    ratio: float  # share of the coordinates that may move, in (0, 1]; the paper's k is what is left out
    observe: str  # update | gradient

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, "ratio", self.ratio, "in (0, 1]")
        require(self.observe in OBSERVE, "observe", repr(self.observe), f"one of {', '.join(OBSERVE)}")

    def train(self, job: LocalJob) -> float:
        """The inner attack's images and epochs, gradients projected."""
        now = Snapshot.of(job.model)
        keep = bottom(self._benign_movement(job, now), self.ratio)
        job = self.compromise(job)
        return job.fit(job.images, after_backward=projection(keep, now.layout))

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """As the inner attack; the global model is remembered for the next round."""
        crafted = super().craft(rows, scene, stream)
        seen = scene.state.row[scene.layout.span("weights_only")].clone()
        return replace(crafted, memory={**crafted.memory, SEEN: seen})

    def _benign_movement(self, job: LocalJob, now: Snapshot) -> Tensor:
        """[d] magnitude, in the layout's order."""
        seen = job.memory.get(SEEN)
        if self.observe == "gradient" or seen is None:
            return clean_gradient(job, now).abs()
        return (now.row[: len(seen)] - seen).abs()


def projection(keep: Tensor, layout: StateLayout) -> ModelHook:
    """Gradients are set to 0 outside the coordinates `keep` [d] bool."""
    masks = {e.key: keep[e.start : e.stop].view(e.shape) for e in layout.entries if e.stop <= len(keep)}

    def project(model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if p.grad is not None:
                p.grad.mul_(masks[name].to(p.device))

    return project


def bottom(magnitude: Tensor, ratio: float) -> Tensor:
    """[d] bool: the round(ratio * d) smallest; among equals, those that come first."""
    keep = torch.zeros(len(magnitude), dtype=torch.bool)
    keep[magnitude.argsort(stable=True)[: round(ratio * len(magnitude))]] = True
    return keep


def clean_gradient(job: LocalJob, now: Snapshot) -> Tensor:
    """[d] sum over the batches of the client's own clean data; the model is left as it was."""
    job.model.train()
    parameters = dict(job.model.named_parameters())
    images, total = job.images.to(device_of(job.model)), torch.zeros_like(now.row)
    for batch in batches(len(images), job.training.batch_size, job.stream("observe")):
        loss = cross_entropy(job.model, job.normalise(images.x[batch]), images.y[batch])
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        for e in now.layout.entries:
            if e.key in gradients:
                total[e.start : e.stop] += gradients[e.key].flatten().to(total.device)
    now.load(job.model)  # the forward passes moved BatchNorm's statistics
    return total[: now.layout.trainable]
