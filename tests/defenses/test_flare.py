"""FLARE against numbers worked by hand, and against its authors' arithmetic on the features of real models."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from labs import Constant, Tiny, honest, laboratory
from sklearn.metrics.pairwise import pairwise_kernels
from test_defenses import a_round, answer, stream
from torch import Tensor

from flame.defenses.flare import Flare, discrepancies, nearest_votes, trust
from flame.defenses.nnm import NNM
from flame.geometry.layout import StateLayout
from flame.round.types import Lab, Updates

RULE = Flare(root_samples=12, label=1, tau=1.0)
NET = Tiny(inputs=4, hidden=5, classes=2)
LAYOUT = StateLayout.of(NET)


def some(n: int, seed: int, size: float, apart: float = 0.0) -> Updates:
    """Clients with updates of some size, whose features lie `apart` by their own shifts."""
    base = 0.5 * torch.randn(LAYOUT.size, generator=stream(seed)).abs()
    rows = size * torch.randn(n, LAYOUT.size, generator=stream(seed + 100))
    rows[:, LAYOUT.spans["running_var"]] = 0
    (shift,) = [e for e in LAYOUT.entries if e.key == "bn.bias"]
    rows[:, shift.start : shift.stop] += apart * torch.randn(n, 5, generator=stream(seed + 200))
    return a_round(rows, LAYOUT, base, lab=laboratory(NET, (1, 2, 2), honest(n)))


def seen_by(updates: Updates) -> Tensor:
    """[n, N, p], the features of the images of class 1."""
    lab = updates.lab
    assert lab is not None
    return lab.features((updates.base + row for row in updates.rows), RULE.shown(lab)).double()


def authors_gaps(seen: np.ndarray) -> np.ndarray:
    """[n, n], utils/mmd.py of ning-wang1: scikit-learn's kernels of stacked samples."""
    n, m = seen.shape[:2]
    gaps = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            k = pairwise_kernels(np.vstack([seen[i], seen[j]]), metric="rbf")
            a, b, ab = k[:m, :m], k[m:, m:], k[:m, m:]
            off = m * (m - 1)
            gaps[i, j] = (a.sum() - np.trace(a)) / off + (b.sum() - np.trace(b)) / off - 2 * ab.sum() / m**2
    np.fill_diagonal(gaps, 0)
    return gaps


