"""k-means of a round's clients: the lowest sum of squared distances that a search without chance finds.

Two clusters start from every pair of points, or of more than 100 points from every pair of some that lie far apart.
More clusters start from points far apart (Gonzalez, 1985), beginning at up to STARTS points, and from the clusters
before, each time with one point more as a centre (Likas et al., Pattern Recognition 2003). From each start run Lloyd's
steps, then single points change their cluster while that lowers the sum (Hartigan and Wong, 1979). An emptied cluster
gets the point furthest from its centre, as in scikit-learn. On a line the sums are exact. Public code has k-means++
with ten restarts, or with one, which can end at another optimum each time.

Points are [..., n, p] float64 for any number of sets; clusters are one-hot members float64, [..., n, k], or [..., s, n,
k] for s starts, which are searched at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 100  # of Lloyd's algorithm, and of single points; a few suffice for a round's clients
PAIRED = 500_000  # pairs times points
STARTS = 16  # of each of the two kinds, for more than two clusters
ROUNDING = 1e-12  # of the squared lengths that a distance is made of: a gain that is none


def optimum(points: Tensor, k: int) -> Tensor:
    """[..., n, k], the best k clusters found; some are empty only where fewer than k points differ."""
    *_, members = partitions(points, k)
    return members


def partitions(points: Tensor, most: int) -> Iterator[Tensor]:
    """The best 1, 2, ..., `most` clusters found, [..., n, k] each."""
    points = points - points.median(dim=-2, keepdim=True).values  # small numbers, one liar among them or not
    members = torch.ones(*points.shape[:-1], 1, dtype=points.dtype)
    yield members
    for _ in range(2, most + 1):
        members = best(points, starts(points, members))
        yield members


def best(points: Tensor, centres: Tensor) -> Tensor:
    """[..., n, k], the lowest of what is found from `centres` [..., s, k, p]."""
    found = kmeans(points, centres)  # [..., s, n, k]
    polished = 2 * STARTS if points.dim() == 2 else 4  # of many sets, as the gap statistic has, the best starts alone
    found = pick(found, within(points, found).argsort(dim=-1, stable=True)[..., :polished])
    found = polish(points, found)
    return pick(found, within(points, found).argmin(dim=-1, keepdim=True)).squeeze(-3)


def pick(found: Tensor, places: Tensor) -> Tensor:
    """[..., r, n, k], those of `found` [..., s, n, k] at `places` [..., r]."""
    return found.gather(-3, places[..., None, None].expand(*places.shape, *found.shape[-2:]))


def starts(points: Tensor, members: Tensor) -> Tensor:
    """[..., s, k + 1, p], centres to start from, of which `members` [..., n, k] are the clusters before."""
    n, k = members.shape[-2:]
    near, means = gaps(points, points), centres_of(points, members)  # [..., n, n], [..., k, p]
    outermost = gaps(points, points.mean(dim=-2, keepdim=True)).argmax(dim=-2)  # [..., 1]
    if k == 1 and points.dim() == 2 and n > 1:
        far = spread(near, outermost, min(n, max(2, int((2 * PAIRED / n) ** 0.5))))[0]  # up to 100 points: all of them
        return points[torch.combinations(far)]
    first = spread(near, outermost, min(n, STARTS))[..., 0, :]  # [..., s]
    apart = at(points, spread(near, first, k + 1))  # [..., s, k + 1, p]
    own = (gaps(points, means) * members).sum(dim=-1)  # [..., n]
    relief = (own[..., None, :] - near).clamp_min(0).sum(dim=-1)  # what a centre at each point saves at least
    further = at(points, relief.argsort(dim=-1, descending=True)[..., :STARTS, None])  # [..., s, 1, p]
    kept = means[..., None, :, :].expand(*further.shape[:-2], *means.shape[-2:])
    return torch.cat([apart, torch.cat([kept, further], dim=-2)], dim=-3)


def spread(near: Tensor, first: Tensor, count: int) -> Tensor:
    """[..., s, count], places of `first` [..., s] and of points each the furthest from those before it, by squared
    distances `near` [..., n, n]."""
    places, n = [first], near.shape[-1]
    closest = near.gather(-2, first[..., None].expand(*first.shape, n))  # [..., s, n]
    for _ in range(count - 1):
        places.append(closest.argmax(dim=-1))
        closest = torch.minimum(closest, near.gather(-2, places[-1][..., None].expand(*first.shape, n)))
    return torch.stack(places, dim=-1)


def at(points: Tensor, places: Tensor) -> Tensor:
    """[..., s, k, p], the points at `places` [..., s, k]."""
    flat = places.flatten(-2)[..., None]
    return points.gather(-2, flat.expand(*flat.shape[:-1], points.shape[-1])).unflatten(-2, places.shape[-2:])


def kmeans(points: Tensor, centres: Tensor) -> Tensor:
    """[..., n, k], clusters of `points` [..., n, p] by Lloyd's algorithm from `centres` [..., k, p]."""
    k, last = centres.shape[-2], None
    for _ in range(STEPS):
        apart = gaps(points, centres)
        nearest = apart.argmin(dim=-1)
        if last is not None and torch.equal(nearest, last):
            break
        last, members = nearest, refilled(apart, nearest)
        filled = members.sum(dim=-2)[..., None] > 0  # [..., k, 1]
        centres = torch.where(filled, centres_of(points, members), centres)
    return F.one_hot(nearest, k).to(points.dtype)


