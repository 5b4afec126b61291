"""Alternating minimization (Bhagoji, Chakraborty, Mittal and Calo, "Analyzing Federated Learning through an Adversarial
Lens", ICML 2019), after the authors' code (inspire-group/ModelPoisoning 6e1ed3b, malicious_agent.py, strategy
converge_train_alternate_wt_o_dist_self); FLPoison's AlterMin. It is no kin of Min-Max.

1. The client trains as a benign one; where that ends is w_b.
2. From the global model again, it trains on its clean images by L + rho / 2 ||w - w_b||^2, so that its update stays
   near a benign one.
3. After every `every` such steps comes one on poisoned images alone, while their loss is above 0, and what it moves is
   multiplied by `boost`: the others' averaging is undone within the training, not at its end.

Distance and boost are of weights, tensors of two or more axes, as in the strategy's name (wt_o).

Deviations: poisoned images are those that the inner attack makes of the client's own, a batch of them in each such
step. The authors have one attacker and a few test images with a wrong label, always the same ones. Steps on poisoned
images are plain gradient descent at the rate of the moment, for which the authors have an optimiser like the other one.
FLPoison (vio1etus/FLPoison 368c940, attackers/altermin.py) takes step 3 once, at the end, and its distance, a number of
numpy, has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch
from torch import Generator, Tensor, nn

from attacks.around import Around
from attacks.base import Attack, require
from attacks.differences import changed
from attacks.snapshot import Snapshot
from flame.data.samples import Dataset, Samples
from flame.round.client import LocalJob, ModelHook, batches


@dataclass(frozen=True)
class AlterMin(Around):
    """Stealth and backdoor in turns."""

    inner_trains = False

    rho: float  # of the distance to the benign model, >= 0
    every: int  # clean steps before one on poisoned images, >= 1
    boost: float  # lambda, of what that one moves, > 0

    def __post_init__(self) -> None:
        require(0 <= self.rho < float("inf"), "rho", self.rho, "in [0, inf)")
        require(self.every >= 1, "every", self.every, "a whole number >= 1")
        require(0 < self.boost < float("inf"), "boost", self.boost, "in (0, inf)")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The inner attack is prepared; a ValueError if it poisons batch by batch."""
        if getattr(self.backdoor, "mixing", None) is not None:
            raise ValueError(
                "attack.backdoor.mixing is another way to mix clean and poisoned images, and AlterMin has its own: must"
                " be null"
            )
        return super().prepare(dataset, stream)

    def train(self, job: LocalJob) -> float:
        """Steps 1 to 3; the loss is that of step 2, the distance included."""
        start = Snapshot.of(job.model)
        bad = self.compromise(job)
        poisoned = bad.images[changed(job.images, bad.images)]
        job.notes["poisoned"] = torch.tensor(len(poisoned))
        job.fit(job.images, training=bad.training)
        benign = {name: p.detach().clone() for name, p in weights(job.model)}
        start.load(job.model)

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            squares = [(p - benign[name]).square().sum() for name, p in weights(model)]
            return bad.training.loss(model, x, y) + self.rho / 2 * torch.stack(squares).sum()

        after_step = self._in_turns(bad, poisoned) if len(poisoned) else None
        return job.fit(job.images, training=bad.training, objective=objective, after_step=after_step)

    def _in_turns(self, job: LocalJob, poisoned: Samples) -> ModelHook:
        """Step 3, after each step of the clean training."""
        steps, stream, waiting = count(1), job.stream("poisoned batches"), list[Tensor]()
        view, rate = job.view("poisoned augment"), job.training.rate(0, job.round)

        def turn(model: nn.Module) -> None:
            if next(steps) % self.every:
                return
            if not waiting:
                waiting.extend(batches(len(poisoned), job.training.batch_size, stream))
            batch, device = waiting.pop(0), next(model.parameters()).device
            x, y = job.normalise(view(poisoned, batch).to(device)), poisoned.y[batch].to(device)
            loss = job.training.loss(model, x, y)
            if float(loss.detach()) <= 0:
                return
            slopes = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, slope in zip(model.parameters(), slopes, strict=True):
                    p.sub_(slope, alpha=rate * (self.boost if p.dim() > 1 else 1.0))

        return turn


def weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable tensors of two or more axes, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.dim() > 1]
