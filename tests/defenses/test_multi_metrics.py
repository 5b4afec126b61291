"""Multi-metrics against numbers worked by hand, and against its authors' arithmetic on rounds with and without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.recorded import recorded_round
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from flame.defenses.multi_metrics import (
    MultiMetrics,
    length_differences,
    mahalanobis,
    manhattan_distances,
    measures,
)

RULE = MultiMetrics(share=0.3)


def authors_scores(models: np.ndarray) -> np.ndarray:
    """[n], the scores of the authors' loops over `models` [n, d] (siquanhuang's defense.py), in float64."""
    n, features = len(models), []
    for i in range(n):
        cosine = manhattan = length = 0.0
        for j in set(range(n)) - {i}:
            a, b = models[i], models[j]
            cosine += (1 - a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b))) ** 2
            manhattan += np.abs(a - b).sum()
            length += abs(np.sqrt(a @ a) - np.sqrt(b @ b))
        features.append([cosine, manhattan, length])
    t = np.array(features)
    inverse = np.linalg.inv(np.cov(t, rowvar=False))
    return np.array([row @ inverse @ row for row in t])


@pytest.mark.parametrize("n", [10, 17])
@pytest.mark.parametrize("seed", range(12))
def test_the_authors_arithmetic_gives_the_same_decisions(seed: int, n: int) -> None:
    updates = recorded_round(seed, n, with_bn=seed % 2 == 0).updates
    trainable = updates.layout.trainable
    wanted = authors_scores(updates.models[:, :trainable].double().numpy())
    scores, rank = mahalanobis(measures(updates))
    assert rank == 3
    np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-4)
    chosen = sorted(np.argsort(wanted)[: int(0.3 * n)].tolist())
    verdict = answer(RULE, updates)
    assert verdict.accepted.nonzero().flatten().tolist() == chosen
    mean = updates.models[chosen].double().mean(0)
    torch.testing.assert_close(verdict.state.row.double(), mean, rtol=1e-5, atol=1e-5)


def test_measures_by_hand() -> None:
    updates = a_round([[2, 0, 0], [0, 3, 0], [0, 0, -1], [-1, -1, 1]], base=torch.tensor([1.0, 1.0, 0.0]))
    models = torch.tensor([[3.0, 1, 0], [1, 4, 0], [1, 1, -1], [0, 0, 1]])
    assert manhattan_distances(updates.rows)[0].tolist() == [0, 5, 3, 5]
    lengths = models.double().norm(dim=1)
    torch.testing.assert_close(
        length_differences(updates.geometry.scope("weights_only")), (lengths[:, None] - lengths).abs()
    )
    cosine = 1 - 7 / (10 * 17) ** 0.5, 1 - 4 / (10 * 3) ** 0.5, 1.0
    assert_close(measures(updates)[0, :2], sum(gap**2 for gap in cosine), 13)


def test_manhattan_distances_of_many_columns() -> None:
    rows = torch.randn(3, 10_000, generator=stream())
    wanted = (rows[:, None].double() - rows.double()).abs().sum(dim=2)
    torch.testing.assert_close(manhattan_distances(rows), wanted)


def test_scores_do_not_depend_on_units_and_survive_a_singular_covariance() -> None:
    points = torch.rand(8, 3, generator=stream(), dtype=torch.float64)
    scores, rank = mahalanobis(points)
    assert rank == 3
    torch.testing.assert_close(mahalanobis(points * torch.tensor([1e-9, 1.0, 1e6]))[0], scores)
    twice, rank = mahalanobis(torch.cat([points[:, :2], points[:, :1]], dim=1))  # one measure says what another says
    torch.testing.assert_close(twice, mahalanobis(points[:, :2])[0])
    assert rank == 2
    constant, rank = mahalanobis(torch.cat([points[:, :2], torch.full((8, 1), 1e5).double()], dim=1))
    torch.testing.assert_close(constant, twice)
    assert rank == 2 and mahalanobis(torch.ones(5, 3).double())[1] == 0


def outlier(n: int) -> Tensor:
    rows = 0.1 * torch.randn(n, 3, generator=stream(1))
    rows[0] = 30
    return rows


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (3, 3), (4, 1), (6, 1), (7, 2), (10, 3), (20, 6)])
def test_three_in_ten_are_accepted(n: int, kept: int) -> None:
    verdict = answer(RULE, a_round(outlier(n), base=torch.ones(3)))
    assert int(verdict.accepted.sum()) == kept and float(verdict.weights.sum()) == pytest.approx(1)
    assert n < 4 or not verdict.accepted[0]


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_settings_out_of_range_name_the_key(share: float) -> None:
    with pytest.raises(ValueError, match=f"defense.share={share}"):
        MultiMetrics(share=share)
