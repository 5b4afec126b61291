"""FedDLAD against numbers worked by hand, and against its authors' arithmetic on rounds with attackers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.recorded import recorded_round
from test_defenses import a_round, answer, assert_close, stream

from flame.defenses.feddlad import FedDLAD, cosines_to, fences, mixed, outlier_factors, turned

RULE = FedDLAD(reference=0.48, pardoned=0.12, fence=0.6)


def pyods_factors(points: np.ndarray) -> np.ndarray:
    """[n], outlier factors of `points` [n, p] with n - 1 neighbours, loop by loop; pyod 3.6.7's to 1e-9, in a check."""
    n = len(points)
    apart = np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))
    chains = []
    for i in range(n):
        path = np.argsort(apart[i])
        costs = [min(apart[path[j]][path[:j]]) for j in range(1, n)]
        chains.append(sum(2 * (n - j) / (n * (n - 1)) * cost for j, cost in enumerate(costs, start=1)))
    return np.array([chains[i] * (n - 1) / (sum(chains) - chains[i]) for i in range(n)])


def authors_update(models: np.ndarray, updates: np.ndarray, r: int, p: int) -> tuple[np.ndarray, list[int], list[int]]:
    """`combined_aggregation` of dingbinb's aggregation.py at equal sample counts: the update, reference, pardoned."""
    unit = models / np.linalg.norm(models, axis=1, keepdims=True)
    reference = np.argsort(pyods_factors(1 - unit @ unit.T), kind="stable")[:r].tolist()
    lengths = np.linalg.norm(updates, axis=1)
    updates = updates * np.minimum(1, np.median(lengths[reference]) / lengths)[:, None]
    q1, q3 = np.percentile(updates, 25, axis=0), np.percentile(updates, 75, axis=0)
    outside = (updates < q1 - 0.6 * (q3 - q1)) | (updates > q3 + 0.6 * (q3 - q1))
    updates = np.where(outside, -updates, updates)
    mean = updates[reference].mean(axis=0)
    scores = {
        i: mean @ u / np.linalg.norm(mean) / np.linalg.norm(u) for i, u in enumerate(updates) if i not in reference
    }
    pardoned = sorted((i for i in scores if scores[i] > 0), key=lambda i: -scores[i])[:p]
    if not pardoned:
        return mean, reference, []
    other = sum(scores[i] * updates[i] for i in pardoned) / sum(scores[i] for i in pardoned)
    return (r * mean + len(pardoned) * other) / (r + len(pardoned)), reference, pardoned


