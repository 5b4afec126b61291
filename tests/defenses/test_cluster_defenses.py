"""Rules that cluster clients, and the clustering they share: by hand, and against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from flame.defenses.freqfed import FreqFed, frequencies
from flame.defenses.kmeans import kmeans, within
from flame.defenses.points import distances, embed, gap_clusters
from flame.defenses.rflbat import RFLBAT, central, least_alike
from flame.defenses.snowball import calinski_harabasz
from flame.defenses.steps.vector import Cluster
from flame.geometry.layout import StateLayout

FREQFED = FreqFed(scope="weights_only", low=0.5, cluster=Cluster(None, 1, "precomputed"))
RFLBAT_DEFAULT = RFLBAT(first_filter=10.0, second_filter=4.0, most_clusters=9, references=5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def test_embedding_keeps_distances_and_is_pca() -> None:
    rows = random(7, 40)
    points, centred = embed(rows @ rows.T), rows - rows.mean(0)
    torch.testing.assert_close(distances(points), torch.cdist(rows, rows), atol=1e-7, rtol=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(points[:, :2].abs(), (u * s)[:, :2].abs())


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_and_scores_are_those_of_scikit_learn(seed: int) -> None:
    points = random(12, 2, seed=seed)
    centres = points[:3]
    members = kmeans(points, centres)
    found = KMeans(3, init=centres.numpy(), n_init=1, tol=0, max_iter=1000).fit(points.numpy())
    assert members.argmax(1).tolist() == found.labels_.tolist()
    assert float(within(points, members)) == pytest.approx(found.inertia_)
    score = calinski_harabasz_score(points.numpy(), found.labels_)
    assert float(calinski_harabasz(points, members)) == pytest.approx(score)
    batch = torch.stack([random(12, 2, seed=9), points])
    assert torch.equal(kmeans(batch, batch[:, :3])[1], members)  # a batch is each of its members alone


def test_gap_statistic_counts_groups() -> None:
    blob = 0.1 * random(12, 2)
    groups = torch.cat([blob + torch.tensor(centre) for centre in ((0.0, 0.0), (5.0, 0.0), (0.0, 5.0))])
    assert gap_clusters(groups, 6, 20, stream()) == 3
    shapeless = [torch.rand(20, 2, generator=stream(seed)).double() for seed in range(100, 110)]
    assert sum(gap_clusters(points, 5, 20, stream()) == 1 for points in shapeless) >= 8
    assert gap_clusters(torch.ones(5, 2).double(), 9, 20, stream()) == 1
    assert gap_clusters(torch.tensor([[0.2], [0.2], [0.2], [0.9]]).double(), 9, 20, stream()) == 2
    assert gap_clusters(1 + 1e-12 * random(5, 1), 9, 20, stream()) == 1  # rounding is no structure


def test_freqfed_sees_low_frequencies_only() -> None:
    lines = torch.tensor([[1.0, 2, 3, 6], [1, -1, 1, -1], [1, 0, 0, 0]])  # each a square of two by two
    assert_close(frequencies(lines, 0.4).flatten(), 6, 0, 0.5)  # (0, 0) alone: half the sum
    assert_close(frequencies(lines, 0.5).flatten(), 6, -2, -3, 0, 2, 0, 0.5, 0.5, 0.5)  # and (0, 1), (1, 0)
    assert frequencies(torch.ones(1, 10), 0.5).shape == (1, 6)  # of a square of side 4 those with i + j <= 2
    whole = frequencies(torch.eye(5), 2.0)
    torch.testing.assert_close(whole @ whole.T, torch.eye(5))  # orthonormal, whatever the square is filled up with
    slow, fast = torch.ones(9), torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1])
    layout = StateLayout.from_state({"w": torch.zeros(7), "out.w": torch.zeros(2)}, ["w", "out.w"])
    rows = torch.stack([slow + 0.4 * random(1).float() * fast for _ in range(4)] + [-slow, fast - slow, 3 * fast])
    updates = a_round(rows, layout=layout, base=torch.linspace(1, 2, 9))
    verdict = answer(FREQFED, updates)
    assert_close(verdict.weights, *[0.25] * 4, 0, 0, 0)


def test_freqfed_with_all_frequencies_is_flames_filter(updates: Any) -> None:
    state, sent = updates(seed=3, n=9)
    verdict = replace(FREQFED, low=2.0)(state, sent, stream())
    assert torch.equal(verdict.accepted, FREQFED.cluster.accept(sent.geometry.cosine_distances("weights_only")))


def test_rflbat_by_stages() -> None:
    line = torch.tensor([[0.0], [1.0], [2.0], [100.0]], dtype=torch.float64)  # sums 103, 101, 101, 297: median 102
    everyone = torch.ones(4, dtype=torch.bool)
    assert central(line, everyone, 2.0).tolist() == [True, True, True, False]
    assert central(line, everyone, 3.0).tolist() == [True] * 4
    assert central(line, everyone & (line[:, 0] > 0), 1.0).tolist() == [False, True, True, False]  # 100, 99, 197
    cosines = torch.eye(5, dtype=torch.float64)
    cosines[:2, :2], cosines[2:4, 2:4] = 0.9, 0.3
    cosines.fill_diagonal_(1)
    members = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]).bool()
    assert least_alike(members, cosines).tolist() == [False, False, True, True, False]
    assert least_alike(torch.eye(3).bool(), cosines).tolist() == [True] * 3


def test_rflbat_rejects_updates_that_are_alike() -> None:
    benign = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0.5, 0.5, 0]]
    verdict = answer(RFLBAT_DEFAULT, a_round([*benign, [20, 20, 0], [20.1, 20, 0], [20, 20.1, 0]]))
    assert_close(verdict.weights, *[0.2] * 5, 0, 0, 0)
    assert verdict.info == {"rflbat/clusters": 2.0}


def test_rflbat_filters_before_and_after_clustering() -> None:
    """The fifth client's distances in its cluster add up to 52, and the median is 18."""
    cluster, alike = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 13, 0]], [[80, 80, 0], [81, 80, 0], [80, 81, 0]]
    lenient = RFLBAT(first_filter=1000.0, second_filter=1000.0, most_clusters=1, references=5)
    for strict in (replace(lenient, first_filter=2.0), replace(lenient, second_filter=2.0)):
        assert answer(strict, a_round(cluster)).accepted.tolist() == [True] * 4 + [False]
    assert answer(lenient, a_round(cluster)).accepted.tolist() == [True] * 5
    for factor, kept in ((2.0, False), (1000.0, True)):
        verdict = answer(replace(lenient, second_filter=factor, most_clusters=2), a_round([*cluster, *alike]))
        assert verdict.accepted.tolist() == [True] * 4 + [kept] + [False] * 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(FREQFED, scope="all_state"), "defense.scope='all_state'"),
        (lambda: replace(FREQFED, low=0.0), "defense.low=0.0"),
        (lambda: replace(RFLBAT_DEFAULT, first_filter=0.5), "defense.first_filter=0.5"),
        (lambda: replace(RFLBAT_DEFAULT, references=0), "defense.references=0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
