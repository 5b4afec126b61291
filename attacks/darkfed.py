"""DarkFed (Li, Wan, Ning, Hu, Xue, Zhang and Wang, "DarkFed: A Data-Free Backdoor Attack in Federated Learning", IJCAI
2024): fake clients that have no data of the task train on noise, and mimic what benign updates look like.

In each compromised client, whose own shard is not looked at but for the shape of its images:
1. shadow images are noise, normal around mid-grey; the global model's own logits are their labels, so that nothing is
   forgotten; of all, the `kept` share that are most unlike each other in image and logits is taken, greedily;
2. a share of them gets the trigger, and logits of +10 for the target class and -10 / classes for the others;
3. from the global model, in evaluation mode, w descends the squared error of the logits, on clean and on triggered
   images alike, plus the mimicry of properties,

       magnitude ||w - G||_2 + orthogonality (sum_j cos(u, u_j)^2 + cos(u, u')^2),

   over the last layer's update u, those u_j that the other colluders sent, and u', the update that the server is
   expected to make: benign updates are short and nearly orthogonal to each other. u' is the forecast of the next global
   model by double exponential smoothing of those seen.

The attacker knows the global models it is sent and the colluders' updates; no data, no other update, nothing of the
defense. Facts are from the authors' code (hustweiwan/DarkFed), the paper being read in its abstract only; there shadow
images are another public data set by default, noise a variant. Fake clients come on top of the real ones there; here
they take the places of compromised ones. There the global model is trained when the attack begins (resume_model, 465
rounds on CIFAR-10), so that its logits say something; in a run from scratch they are an untrained model's at first
(attack_rounds.start waits).

Deviations: u_j is what colluder j sent in the last attacked round, if it was there (there: what those before it in the
round have sent); shadow images are drawn and labelled anew in each round (theirs once, many more); the forecast is
Brown's (their formula lacks a bracket); the most unlike images are sought among all, not within batches; which of them
carry the trigger is drawn once a round (theirs at every visit); constant learning rate (theirs falls as a cosine).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.base import Attack, Crafted, Scene, check_class, require, share_of
from attacks.collusion import others, remembered
from attacks.constrain_and_scale import flat
from attacks.noise_masks import head_entries
from attacks.triggers import Trigger
from flame.data.samples import Dataset, Samples
from flame.geometry.layout import StateLayout
from flame.round.augment import UNCHANGED
from flame.round.client import LocalJob, LocalTraining

KEY = "attack/darkfed"
SMOOTH = (f"{KEY}/once", f"{KEY}/twice")  # [h] the last layer of the global models seen, smoothed
LOGIT = 10.0  # of the target class for a triggered image; the authors' code
SPREAD = 255.0  # grey levels, standard deviation of the noise around 127.5; theirs: 1 around 0.5 of [0, 1]


@dataclass(frozen=True)
class DarkFed(Attack):
    """Train on labelled noise, look benign."""

    own_training, reads = True, "images"

    trigger: Trigger
    target_class: int
    shadow_images: int  # drawn per client and round, >= 2
    kept: float  # share of them, in (0, 1]
    poisoned_share: float  # of what is kept, in [0, 1]
    magnitude: float  # weight, >= 0
    orthogonality: float  # weight, >= 0
    smoothing: float  # of the forecast, in (0, 1)
    client: LocalTraining  # the recipe of step 3

    def __post_init__(self) -> None:
        require(self.shadow_images >= 2, "shadow_images", self.shadow_images, "a whole number >= 2")
        require(0 < self.kept <= 1, "kept", self.kept, "in (0, 1]")
        require(0 <= self.poisoned_share <= 1, "poisoned_share", self.poisoned_share, "in [0, 1]")
        require(self.magnitude >= 0, "magnitude", self.magnitude, ">= 0")
        require(self.orthogonality >= 0, "orthogonality", self.orthogonality, ">= 0")
        require(0 < self.smoothing < 1, "smoothing", self.smoothing, "in (0, 1)")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Check the class against the data set's."""
        check_class("target_class", self.target_class, dataset)
        return self, dataset

    def stamp(self, x: Tensor) -> Tensor:
        """The trigger."""
        return self.trigger.stamp(x)

    def target(self, y: Tensor) -> Tensor:
        """The target class for all."""
        return torch.full_like(y, self.target_class)

    def train(self, job: LocalJob) -> float:
        """Steps 1 to 3."""
        layout = StateLayout.of(job.model)
        start, before = flat(job.model.parameters()).detach(), head(job.model, layout).detach()
        x, logits, poisoned = self.shadow(job)
        once, twice = smoothed(job.memory, before, self.smoothing)
        unlike = torch.cat([others(job, KEY, len(before)), (forecast(once, twice, self.smoothing) - before)[None]])
        job.notes.update(client=torch.tensor(job.client), poisoned=poisoned.sum())

        def objective(model: nn.Module, x: Tensor, index: Tensor) -> Tensor:
            model.eval()  # BatchNorm's statistics are those of real images
            errors = (model(x) - logits[index]).square().mean(1)  # [B]
            groups = [errors[poisoned[index] == flag] for flag in (False, True)]
            error = torch.stack([group.mean() for group in groups if len(group)]).sum()
            short = torch.linalg.vector_norm(flat(model.parameters()) - start)
            apart = F.cosine_similarity(unlike, (head(model, layout) - before)[None]).square().sum()
            return error + self.magnitude * short + self.orthogonality * apart

        plain = replace(job, augment=UNCHANGED)  # noise has no left and right, and the logits are of these images
        return plain.fit(Samples(x, torch.arange(len(x))), training=self.client, objective=objective)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Rows as trained; the last layers of updates and global model are remembered."""
        span = scene.layout.spans["head"]
        once, twice = smoothed(scene.state.memory, scene.state.row[span], self.smoothing)
        sent = remembered(rows[:, span].clone(), scene, KEY)
        return Crafted(rows, {**sent, SMOOTH[0]: once, SMOOTH[1]: twice})

    @torch.no_grad()
    def shadow(self, job: LocalJob) -> tuple[Tensor, Tensor, Tensor]:
        """Steps 1 and 2: images [S, C, H, W] uint8, wanted logits [S, classes], and which carry the trigger [S]."""
        stream, shape = job.stream("shadow"), job.images.x.shape[1:]
        noise = 127.5 + SPREAD * torch.randn(self.shadow_images, *shape, generator=stream)
        x = noise.clamp(0, 255).round().to(torch.uint8)
        job.model.eval()
        logits = job.model(job.normalise(x))
        keep = diverse(x.flatten(1).float(), logits, max(2, round(self.kept * len(x))))
        x, logits = x[keep], logits[keep]
        poisoned = torch.zeros(len(x), dtype=torch.bool)
        poisoned[share_of(len(x), self.poisoned_share, stream)] = True
        x[poisoned] = self.stamp(x[poisoned])
        logits[poisoned] = -LOGIT / logits.shape[1]
        logits[poisoned, self.target_class] = LOGIT
        return x, logits, poisoned


def head(model: nn.Module, layout: StateLayout) -> Tensor:
    """[h] parameters of the last layer, in the layout's order, with a gradient."""
    return flat(model.get_parameter(e.key) for e in head_entries(layout))


def diverse(images: Tensor, logits: Tensor, count: int) -> Tensor:
    """[count] places: from the first on, each the one least like the one before it, of images [S, k], logits [S, c].

    Likeness is the product of the two cosines.
    """
    unit, certain = F.normalize(images), F.normalize(logits)
    alike = (unit @ unit.T) * (certain @ certain.T)  # [S, S]
    chosen = [0]
    for _ in range(count - 1):
        alike[:, chosen[-1]] = torch.inf
        chosen.append(int(alike[chosen[-1]].argmin()))
    return torch.tensor(chosen)


def smoothed(memory: Mapping[str, Tensor], now: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """[h] each: the values seen up to now, exponentially smoothed once and twice."""
    once = torch.lerp(memory.get(SMOOTH[0], now), now, rate)
    return once, torch.lerp(memory.get(SMOOTH[1], now), once, rate)


def forecast(once: Tensor, twice: Tensor, rate: float) -> Tensor:
    """The next value (Brown's double exponential smoothing): level 2 s' - s'', trend rate / (1 - rate) (s' - s'')."""
    return 2 * once - twice + rate / (1 - rate) * (once - twice)
