"""FLShield (Kabir, Song, Rashid and Mehnaz, "FLShield: A Validation Based Federated Learning Framework to Defend
Against Poisoning Attacks", IEEE S&P 2024): clients try one another's models, on data that stays with them.

1. The updates are condensed into representative models, so that nobody tries the model of a single client: means of
   k-means clusters of the updates' cosine distances (k by the best silhouette), or one for each client (bijective, and
   for a cluster of one), its own update mixed with those of others by ReLU(cosine), each cut to its own length.
2. Every client of the round reports, for each representative and each class, by how much the mean loss on its own
   images is below the global model's: the loss impact per class (LIPC). Classes that it has no images of are imputed.
3. The reports are split in two by k-means, and only the larger part is believed.
4. A representative scores its lowest mean impact over the classes; the upper half of the scores is accepted, with the
   clients behind it, whose updates are clipped to the median length of all and averaged.

Deviations and open points: written after the authors' public code (ehsanul9511/FLShield at afe44744) and the paper's
abstract; its sections could not be checked and are not cited. As in that code, fewer than ten clients are represented
one by one, and validators are all clients of the round. Where it imputes by iterated regressions, the (lower) median of
those who have the class is taken; a class that nobody has is left out. k-means is that of `kmeans.py` (there, with
random starts), equal parts are both believed, and losses are cut to [0, 1e6]. Validators try models on images that they
have trained on (there, on a tenth of theirs, held out). The mix for a cluster of one is its client's (there, by a slip
of the index, another's). Clipped updates are averaged, where that code divides by the sum of their clip factors. A
client that nobody resembles is represented by itself. So is one that sends nothing: its impact is 0, and where every
other cluster makes some class worse, it is all that is accepted. Lengths and cosines are those of the trainable
parameters; BatchNorm statistics are mixed like everything else and averaged over the accepted clients, unclipped, and
counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flame.defenses.base import average, check_choice, clip_to, laboratory, uniform
from flame.defenses.kmeans import optimum, partitions
from flame.defenses.krum import lowest
from flame.defenses.points import embed
from flame.geometry.products import Geometry
from flame.round.types import ServerState, Updates, Verdict

FEWEST = 10  # clients that are clustered
MOST_CLUSTERS = 14
LARGEST_LOSS = 1e6
WIDE = 20_000  # numbers of a report from which distances alone are clustered, as of a vocabulary of 10,000 words


@dataclass(frozen=True)
class FLShield:
    """The clipped mean of clients whose representatives lower the loss of every class most."""

    representatives: str  # clusters | bijective
    siblings: float  # share of others in a client's own representative, [0, 1]
    images_per_class: int  # that a validator tries at most, >= 1; of text, tokens

    needs_lab: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("representatives", self.representatives, ("clusters", "bijective"))
        if not 0 <= self.siblings <= 1:
            raise ValueError(f"defense.siblings={self.siblings} is out of range: must be in [0, 1], a share")
        if self.images_per_class < 1:
            raise ValueError(f"defense.images_per_class={self.images_per_class} is out of range: must be >= 1")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The clients behind the accepted representatives share equally."""
        mixing, behind = self.represented(updates.geometry)
        models = chain([updates.base], (updates.base + mean @ updates.rows for mean in mixing.float()))
        losses = laboratory("flshield", updates).class_losses(models, self.images_per_class)  # [v, 1 + k, classes]
        reports = completed(impacts(losses))  # [v, k, classes]
        believed = larger_part(reports.flatten(1))  # [v]
        chosen = lowest(-lowest_impacts(reports[believed]), len(mixing) - len(mixing) // 2)  # [k]
        shares, norms = uniform(chosen[behind]), updates.geometry.norms("weights_only")
        bound = float(norms.quantile(0.5))
        factors = clip_to(bound, norms)
        info = {
            "flshield/clip_bound": bound,
            "flshield/representatives": float(len(mixing)),
            "flshield/believed": float(believed.double().mean()),
        }
        return Verdict(replace(state, row=average(state, updates, shares, factors)), shares, info, factors)

    def represented(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """[k, n] float64, each representative's shares of the clients, and [n], the one that a client stands behind."""
        gaps, norms = geometry.cosine_distances("weights_only", "update"), geometry.norms("weights_only")
        mixed = bijective(1 - gaps, norms, self.siblings)  # [n, n]
        if self.representatives == "bijective" or len(norms) < FEWEST:
            return mixed, torch.arange(len(norms))
        members = clusters(gaps)
        sizes, someone = members.sum(dim=0), members.argmax(dim=0)  # [k]
        means = members.T / sizes[:, None]  # [k, n]
        return torch.where(sizes[:, None] == 1, mixed[someone], means), members.argmax(dim=1)


def bijective(cosines: Tensor, norms: Tensor, siblings: float) -> Tensor:
    """[n, n] float64, rows add up to 1: a client's own share, and `siblings` of others like it [n, n], none longer."""
    others = cosines.relu() * (norms[:, None] / norms).clamp_max(1)
    others = others.nan_to_num(0).fill_diagonal_(0)
    mixing = siblings * others / others.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return mixing + torch.diag(1 - mixing.sum(dim=1))


def clusters(gaps: Tensor) -> Tensor:
    """[n, k] float64, one-hot: k-means of the rows of distances `gaps` [n, n], none empty, k by the best silhouette."""
    _, *found = partitions(gaps, min(len(gaps) - 1, MOST_CLUSTERS))
    return max((members[:, members.any(dim=0)] for members in found), key=lambda members: silhouette(gaps, members))


def silhouette(gaps: Tensor, members: Tensor) -> float:
    """Mean silhouette (Rousseeuw, 1987) of clusters `members` [n, k] under distances `gaps` [n, n]; 0 for a client that
    is alone, and for a single cluster."""
    sizes, own = members.sum(dim=0), members.bool()
    if len(sizes) < 2:
        return 0.0
    sums = gaps @ members  # [n, k]
    within = sums[own] / (sizes - 1).clamp_min(1).expand_as(members)[own]  # [n]
    beside = (sums / sizes).masked_fill(own, torch.inf).min(dim=1).values
    wider = torch.maximum(within, beside)
    alone = sizes.expand_as(members)[own] == 1
    return float(torch.where(alone | (wider == 0), 0.0, (beside - within) / wider).mean())


def impacts(losses: Tensor) -> Tensor:
    """[v, k, classes], by how much each model lowers a validator's loss [v, 1 + k, classes]; the first is the global
    model's. NaN stays, and is a class without images."""
    bounded = losses.clamp(0, LARGEST_LOSS)
    return bounded[:, :1] - bounded[:, 1:]


def completed(reports: Tensor) -> Tensor:
    """[v, k, classes'], what is missing in `reports` [v, k, classes] as the median says; without classes of nobody."""
    usual = reports.nanmedian(dim=0, keepdim=True).values  # [1, k, classes]
    return torch.where(reports.isnan(), usual, reports)[:, :, ~usual[0].isnan().any(dim=0)]


def larger_part(reports: Tensor) -> Tensor:
    """[v] bool, the larger of two clusters of `reports` [v, p]; everyone where they are equal."""
    if reports.shape[1] > WIDE:
        reports = embed(reports @ reports.T)  # points as far apart, with v numbers each
    members = optimum(reports, 2).bool()  # [v, 2]
    larger = 2 * members.sum(dim=0) > len(reports)
    return members[:, larger].any(dim=1) if bool(larger.any()) else torch.ones(len(reports), dtype=torch.bool)


def lowest_impacts(reports: Tensor) -> Tensor:
    """[k], over the classes the lowest mean of `reports` [v, k, classes] over the validators; inf without a class."""
    return F.pad(reports.mean(dim=0), (0, 1), value=torch.inf).min(dim=1).values
