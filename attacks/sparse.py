"""Sparse, the hybrid Byzantine attack (Ozfatura, Ozfatura, Buyukates, Coskuner, Kupcu and Gunduz, "Aggressive or
Imperceptible, or Both: Network Pruning Assisted Hybrid Byzantines in Federated Learning", 2024, arXiv 2404.06230),
after its authors' library (CRYPTO-KU/FL-Byzantine-Library 32922ca), which decides here: of the paper we had the
abstract.

A pruned network shows which weights matter. There all colluders go far, and elsewhere as far as ALIE:

    sent = mu + s sigma      s = scale in the mask, z outside; mu, sigma of the honest updates, by coordinate

The mask is what FORCE keeps of the first model (`skeleton.py`), with all biases and all of BatchNorm's parameters. It
is made once and remembered. `cap` pulls outlying sigmas in the mask down to a bound; `bounded` is sparse_optimized of
the library: the largest z for which the squared distances to all honest updates add up to no more than those of the
honest update that has the smallest sum.

Threat model: the colluders see all honest updates (`Scene.sight`), and images of the whole training set.

What is an accident of the authors' code, and what is made of it:

* They draw labels and take them for positions (data_loader.py, get_pruning_dataset). So FORCE sees as many images as
  there are classes, the first ones, each as often as its number is a label. Here too, by default: `images: drawn` is
  what they meant. A batch is drawn as theirs, without replacement.
* Their loss is nll_loss of whatever the model answers (pruners/force.py). ResNet-20, their default, and ResNet-8 end in
  log_softmax, so that it is the cross entropy: so here. Their other models answer logits, of which it is minus the mean
  logit of the label: `loss: logits`. On which models the paper rests we could not read.
* `direction: against_mean` has the direction `std` in the first round.

Deviations: their clients send momenta, ours send updates, which point the other way. n and m of z_max are a round's
(theirs: of all clients), and z_max is never below 0. The mask is of the global model at the first round under attack,
and each colluder of that round makes it, to the same bits unless the model draws (dropout). Of fewer than three
deviations none is outlying. Without two honest updates there is no deviation, and what is sent is their mean:
`attack/idle` counts it, and a run where that is all is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.alie import z_max
from attacks.base import Attack, Crafted, Scene, require, seen
from attacks.crafting import Crafting
from attacks.differences import ROUNDING
from attacks.line_search import honest_moments
from attacks.skeleton import Loss, skeleton
from flame.data.samples import Dataset, Samples
from flame.round.client import LocalJob, cross_entropy, rows
from flame.round.device import device_of
from flame.round.seeding import generator

MASK = "attack/sparse"  # memory: [d] bool
DIRECTIONS = ("std", "against_mean")
IMAGES = ("labels", "drawn")


def minus_logit(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Minus the mean logit of the label: a likelihood that nothing has normalised."""
    return F.nll_loss(*rows(model(x).float(), y))


def beyond_quartiles(std: Tensor) -> Tensor:
    """The upper fence, 1.5 interquartile ranges above the third quartile."""
    low, high = torch.quantile(std, std.new_tensor([0.25, 0.75]))
    return high + 1.5 * (high - low)


def beyond_deviations(std: Tensor) -> Tensor:
    """Two standard deviations above the mean."""
    return std.mean() + 2 * std.std()


def beyond_elbow(std: Tensor) -> Tensor:
    """The value after the fall that exceeds the next one most, from the largest value on."""
    ordered = std.sort(descending=True).values
    falls = -ordered.diff()
    return ordered[(falls[:-1] / (falls[1:] + 1e-8)).argmax() + 1]


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "logits": minus_logit}
CAPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda std: std.new_tensor(math.inf),
    "iqr": beyond_quartiles,
    "z_score": beyond_deviations,
    "gradient": beyond_elbow,
}


