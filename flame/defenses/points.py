"""Clients as a handful of points: principal coordinates, k-means, the gap statistic. Nothing here sees d coordinates.

k-means starts from given centres, or from the mean's furthest point and then each time the point furthest from all
centres so far (Gonzalez, 1985), and so draws nothing at random; k-means++ with restarts is what public code has.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from flame.geometry.products import squared_distances

STEPS = 100  # of Lloyd's algorithm; a few suffice for a round's clients
ROUNDING = 1e-9  # of the largest value; points closer than that are one
SMALLEST = 1e-12  # sum of squares in a box of side 1 below which it is 0


def embed(gram: Tensor) -> Tensor:
    """[n, n] float64, points with the distances of the n vectors behind a Gram matrix, by falling variance.

    The first p columns are the vectors' first p principal components, up to sign. The mean of the points is 0.
    """
    centred = gram - gram.mean(dim=0)
    centred = centred - centred.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()).flip(dims=(1,))


def furthest_first(points: Tensor, k: int) -> Tensor:
    """[..., k, p], centres among `points` [..., n, p], each the furthest from those before it."""
    gaps = (points - points.mean(dim=-2, keepdim=True)).square().sum(dim=-1)  # [..., n]
    centres: list[Tensor] = []
    for _ in range(k):
        index = gaps.argmax(dim=-1)[..., None, None].expand(*points.shape[:-2], 1, points.shape[-1])
        centres.append(points.gather(-2, index))
        own = (points - centres[-1]).square().sum(dim=-1)
        gaps = own if len(centres) == 1 else torch.minimum(gaps, own)
    return torch.cat(centres, dim=-2)


def kmeans(points: Tensor, centres: Tensor) -> Tensor:
    """[..., n, k] float64, one-hot clusters of `points` [..., n, p] by Lloyd's algorithm from `centres` [..., k, p]."""
    members = torch.zeros(*points.shape[:-1], centres.shape[-2], dtype=points.dtype)
    for _ in range(STEPS):
        nearest = (points[..., :, None, :] - centres[..., None, :, :]).square().sum(dim=-1).argmin(dim=-1)
        again = torch.zeros_like(members).scatter_(-1, nearest[..., None], 1.0)
        if torch.equal(again, members):
            break
        members, counts = again, again.sum(dim=-2)[..., None]  # [..., k, 1]
        centres = torch.where(counts > 0, members.mT @ points / counts.clamp_min(1), centres)
    return members


def within(points: Tensor, members: Tensor) -> Tensor:
    """[...], sum of squared distances of `points` [..., n, p] to the means of their clusters `members` [..., n, k]."""
    means = members.mT @ points / members.sum(dim=-2)[..., None].clamp_min(1)
    return (points - members @ means).square().sum(dim=(-2, -1))


def gap_clusters(points: Tensor, most: int, references: int, stream: Generator) -> int:
    """The number of clusters of `points` [n, p], at most `most`, by the gap statistic (Tibshirani et al., JRSS B 2001).

    The smallest k whose gap is not below the next one's by more than its standard error s; references are uniform in
    the points' box. A coordinate that differs by its own rounding only is constant.
    """
    low, sides = points.min(dim=0).values, points.max(dim=0).values - points.min(dim=0).values
    sides = torch.where(sides > ROUNDING * points.abs().max(dim=0).values, sides, 0.0)
    size = sides.max().clamp_min(torch.finfo(points.dtype).tiny)
    scaled = torch.where(sides > 0, points - low, 0.0) / size
    different = len(scaled.unique(dim=0))
    most = min(most, different, max(2, different - 1))
    uniform = torch.rand(references, *points.shape, dtype=points.dtype, generator=stream) * (sides / size)
    every = torch.cat([scaled[None], uniform])  # [references + 1, n, p]
    spreads = [within(every, kmeans(every, furthest_first(every, k + 1))) for k in range(most)]
    if len(spreads) < 2:
        return 1
    logs = torch.stack(spreads).clamp_min(SMALLEST).log()  # [most, references + 1]
    gaps = logs[:, 1:].mean(dim=1) - logs[:, 0]
    errors = logs[:, 1:].std(dim=1, correction=0) * (1 + 1 / references) ** 0.5
    enough = gaps[:-1] >= gaps[1:] - errors[1:]
    return int(enough.int().argmax()) + 1 if bool(enough.any()) else most


def distances(points: Tensor) -> Tensor:
    """[n, n] float64, Euclidean distances between `points` [n, p]."""
    return squared_distances(points @ points.T).sqrt()
