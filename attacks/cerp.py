"""CerP (Lyu, Han, Wang, Liu, Wang, Liu and Zhang, "Poisoning with Cerberus: Stealthy and Colluded Backdoor Attack
against Federated Learning", AAAI 2023): a trigger tuned to the global model leaves poisoned training little to change,
and what it changes is kept near the benign model and different between the colluders.

In each compromised client:
1. the trigger's values descend the global model's loss for the target class, one pass over the data, and are projected
   onto the L2 ball of radius `radius` around where they started;
2. a benign model w' is trained;
3. from the global model again, the poisoned model w descends, with the remembered models w_j of the other colluders,

       L(w) + alpha ||w - w'||_2 + beta sum_j (mean over tensors of cos(w, w_j)).

The attacker knows the colluders' data and models and the global models they are sent. Steps and defaults are those of
the authors' code (xtLyu/CerP 46bdce0); the paper was read in its abstract and outline only. As there, attackers train
half as long as benign clients and at half their rate.

What its BA means: some of it is an adversarial patch. Without one poisoned image (poisoned_data_rate=0; digits, 24
rounds, Dirichlet 1, seeds 0 to 2) the trigger of step 1 alone has BA 57, 39 and 16 % before FLAME with weights alone,
of attackers that train as long as benign clients: most of the 47 % that they have with poison. At the authors' pace it
is 19, 32 and 14 %, and with poison 94, 98 and 100 %: FLAME admits 92 to 100 % of those.

Deviations: one pass is over the client's own data, and the colluders' mean is where the next round starts (there one
search goes through all colluders' data); w_j is what colluder j sent in the last attacked round, if it was there (there
those of this round that were trained before); pixels are in [0, 1] (theirs normalised and cut to [-1, 1]); w' is
trained as benign clients are (there for one pass).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.base import Crafted, Scene, require
from attacks.collusion import others, own_updates, remembered
from attacks.constrain_and_scale import flat, l2_distance
from attacks.learned_trigger import LearnedTrigger
from attacks.snapshot import Snapshot
from flame.geometry.layout import StateLayout
from flame.round.client import LocalJob, batches, cross_entropy


@dataclass(frozen=True)
class CerP(LearnedTrigger):
    """Tuned trigger, controlled models."""

    key: ClassVar[str] = "attack/cerp"
    lr: float  # of step 1, of pixels in [0, 1], > 0
    radius: float  # L2, of pixels in [0, 1], >= 0
    alpha: float  # >= 0
    beta: float  # >= 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lr > 0, "lr", self.lr, "> 0")
        for key in ("radius", "alpha", "beta"):
            require(getattr(self, key) >= 0, key, getattr(self, key), ">= 0")

    def search(self, job: LocalJob) -> Tensor:
        """Step 1; the model is in evaluation mode and keeps its gradients."""
        start = self.current({}, job.images.x).values / 255
        pixels = self.current(job.memory, job.images.x).values / 255
        job.model.eval()
        for batch in batches(len(job.images), job.training.batch_size, job.stream("trigger")):
            pixels = pixels.detach().requires_grad_()
            x = self.painted(job, job.images[batch], 255 * pixels)
            loss = cross_entropy(job.model, x, self.wanted(job.images.y[batch]))
            (slope,) = torch.autograd.grad(loss, pixels)
            off = pixels.detach() - self.lr * slope - start
            pixels = (start + off * min(1.0, self.radius / max(float(off.norm()), 1e-30))).clamp(0, 1)
        return 255 * pixels.detach()

    def train(self, job: LocalJob) -> float:
        """Steps 1 to 3."""
        job.notes.update({self.key: self.search(job), "client": torch.tensor(job.client)})
        start = Snapshot.of(job.model)
        job.fit(job.images)
        benign = flat(job.model.parameters()).detach()
        start.load(job.model)
        friends = others(job, self.key, start.layout.trainable)

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            near = self.alpha * l2_distance(flat(model.parameters()), benign)
            alike = sum((likeness(model, friend, start.layout) for friend in friends), torch.zeros(()))
            return poisoned.training.loss(model, x, y) + near + self.beta * alike

        poisoned = self.compromise(job)
        return poisoned.fit(poisoned.images, objective=objective)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Rows as trained; the mean trigger and everybody's model are remembered."""
        crafted = super().craft(rows, scene, stream)
        models = scene.state.row[scene.layout.span("weights_only")] + own_updates(rows, scene)
        return replace(crafted, memory={**crafted.memory, **remembered(models, scene, self.key)})


def likeness(model: nn.Module, other: Tensor, layout: StateLayout) -> Tensor:
    """Mean over the trainable tensors of their cosine with those of another model [d]."""
    entries = [e for e in layout.entries if e.stop <= len(other)]
    cosines = [
        F.cosine_similarity(model.get_parameter(e.key).flatten(), other[e.start : e.stop], dim=0) for e in entries
    ]
    return torch.stack(cosines).mean()