@dataclass(frozen=True)
class Sparse(Crafting):
    """Far in a few weights, near in all others."""

    scale: float  # standard deviations in the mask, > 0
    z: float | None  # elsewhere, > 0; None: z_max
    bounded: bool  # True: z is the largest that the sum of distances allows, whatever `z` says
    direction: str  # std (plus the deviation) | against_mean (against the sign of the mean)
    cap: str  # none | iqr | z_score | gradient: of deviations in the mask
    keep: float  # share of the weights in the mask, in (0, 1]
    steps: int  # of the pruning, >= 1
    batches: int  # in each step, >= 1
    batch_size: int  # images, >= 2
    loss: str  # cross_entropy | logits
    images: str  # labels (taken for positions) | drawn
    drawn: tuple[Samples, ...] = field(default=(), kw_only=True)  # the batches, once it is prepared

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.scale < math.inf, "scale", self.scale, "in (0, inf)")
        require(self.z is None or 0 < self.z < math.inf, "z", self.z, "null (z_max) or in (0, inf)")
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1], a share")
        for key, least in (("steps", 1), ("batches", 1), ("batch_size", 2)):
            require(getattr(self, key) >= least, key, getattr(self, key), f"a whole number >= {least}")
        for key, known in (("direction", DIRECTIONS), ("cap", CAPS), ("loss", LOSSES), ("images", IMAGES)):
            require(getattr(self, key) in known, key, repr(getattr(self, key)), f"one of {', '.join(known)}")

    @property
    def omniscient(self) -> bool:
        """The authors grant it."""
        return True

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """With the images that the pruning sees; a ValueError if a label is no position."""
        train = dataset.train
        y, n = train.y, len(train)
        if self.images == "labels" and (y.dim() > 1 or int(y.min()) < 0 or int(y.max()) >= n):
            raise ValueError(
                f"attack.images=labels takes labels for positions of training samples, as the authors' code does, and"
                f" dataset={dataset.name} has labels that are none: must be drawn"
            )
        places = [torch.randperm(n, generator=stream)[: self.batch_size] for _ in range(self.batches)]
        drawn = [train[y[at] if self.images == "labels" else at] for at in places]
        return replace(self, drawn=tuple(drawn)), dataset

    def check_round(self, clients: int, colluders: range) -> None:
        """A ValueError if no round ever has two honest clients."""
        if clients - colluders[0] < 2:
            raise ValueError(
                f"clients_per_round={clients} and poisoned_model_rate leave a round at most one honest client, whose"
                " update has no deviation, so that all would send it as it is; lower the rate, or say attack=none"
            )

    def train(self, job: LocalJob) -> float:
        """Honestly; before the first attack the mask is made."""
        if MASK not in job.memory:
            device = device_of(job.model)
            batches = [(job.normalise(part.x.to(device)), part.y.to(device)) for part in self.drawn]
            stream = generator(job.seed, "skeleton")  # the same for all
            job.notes["mask"] = skeleton(job.model, batches, LOSSES[self.loss], self.keep, self.steps, stream)
        return super().train(job)

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """One vector for all."""
        mean, std = honest_moments(scene, self.columns(scene))
        mask = F.pad(known(scene), (0, len(mean) - scene.layout.trainable))  # of statistics none is in it
        away = std.clone()
        away[mask] = self.scale * capped(std[mask], self.cap)
        if self.bounded:
            away[~mask] *= room(seen(scene).others[:, self.columns(scene)] - mean, away, mask)
        else:
            away[~mask] *= z_max(scene.clients, len(own)) if self.z is None else self.z
        turned = self.direction == "against_mean" and MASK in scene.state.memory
        return mean - away * mean.sign() if turned else mean + away

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """The mask is remembered, too."""
        return Crafted(super().craft(rows, scene, stream).rows, {MASK: known(scene)})

    def idle(self, sent: Tensor, rows: Tensor, scene: Scene) -> Tensor:
        """See `Attack.idle`; also who sends the mean of the honest, where nothing deviates."""
        columns = self.columns(scene)
        mean, _ = honest_moments(scene, columns)
        return super().idle(sent, rows, scene) | ((sent[:, columns] - mean).norm(dim=1) <= ROUNDING * mean.norm())


def known(scene: Scene) -> Tensor:
    """[d] bool, the mask: remembered, or as the first colluder has just made it."""
    return scene.state.memory[MASK] if MASK in scene.state.memory else scene.notes[0]["mask"]


def capped(std: Tensor, cap: str) -> Tensor:
    """Standard deviations [k], none above the bound."""
    return std if len(std) < 3 else std.clamp(max=CAPS[cap](std))


def room(centred: Tensor, away: Tensor, mask: Tensor) -> float:
    """max z >= 0 with sum_i ||c_i - p||^2 <= min_i sum_j ||c_i - c_j||^2, p = `away` in the mask, z `away` elsewhere.

    c [n - m, k] is centred on the mean, so that this is ||p||^2 <= min_i ||c_i||^2. 0 if p is too long for any z.
    """
    loud, quiet = (float(away[part].double().square().sum()) for part in (mask, ~mask))
    if quiet == 0:
        return 0.0
    nearest = float(centred.double().square().sum(1).min())
    return math.sqrt(max(0.0, nearest - loud) / quiet)