def refilled(apart: Tensor, nearest: Tensor) -> Tensor:
    """[..., n, k], members of the `nearest` [..., n] of centres at distances `apart` [..., n, k]; empty clusters get
    the points furthest from their centre, unless all points lie at one."""
    members = F.one_hot(nearest, apart.shape[-1]).to(apart.dtype)
    empty = members.sum(dim=-2) == 0  # [..., k]
    if not bool(empty.any()):
        return members
    own = apart.gather(-1, nearest[..., None])[..., 0]  # [..., n]
    turn = (empty.cumsum(dim=-1) - 1).clamp(0, own.shape[-1] - 1)  # [..., k], how many empty ones there are before
    who = own.argsort(dim=-1, descending=True).gather(-1, turn)  # [..., k]
    moves = empty & (own.gather(-1, who) > 0)
    for cluster in range(moves.shape[-1]):
        place = who[..., cluster, None]
        label = torch.where(moves[..., cluster, None], cluster, nearest.gather(-1, place))
        nearest = nearest.scatter(-1, place, label)
    return F.one_hot(nearest, apart.shape[-1]).to(apart.dtype)


def polish(points: Tensor, members: Tensor) -> Tensor:
    """[..., n, k], `members` after single points have moved, the most useful first, while that lowers the sum."""
    k = members.shape[-1]
    long = points.square().sum(dim=-1)  # [..., n]
    long = long if members.dim() == points.dim() else long[..., None, :]
    for _ in range(STEPS * k):
        counts, centres = members.sum(dim=-2)[..., None, :], centres_of(points, members)  # [..., 1, k], [..., k, p]
        apart, size = gaps(points, centres), (members * counts).sum(dim=-1)
        saved = torch.where(size > 1, (apart * members).sum(dim=-1) * size / (size - 1), 0.0)  # [..., n]
        gain = (saved[..., None] - apart * counts / (counts + 1)).masked_fill(members > 0, -1)
        far = centres.square().sum(dim=-1)[..., None, :]  # [..., 1, k]
        rounding = ROUNDING * (
            long[..., None] + far + (far * members).sum(dim=-1, keepdim=True)
        )  # one far point's alone
        most, place = gain.masked_fill(gain <= rounding, -1).flatten(-2).max(dim=-1)
        if not bool((useful := most > 0).any()):
            break
        label, who = members.argmax(dim=-1), (place // k)[..., None]
        to = torch.where(useful[..., None], (place % k)[..., None], label.gather(-1, who))
        members = F.one_hot(label.scatter(-1, who, to), k).to(points.dtype)
    return members


def centres_of(points: Tensor, members: Tensor) -> Tensor:
    """[..., k, p], the means of the clusters `members` [..., n, k]; 0 for an empty one."""
    sums = members.mT.flatten(points.dim() - 2, -2) @ points
    return sums.view(*members.mT.shape[:-1], -1) / members.sum(dim=-2)[..., None].clamp_min(1)


def gaps(points: Tensor, centres: Tensor) -> Tensor:
    """[..., n, k], squared distances of `points` [..., n, p] to `centres` [..., k, p]."""
    flat = centres.flatten(points.dim() - 2, -2)  # all starts in one product
    squares = points.square().sum(dim=-1)[..., None] + flat.square().sum(dim=-1)[..., None, :]
    apart = (squares - 2 * points @ flat.mT).clamp_min(0)
    return apart if centres.dim() == points.dim() else apart.unflatten(-1, centres.shape[-3:-1]).movedim(-2, -3)


def within(points: Tensor, members: Tensor) -> Tensor:
    """[...], sum of squared distances of `points` [..., n, p] to the means of their clusters `members` [..., n, k]."""
    return (gaps(points, centres_of(points, members)) * members).sum(dim=(-2, -1))


def line_spreads(values: Tensor, most: int) -> Tensor:
    """[most, ...], the lowest sums of squared distances of `values` [..., n] in 1, 2, ... clusters.

    On a line clusters are stretches of the sorted values, and dynamic programming finds the best ones.
    """
    n = values.shape[-1]
    ordered = values.sort(dim=-1).values
    ordered = F.pad(ordered - ordered.median(dim=-1, keepdim=True).values, (1, 0))
    sums, squares = ordered.cumsum(dim=-1), ordered.square().cumsum(dim=-1)  # [..., n + 1]
    length = torch.arange(n + 1) - torch.arange(n + 1)[:, None]  # [from, to)
    total = sums[..., None, :] - sums[..., :, None]
    stretch = squares[..., None, :] - squares[..., :, None] - total.square() / length.clamp_min(1)
    stretch = torch.where(length > 0, stretch.clamp_min(0), torch.inf)
    found = [stretch[..., 0, :]]  # [..., n + 1], the first values in one cluster
    for _ in range(most - 1):
        found.append((found[-1][..., :, None] + stretch).min(dim=-2).values)
    return torch.stack([lowest[..., n] for lowest in found])
