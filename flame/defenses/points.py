"""Clients as a handful of points: principal coordinates and the gap statistic. Nothing here sees d coordinates."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from flame.defenses.kmeans import line_spreads, partitions, within
from flame.geometry.products import squared_distances

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


def gap_clusters(points: Tensor, most: int, references: int, stream: Generator) -> int:
    """The number of clusters of `points` [n, p], at most `most`, by the gap statistic (Tibshirani et al., JRSS B 2001).

    The smallest k whose gap is not below the next one's by more than its standard error s; references are uniform in
    the points' box. Clusters are those of `kmeans.py`. A coordinate that differs by its own rounding only is constant.
    """
    low, sides = points.min(dim=0).values, points.max(dim=0).values - points.min(dim=0).values
    sides = torch.where(sides > ROUNDING * points.abs().max(dim=0).values, sides, 0.0)
    size = sides.max().clamp_min(torch.finfo(points.dtype).tiny)
    scaled = torch.where(sides > 0, points - low, 0.0) / size
    different = len(scaled.unique(dim=0))
    most = min(most, different, max(2, different - 1))
    uniform = torch.rand(references, *points.shape, dtype=points.dtype, generator=stream) * (sides / size)
    every = torch.cat([scaled[None], uniform])  # [references + 1, n, p]
    if most < 2:
        return 1
    logs = spreads(every, most).clamp_min(SMALLEST).log()  # [most, references + 1]
    gaps = logs[:, 1:].mean(dim=1) - logs[:, 0]
    errors = logs[:, 1:].std(dim=1, correction=0) * (1 + 1 / references) ** 0.5
    enough = gaps[:-1] >= gaps[1:] - errors[1:]
    return int(enough.int().argmax()) + 1 if bool(enough.any()) else most


def spreads(points: Tensor, most: int) -> Tensor:
    """[most, ...], lowest sums of squared distances of `points` [..., n, p] to the means of 1, 2, ... clusters."""
    if points.shape[-1] == 1:
        return line_spreads(points[..., 0], most)
    return torch.stack([within(points, members) for members in partitions(points, most)])


def distances(points: Tensor) -> Tensor:
    """[n, n] float64, Euclidean distances between `points` [n, p]."""
    return squared_distances(points @ points.T).sqrt()
