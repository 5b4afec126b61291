"""Snowball (Qin et al., "Resisting Backdoor Attacks in Federated Learning via Bidirectional Elections and Individual
Perspective", AAAI 2024): a few clients are elected by all, then admit further ones step by step.

Bottom-up election: in each chosen layer every client votes. k-means of all updates, started from the voter's own and
from those furthest from it, gives the voter's cluster, and everyone in it receives the clustering's Calinski-Harabasz
score, scaled to [0, 1] over the voters of the layer. The clients with most votes are elected.

Top-down election: a variational autoencoder is trained on the differences of each two of the elected. In every step it
is trained further on those of all who are in by now, and the clients whose differences to these, both ways round, it
reconstructs best come in too, until the target is reached. Those who are in are averaged.

Cost: every epoch sees k (k - 1) differences when k are in, each as long as the chosen layers, of resnet8 794 numbers of
77,754. Under the defaults a round of 10 clients takes 390 training steps, 1.1 s of one core as measured; one of 50
takes 17 times as many steps, one of 100 75 times. The autoencoder has 2 S^H weights for each number of these layers,
and 16 bytes for each weight, so that a model of a large vocabulary is refused.

Deviations and open points: written after the authors' code (zhenqincn/Snowball), whose layers it takes: the first and
the last, tensor by tensor in the first stage, together in the second. A bias is a tensor and has as many votes as a
weight; the authors' models of MNIST and CIFAR-10 have none there. The authors put differences through a sigmoid as they
are; here they are divided by the round's typical one first, so that small updates do not all look alike to the
autoencoder, and the sigmoid bounds what a hostile client sends. Shares of clients are rounded up (there, the target is
rounded down), and at least two are elected, as one has no differences. A difference of 0 counts as any other. Clients
with equally many votes are ranked by closeness to all others. The autoencoder meets the clients in the order of their
numbers, so that the order of arrival plays no part. Rounds of one or two clients accept everyone. Uniform mean (there,
by sample counts). BatchNorm statistics are averaged over the accepted clients, counters stay the server's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, uniform
from flame.defenses.kmeans import kmeans, within
from flame.defenses.krum import lowest
from flame.defenses.points import distances, embed
from flame.defenses.vae import VAE, errors, fit
from flame.geometry.layout import StateLayout
from flame.geometry.products import squared_distances
from flame.round.types import ServerState, Updates, Verdict

MOST_WEIGHTS = 1 << 27  # of the autoencoder: with gradients and Adam's moments 2 GB


@dataclass(frozen=True)
class TopDown:
    """The second stage: who is like the elected comes in, until the target is reached."""

    target: float  # M, share of the clients that is accepted in the end, (0, 1]
    step: float  # M^E, share of the clients that comes in at a time, (0, 1]
    hidden: int  # S^H, width of the autoencoder's hidden layers, >= 1
    latent: int  # S^L, length of its latent vector, >= 1
    first_epochs: int  # E^VI, of training on the elected, >= 1
    epochs: int  # E^VT, of further training before each step, >= 1

    def __post_init__(self) -> None:
        for key in ("target", "step"):
            _check_share(f"top_down.{key}", getattr(self, key))
        for key in ("hidden", "latent", "first_epochs", "epochs"):
            _check_count(f"top_down.{key}", getattr(self, key))

    def check_width(self, numbers: int) -> None:
        """A ValueError if the autoencoder of layers with so many numbers does not fit a machine."""
        if 2 * self.hidden * numbers > MOST_WEIGHTS:
            raise ValueError(
                f"defense=snowball trains an autoencoder on the first and the last layer, here {numbers:,} numbers;"
                f" with defense.top_down.hidden={self.hidden} it would have {2 * self.hidden * numbers:,} weights: must"
                f" be at most {MOST_WEIGHTS:,}; take a smaller vocabulary or embedding, lower"
                " defense.top_down.hidden, or take another defense"
            )

    def extend(self, elected: Tensor, rows: Tensor, stream: Generator) -> Tensor:
        """[n] bool, the clients under `elected` [n] bool and those that they admit by `rows` [n, p] float32."""
        target, step = (part_of(share, len(rows)) for share in (self.target, self.step))
        inside, scale = elected.clone(), typical_difference(rows)
        if int(inside.sum()) >= target:
            return inside
        model = VAE(rows.shape[1], self.hidden, self.latent, stream)
        fit(model, among(rows[inside], scale), self.first_epochs, stream)
        while (missing := target - int(inside.sum())) > 0:
            fit(model, among(rows[inside], scale), self.epochs, stream)
            both_ways = between(rows[~inside], rows[inside], scale)  # [n - k, 2 k, p]
            found = errors(model, both_ways.flatten(0, 1), stream).view(both_ways.shape[:2]).mean(dim=1)
            inside[~inside] = lowest(found, min(step, missing))
        return inside


@dataclass(frozen=True)
class Snowball:
    """The mean of the clients that others elect and of those that the elected admit."""

    suspects: int  # updates furthest from a voter that start clusters of their own, >= 1
    elected: float  # share of the clients that is elected by all, (0, 1]
    start: int  # first round, from 0, in which the elected admit others, >= 0
    top_down: TopDown

    def __post_init__(self) -> None:
        _check_count("suspects", self.suspects)
        _check_share("elected", self.elected)
        if self.start < 0:
            raise ValueError(f"defense.start={self.start} is out of range: must be a round, >= 0 (0: from the first)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        n, order = len(updates), updates.ids.argsort(stable=True)
        self.top_down.check_width(sum(span.stop - span.start for span in end_layers(updates.layout)))
        accepted = torch.ones(n, dtype=torch.bool)
        if n > 2:
            layers = [updates.rows[:, span][order] for span in end_layers(updates.layout)]
            remote = updates.geometry.squared_distances("weights_only").sum(dim=1)[order]
            inside = self.elect(layers, remote)
            if state.round >= self.start:
                inside = self.top_down.extend(inside, torch.cat(layers, dim=1), stream)
            accepted[order] = inside
        shares = uniform(accepted)
        return Verdict(replace(state, row=average(state, updates, shares)), shares)

    def elect(self, layers: Sequence[Tensor], remote: Tensor) -> Tensor:
        """[n] bool, who has most votes over all `layers` [n, p]; equals by distance `remote` [n] from all others."""
        wide = [part.double() for part in layers]
        received = torch.stack([votes(embed(part @ part.T), min(self.suspects, len(part) - 2)) for part in wide])
        return lowest(ranks(-received.sum(dim=0), remote), max(2, part_of(self.elected, len(remote))))


def part_of(share: float, n: int) -> int:
    """ceil(share * n); products like 0.1 * 30 count as the whole number they stand for."""
    return math.ceil(share * n - 1e-9)


def typical_difference(rows: Tensor) -> float:
    """Root mean square of a coordinate of the difference of two of `rows` [n, p], for the median pair; never 0."""
    wide = rows.double()
    apart = squared_distances(wide @ wide.T)[tuple(torch.triu_indices(len(rows), len(rows), offset=1))]
    return max(float(apart.median() / rows.shape[1]) ** 0.5, torch.finfo(rows.dtype).tiny)


def among(rows: Tensor, scale: float) -> Tensor:
    """[k (k - 1), p] in [0, 1], the differences of each two of `rows` [k, p], in units of `scale`, squashed."""
    first, second = (~torch.eye(len(rows), dtype=torch.bool)).nonzero().T
    return ((rows[first] - rows[second]) / scale).sigmoid()


def between(outside: Tensor, inside: Tensor, scale: float) -> Tensor:
    """[r, 2 k, p] in [0, 1], differences of `outside` [r, p] to each of `inside` [k, p], then the other way round."""
    gaps = (outside[:, None] - inside) / scale  # [r, k, p]
    return torch.cat([gaps, -gaps], dim=1).sigmoid()


def end_layers(layout: StateLayout) -> list[slice]:
    """Where the tensors of the first and of the last trainable layer lie in a row."""
    trainable = [e for e in layout.entries if e.block in ("trunk", "head")]
    first = trainable[0].key.rpartition(".")[0]
    return [slice(e.start, e.stop) for e in trainable if e.block == "head" or e.key.rpartition(".")[0] == first]


def votes(points: Tensor, suspects: int) -> Tensor:
    """[n] float64, the scaled scores that each of `points` [n, p] receives from those that it shares a cluster with."""
    furthest = distances(points).argsort(dim=1, descending=True)[:, :suspects]  # [n, c]
    members = kmeans(points, torch.cat([points[:, None], points[furthest]], dim=1))  # [voter, n, c + 1]
    own = members.diagonal(dim1=0, dim2=1).T  # [voter, c + 1], the voter's cluster
    scores = calinski_harabasz(points, members)
    low, high = scores.min(), scores.max()
    scaled = (scores - low) / (high - low) if high > low else torch.ones_like(scores)
    return scaled @ (members @ own[:, :, None])[..., 0]


def calinski_harabasz(points: Tensor, members: Tensor) -> Tensor:
    """[...], spread between clusters over spread within, per degree of freedom; 0 where there is only one cluster.

    As scikit-learn has it, 1 where the clusters have no spread.
    """
    n, k = points.shape[-2], (members.sum(dim=-2) > 0).sum(dim=-1)
    inner, total = within(points, members), within(points, torch.ones_like(members[..., :1]))
    ratio = torch.where(inner > 0, (total - inner) * (n - k) / (inner * (k - 1)), 1.0)
    return torch.where(k > 1, ratio, 0.0)


def ranks(first: Tensor, second: Tensor) -> Tensor:
    """[n], places by `first` [n], equal to nine digits, then by `second` [n]."""
    scale = first.abs().max().clamp_min(torch.finfo(first.dtype).tiny)
    by_second = second.argsort(stable=True)
    order = by_second[(first / scale)[by_second].round(decimals=9).argsort(stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _check_share(key: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"defense.{key}={value} is out of range: must be in (0, 1], a share of the clients")


def _check_count(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"defense.{key}={value} is out of range: must be a whole number >= 1")