def authors_trust(gaps: np.ndarray) -> np.ndarray:
    """[n], detect.py of ning-wang1: the first of a row is left out, then exp(count / mean count)."""
    n = len(gaps)
    named = np.argsort(np.maximum(gaps, 0), axis=1, kind="stable")[:, 1 : n // 2]
    counts = np.array([(named == i).sum() for i in range(n)])
    e = np.exp(counts / counts.mean())
    return e / e.sum()


@pytest.mark.parametrize("n", [6, 10, 11])
@pytest.mark.parametrize("seed", range(7))
def test_the_authors_arithmetic_gives_the_same_trust(seed: int, n: int) -> None:
    updates = some(n, seed, size=0.1, apart=4.0)
    seen = seen_by(updates)
    gaps = authors_gaps(seen.numpy())
    ours = discrepancies(seen).fill_diagonal_(0).numpy()
    np.testing.assert_allclose(ours, gaps, rtol=1e-9, atol=1e-12)
    verdict = answer(RULE, updates)
    assert (gaps[~np.eye(n, dtype=bool)] > 0).all()
    np.testing.assert_allclose(verdict.weights.numpy(), authors_trust(gaps), rtol=1e-9)
    wanted = updates.base.double() + verdict.weights @ updates.rows.double()
    torch.testing.assert_close(verdict.state.row.double(), wanted, rtol=1e-5, atol=1e-5)


def test_features_are_what_the_output_layer_gets() -> None:
    updates = some(2, 0, size=0.6)
    lab = updates.lab
    assert lab is not None
    net = Tiny(inputs=4, hidden=5, classes=2).eval()
    LAYOUT.load(net.state_dict(), updates.models[1], torch.zeros(1).long())
    x = RULE.shown(lab)
    assert torch.equal(lab.root.y, torch.tensor([0, 1] * 6)) and len(x) == 6
    normal = (x / 255 - 0.5) / 0.25
    torch.testing.assert_close(lab.features(updates.models, x)[1], net.bn(net.conv(normal.flatten(1))).detach())
    assert torch.equal(lab.logits(updates.models, x), lab.logits(updates.models, x))  # the hook is gone


def test_discrepancies_by_hand() -> None:
    seen = torch.tensor([[[0.0], [1.0]], [[0.0], [1.0]], [[3.0], [3.0]]]).double()
    one, four, nine = exp(-1), exp(-4), exp(-9)
    gaps = discrepancies(seen)
    assert float(gaps[0, 1]) == pytest.approx(2 * one - (1 + one))  # below 0: the same images, the same answers
    assert float(gaps[0, 2]) == pytest.approx(one + 1 - (nine + four))
    broken = discrepancies(torch.cat([seen, torch.full((1, 2, 1), torch.nan).double()]))
    assert torch.equal(broken[:3, :3], gaps) and float(broken[0, 3]) == pytest.approx(one)


def test_votes_by_hand() -> None:
    places = torch.tensor([0.0, 1, 3, 7, 20, 50]).double()  # they name 1 2, 0 2, 1 0, 2 1, 3 2, 4 3
    gaps = (places[:, None] - places).abs()
    votes = [2, 3, 4, 2, 1, 0]
    assert nearest_votes(gaps, torch.arange(6)).tolist() == votes
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert nearest_votes(gaps[order][:, order], order).tolist() == [votes[i] for i in order]
    assert nearest_votes(torch.zeros(4, 4).double(), torch.tensor([9, 2, 5, 7])).tolist() == [0, 3, 1, 0]
    e = [exp(v / 2) for v in votes]
    assert trust(torch.tensor(votes).double(), 1.0).tolist() == pytest.approx([x / sum(e) for x in e])
    assert trust(torch.zeros(3).double(), 1.0).tolist() == pytest.approx([1 / 3] * 3)


def test_alike_models_are_compared_and_not_their_numbers() -> None:
    """Every estimate is below 0 here; the authors would raise all to 0 and trust the clients 1 to 4."""
    updates = some(10, 0, size=0.01)
    updates.rows[1] *= 3  # the furthest of all
    gaps = authors_gaps(seen_by(updates).numpy())
    assert (gaps <= 0).all() and authors_trust(gaps)[1] == authors_trust(gaps).max()
    assert answer(RULE, updates).weights.argmin() == 1


def test_who_is_far_from_all_has_least() -> None:
    updates = some(10, 3, size=0.1)
    updates.rows[7, LAYOUT.span("weights_only")] *= -30
    verdict = answer(RULE, updates)
    assert verdict.weights.argmin() == 7 and verdict.info["flare/least_votes"] == 0
    assert float(verdict.weights[7]) < 0.06
    assert float(answer(NNM(0.2, RULE), updates).weights.sum()) == pytest.approx(1)
    assert not NNM(0.2, RULE).root_update and NNM(0.2, RULE).root_samples == 12


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(RULE, root_samples=1), "defense.root_samples=1"),
        (lambda: replace(RULE, label=-1), "defense.label=-1"),
        (lambda: replace(RULE, tau=0.0), "defense.tau=0.0"),
        (lambda: answer(replace(RULE, label=2), some(3, 0, size=0.6)), r"holds 0 sample\(s\) of class defense.label=2"),
        (lambda: answer(RULE, a_round([[0, 0, 0]])), r"defense=flare tries models.*no laboratory"),
        (
            lambda: answer(RULE, a_round([[0, 0, 0]], lab=laboratory(Constant(), (1, 1, 1), honest(1)))),
            "never calls its output layer 'out'",
        ),
    ],
)
def test_what_does_not_fit_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_laboratory_says_which_images_are_the_servers() -> None:
    lab: Lab = laboratory(NET, (1, 2, 2), honest(3))
    assert len(lab.root) == 12 and torch.equal(lab[torch.tensor([2])].root.x, lab.root.x)
