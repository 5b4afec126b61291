"""k-means against scikit-learn's with fifty random starts, and against every possible split."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from flame.defenses.kmeans import kmeans, line_spreads, optimum, partitions, starts, within

KINDS = ("blob", "groups", "heavy", "doubles", "line")


def cloud(kind: str, n: int, p: int, seed: int) -> Tensor:
    """[n, p] float64: without structure, in groups, with far points, with equal points, along a line."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, p))
    if kind == "groups":
        x += 4 * draw.integers(0, 3, size=(n, 1))
    elif kind == "heavy":
        x = x**3
    elif kind == "doubles":
        x = x[draw.integers(0, n, size=n)].round(1)
    elif kind == "line":
        x[:, 1:] *= 1e-3
    return torch.from_numpy(x)


def scikit(points: Tensor, k: int) -> float:
    return float(KMeans(k, n_init=50, random_state=0, tol=0, max_iter=1000).fit(points.numpy()).inertia_)


clouds = {
    "kind": st.sampled_from(KINDS),
    "n": st.integers(3, 14),
    "p": st.integers(1, 5),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=40)
@given(**clouds)
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_two_clusters_are_never_worse_than_fifty_random_starts(kind: str, n: int, p: int, seed: int) -> None:
    points = cloud(kind, n, p, seed)
    assert float(within(points, optimum(points, 2))) <= scikit(points, 2) * (1 + 1e-9) + 1e-12


@settings(max_examples=40)
@given(k=st.integers(3, 8), **clouds)
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_more_clusters_are_as_good_as_fifty_random_starts(k: int, kind: str, n: int, p: int, seed: int) -> None:
    """Neither search is exact for more than two clusters: 1 per cent is left."""
    points, k = cloud(kind, n, p, seed), min(k, n - 1)
    assert float(within(points, optimum(points, k))) <= scikit(points, k) * 1.01 + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_two_clusters_of_eight_are_the_best_of_all_splits(seed: int) -> None:
    points = cloud(KINDS[seed], 8, 2, seed)
    splits = torch.tensor(list(product([0.0, 1.0], repeat=8)), dtype=torch.float64)
    best = within(points, torch.stack([splits, 1 - splits], dim=-1)).min()
    torch.testing.assert_close(within(points, optimum(points, 2)), best)


@settings(max_examples=30)
@given(**{**clouds, "p": st.just(1)})
def test_spreads_on_a_line_are_those_of_the_clusters(kind: str, n: int, p: int, seed: int) -> None:
    points = cloud(kind, n, p, seed)
    found = torch.stack([within(points, members) for members in partitions(points, min(6, n))])
    exact = line_spreads(points[:, 0], min(6, n))
    assert bool((exact <= found * (1 + 1e-9) + 1e-12).all()) and bool((found <= exact * 1.01 + 1e-12).all())


def test_spreads_on_a_line_by_hand() -> None:
    values = torch.tensor([[10.0, 0, 1, 4], [1, 1, 1, 1]], dtype=torch.float64)
    assert line_spreads(values, 4).T.tolist() == [[60.75, pytest.approx(26 / 3), 0.5, 0], [0, 0, 0, 0]]


def emptied() -> tuple[Tensor, Tensor]:
    """Five points and three centres, the last of which is nobody's nearest."""
    points = torch.tensor([[0.0, 0], [1, 0], [0, 2], [10, 0], [14, 0]], dtype=torch.float64)
    return points, torch.tensor([[0.0, 0], [11, 0], [-90, -90]], dtype=torch.float64)


def test_an_emptied_cluster_gets_the_point_furthest_from_its_centre() -> None:
    points, centres = emptied()  # 14 is 3 from its centre, (0, 2) is 2 from its own
    members = kmeans(points, centres)
    assert members.argmax(1).tolist() == [0, 0, 0, 1, 2]
    found = KMeans(3, init=centres.numpy(), n_init=1, tol=0).fit(points.numpy())
    assert members.argmax(1).tolist() == found.labels_.tolist()


def test_several_emptied_clusters_get_a_point_each_and_starts_are_independent() -> None:
    points, centres = emptied()
    far = torch.tensor([[0.0, 0], [-90, -90], [-99, -99]], dtype=torch.float64)
    found = KMeans(3, init=far.numpy(), n_init=1, tol=0).fit(points.numpy())
    both = kmeans(points, torch.stack([centres, far]))
    assert torch.equal(both[0], kmeans(points, centres)) and torch.equal(both[1], kmeans(points, far))
    assert float(within(points, both[1])) == pytest.approx(found.inertia_)
    alike = kmeans(torch.ones(4, 2).double(), torch.eye(3, 2).double())
    assert alike.sum(0).tolist() == [4, 0, 0]  # nobody is far from its centre: as scikit-learn, nothing to move


def test_hundreds_of_points_start_from_some_pairs() -> None:
    for n, pairs in ((100, 4950), (400, 1225), (1000, 465)):  # of all, of 50 and of 31 points
        points = cloud("groups", n, 3, n)
        assert len(starts(points, torch.ones(n, 1).double())) == pairs
    assert float(within(points, optimum(points, 2))) <= scikit(points, 2) * (1 + 1e-9)


@pytest.mark.parametrize("far", [3e6, 1e7])
def test_one_far_point_switches_nothing_off(far: float) -> None:
    """Its squared length is 1e13 times the others'; their gains count all the same."""
    for seed in range(12):
        points = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed)).double()
        points[0] = far
        labels = KMeans(4, n_init=20, random_state=0, tol=0).fit(points.numpy()).labels_
        sums = [exact(points, torch.from_numpy(found)) for found in (optimum(points, 4).argmax(1).numpy(), labels)]
        assert sums[0] <= sums[1] * (1 + 1e-9), seed


def exact(points: Tensor, labels: Tensor) -> float:
    """Within sum by differences, which a far point's length does not round."""
    clusters = [points[labels == label] for label in labels.unique()]
    return sum(float((own - own.mean(0)).square().sum()) for own in clusters)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_points_and_more_clusters_than_points(n: int) -> None:
    points = torch.arange(2.0 * n, dtype=torch.float64).view(n, 2)
    members = optimum(points, 4)
    assert members.shape == (n, 4) and float(within(points, members)) == pytest.approx(0, abs=1e-12)
    assert optimum(points[:, :0], 2).shape == (n, 2)


def test_sets_are_searched_as_if_alone() -> None:
    sets = torch.stack([cloud(kind, 12, 2, seed) for seed, kind in enumerate(KINDS)])
    for k, members in enumerate(partitions(sets, 5), start=1):
        alone: list[Any] = [float(within(points, optimum(points, k))) for points in sets]
        torch.testing.assert_close(
            within(sets, members), torch.tensor(alone, dtype=torch.float64), rtol=0.02, atol=1e-9
        )