@pytest.mark.parametrize(("n", "r", "p"), [(10, 5, 1), (25, 12, 3)])
@pytest.mark.parametrize("seed", range(12))
def test_the_authors_arithmetic_gives_the_same_model(seed: int, n: int, r: int, p: int) -> None:
    updates = recorded_round(seed, n, with_bn=seed % 2 == 0).updates
    d = updates.layout.trainable
    models, rows = (x[:, :d].double().numpy() for x in (updates.models, updates.rows))
    wanted, reference, pardoned = authors_update(models, rows, r, p)
    verdict = answer(RULE, updates)
    assert verdict.accepted.nonzero().flatten().tolist() == sorted(reference + pardoned)
    np.testing.assert_allclose((verdict.state.row - updates.base)[:d].numpy(), wanted, rtol=1e-3, atol=1e-6)
    statistics = updates.base[d:].double() + verdict.weights @ updates.rows[:, d:].double()
    torch.testing.assert_close(verdict.state.row[d:].double(), statistics, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_outlier_factors_are_pyods(n: int) -> None:
    gaps = torch.rand(n, n, generator=stream(n), dtype=torch.float64)
    ours = outlier_factors(gaps)
    np.testing.assert_allclose(ours.numpy(), pyods_factors(gaps.numpy()), rtol=1e-9)


def test_outlier_factors_by_hand() -> None:
    gaps = torch.tensor([[0.0], [1], [3]]).double()  # chains: 2/3 * 1 + 1/3 * 2 for the ends' near side, ...
    near, far = 2 / 3 * 1 + 1 / 3 * 2, 2 / 3 * 2 + 1 / 3 * 1
    assert_close(outlier_factors(gaps), 2 * near / (near + far), 2 * near / (near + far), far / near)
    assert outlier_factors(torch.zeros(4, 4).double()).tolist() == [0] * 4
    assert outlier_factors(torch.zeros(1, 1).double()).tolist() == [0]


def test_values_outside_the_fence_are_turned() -> None:
    rows = torch.tensor([[0.0, 5], [1, 5], [2, 5], [3, 5], [40, 6]])
    limits = fences(rows, torch.ones(5), 0.6)  # quartiles 1 and 3: fences -0.2 and 4.2; and 5, 5
    assert_close(limits.flatten(), -0.2, 5, 4.2, 5)
    (slab,) = turned(rows, torch.ones(5), limits)
    assert slab[:, 0].tolist() == [0, 1, 2, 3, -40] and slab[:, 1].tolist() == [5, 5, 5, 5, -6]
    (half,) = turned(rows, torch.tensor([1, 1, 1, 1, 0.1]), limits)
    assert half[4].tolist() == pytest.approx([4, -0.6])


def test_many_columns_are_cut_into_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, scale = torch.randn(3, 100, generator=stream()), torch.tensor([1, 0.5, 2])
    whole = fences(rows, scale, 0.0)
    (slab,) = turned(rows, scale, whole)
    monkeypatch.setattr("flame.defenses.columns.SLAB_ELEMENTS", 21)  # seven columns
    assert torch.equal(fences(rows, scale, 0.0), whole)
    parts = list(turned(rows, scale, whole))
    assert len(parts) == 15 and torch.equal(torch.cat(parts, dim=1), slab)
    share = torch.tensor([0.5, 0.5, 0]).double()
    wanted = torch.cosine_similarity(slab.double(), (share @ slab.double())[None])
    torch.testing.assert_close(cosines_to(parts, share), wanted)


def test_the_pardoned_weigh_their_cosine() -> None:
    group = torch.tensor([True, True, False, False, False])
    assert_close(mixed(group, torch.tensor([0, 0, 0.9, 0.3, 0]).double()), 0.25, 0.25, 0.375, 0.125, 0)
    assert_close(mixed(group, torch.zeros(5).double()), 0.5, 0.5, 0, 0, 0)


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (2, 2), (3, 1), (5, 3), (10, 6), (25, 15)])
def test_how_many_are_accepted(n: int, kept: int) -> None:
    rows = 1 + 0.1 * torch.randn(n, 3, generator=stream())
    verdict = answer(RULE, a_round(rows, base=torch.tensor([1.0, 0, 2])))
    assert int(verdict.accepted.sum()) == kept and float(verdict.weights.sum()) == pytest.approx(1)


def test_an_opposite_client_is_cut_and_turned_and_then_pardoned() -> None:
    """Its model is the furthest, so it is not of reference; its cosine is taken after all of its signs are turned."""
    rows = 1 + 0.1 * torch.randn(10, 3, generator=stream())
    rows[4] *= -20
    updates = a_round(rows, base=torch.tensor([1.0, 0, 2]))
    assert int(outlier_factors(updates.geometry.cosine_distances("weights_only")).argmax()) == 4
    verdict = answer(replace(RULE, pardoned=1.0), updates)
    assert 0 < verdict.weights[4] <= 0.13 and verdict.info["feddlad/pardoned"] == 5
    assert float(verdict.state.row[1]) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(RULE, reference=0.0), "defense.reference=0.0"),
        (lambda: replace(RULE, pardoned=1.1), "defense.pardoned=1.1"),
        (lambda: replace(RULE, fence=-1.0), "defense.fence=-1.0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
