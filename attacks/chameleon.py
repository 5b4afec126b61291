"""Chameleon (Dai and Li, "Chameleon: Adapting to Peer Images for Planting Durable Backdoors in Federated Learning",
ICML 2023): poisoned images are made to look like their peers before the classifier learns them.

1. The encoder, all but the last layer, is trained on the poisoned data by supervised contrastive learning (Khosla et
   al., NeurIPS 2020): for unit features f_i at temperature tau, an image's loss is the mean over the others p of its
   label of -log(exp(f_i.f_p / tau) / sum over all a other than i of exp(f_i.f_a / tau)). Poisoned images carry the
   target label: its true members, the facilitators, pull them close and the interferers, images of their own true
   label, are pushed away. Images under the target label weigh `weight` times as much.
2. The encoder is frozen, and the last layer trained as usual on the same data.

Deviations: constant learning rates (the authors lower both in steps, so that two epochs of each are at the full rate);
the inner attack says how many images are poisoned (theirs: 7 of a batch of 64, with noise); their projection of the
update onto a ball is not here (`pgd` does that); their further factor on interferers, 1 in their trigger settings, is
left out. Rates are shares of the benign one, those of ybdai7/Chameleon-durable-backdoor c74618a at its first attacked
round. There the model has converged and the attack lasts 40 rounds of 10 and 3 epochs of 25 batches.

Whether the backdoor is established comes before whether it lasts: see BA while the attack goes on. In three rounds of
an attack on a learned model (recipe `durability_digits`, averaging) it is not: BA is at most 0, 26 and 4 %, seeds 0 to
2. Attacked from the first round it is (BA 100 %, Dirichlet 1).

For a pixel trigger on CIFAR-10 their commands compare it with a baseline, and with Neurotoxin, at 20 times the
encoder's rate and 100 times the classifier's, and a server clips all updates to one norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.around import Around
from attacks.base import require
from flame.geometry.layout import StateLayout
from flame.round.client import LocalJob, LocalTraining


@dataclass(frozen=True)
class Chameleon(Around):
    """Contrastive encoder first, classifier second."""

    inner_trains = False
    reads = "images"  # a text has many labels, and no class to be like

    facilitator_class: int  # the target class of the inner attack
    weight: float  # of images under the target label, > 0
    temperature: float  # tau, > 0
    contrast: LocalTraining  # of step 1

    def __post_init__(self) -> None:
        require(self.weight > 0, "weight", self.weight, "> 0")
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def train(self, job: LocalJob) -> float:
        """The inner attack's images in both steps, its epochs in the second."""
        job = self.compromise(job)
        self.adapt(job)
        head = set(last_layer(job.model).parameters())
        encoder = [p for p in job.model.parameters() if p not in head]
        try:
            for p in encoder:
                p.requires_grad_(False)
            return job.fit(job.images)
        finally:
            for p in encoder:
                p.requires_grad_(True)

    def adapt(self, job: LocalJob) -> None:
        """Step 1 on the job's images; the last layer is left alone."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            weights = torch.where(y == self.facilitator_class, self.weight, 1.0)
            return contrastive_loss(features(model, x), y, weights, self.temperature)

        self.contrast.fit(
            job.model,
            job.images,
            job.normalise,
            job.stream("contrast"),
            round=job.round,
            objective=objective,
            view=job.view("contrast augment"),
        )


def last_layer(model: nn.Module) -> nn.Module:
    """The module of the last trainable tensors, the classifier."""
    entry = next(e for e in StateLayout.of(model).entries if e.block == "head")
    return model.get_submodule(entry.key.rpartition(".")[0])


def features(model: nn.Module, x: Tensor) -> Tensor:
    """[B, k] what the last layer is given for images [B, C, H, W], scaled to unit length."""
    seen: list[Tensor] = []
    handle = last_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return F.normalize(seen[0], dim=1)


def contrastive_loss(f: Tensor, y: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Mean over images of weights [B] times the loss of step 1, from unit features [B, k] and labels [B].

    0 for an image that is alone with its label.
    """
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    logits = (f @ f.T / temperature).masked_fill(itself, -torch.inf)
    log_p = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0)  # [B, B]
    peers = (y[:, None] == y) & ~itself
    return -(weights * (log_p * peers).sum(1) / peers.sum(1).clamp_min(1)).mean()
