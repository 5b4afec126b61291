"""Scores worked by hand; the ROC AUC against scikit-learn's."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from flame.geometry.clustering import Clustering
from flame.round.score import auc, filter_scores, score
from flame.round.types import Cohort, ServerState, Verdict


def mask(text: str) -> Tensor:
    """'x.' -> [True, False]"""
    return torch.tensor([mark == "x" for mark in text], dtype=torch.bool)


def test_a_round_of_ten() -> None:
    """Four malicious; six accepted, one of them malicious: 3 of 4 caught, 5 of 6 benign kept."""
    found = filter_scores(accepted=mask("x...xxxxx."), compromised=mask("xxxx......"))
    assert found == {
        "malicious_recall": 3 / 4,
        "malicious_precision": 3 / 4,  # four rejected, one of them benign
        "benign_recall": 5 / 6,
        "benign_precision": 5 / 6,
        "accepted": 6.0,
        "floor": 0.0,  # 10 // 2 + 1 = 6 places for 6 benign clients
    }


def test_the_four_shares_are_told_apart() -> None:
    """One malicious, rejected together with three of five benign: all four numbers differ."""
    found = filter_scores(accepted=mask("...xx."), compromised=mask("x....."))
    assert found["malicious_recall"] == 1.0
    assert found["malicious_precision"] == 1 / 4
    assert found["benign_recall"] == 2 / 5
    assert found["benign_precision"] == 1.0


@pytest.mark.parametrize(
    ("n", "malicious", "floor"),
    [(20, 4, 5 / 16), (20, 0, 9 / 20), (10, 4, 0.0), (5, 1, 1 / 4), (2, 0, 0.0), (1, 0, 0.0), (3, 2, 0.0)],
)
def test_floor(n: int, malicious: int, floor: float) -> None:
    """An accepted set of n//2 + 1 loses benign - (n//2 + 1) of the benign at least."""
    compromised = torch.arange(n) < malicious
    assert filter_scores(torch.ones(n, dtype=torch.bool), compromised)["floor"] == pytest.approx(floor)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(lambda benign: any(benign)), st.randoms())
def test_the_floor_is_reached_by_no_smaller_loss(benign: list[bool], draws: Random) -> None:
    """Whichever n // 2 + 1 are accepted, benign clients are lost; as few as the floor says where benign come first."""
    n, compromised = len(benign), ~torch.tensor(benign)

    def lost(order: list[int]) -> float:
        accepted = torch.zeros(n, dtype=torch.bool)
        accepted[order[: n // 2 + 1]] = True
        found = filter_scores(accepted, compromised)
        assert all(math.isnan(v) or k == "accepted" or 0 <= v <= 1 for k, v in found.items())
        assert found["floor"] == floor
        return 1 - found["benign_recall"]

    floor = filter_scores(torch.ones(n, dtype=torch.bool), compromised)["floor"]
    assert lost(draws.sample(range(n), n)) >= floor - 1e-12
    assert lost(sorted(range(n), key=lambda i: not benign[i])) == pytest.approx(floor)


def test_undefined_shares_are_nan() -> None:
    everyone = filter_scores(mask("xx"), mask(".."))
    assert math.isnan(everyone["malicious_recall"]) and math.isnan(everyone["malicious_precision"])
    assert everyone["benign_recall"] == everyone["benign_precision"] == 1
    nobody = filter_scores(mask(".."), mask("xx"))
    assert math.isnan(nobody["benign_recall"]) and math.isnan(nobody["benign_precision"])
    assert math.isnan(nobody["floor"])
    assert nobody["malicious_recall"] == nobody["malicious_precision"] == 1


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40))
def test_auc_against_scikit_learn(clients: list[tuple[int, bool]]) -> None:
    """Ties included: scores are multiples of 1/8."""
    scores = torch.tensor([s / 8 for s, _ in clients], dtype=torch.float64)
    truth = torch.tensor([bad for _, bad in clients])
    if truth.all() or not truth.any():
        assert math.isnan(auc(scores, truth))
    else:
        assert auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_names_and_sources() -> None:
    """filter/* comes from the verdict, shadow/* and auc/* from each scope's own clustering."""
    verdict = Verdict(ServerState(torch.zeros(1), torch.zeros(0)), torch.tensor([0.5, 0.0, 0.5]))
    shadow = Clustering(mask(".xx"), torch.tensor([0.9, 0.1, 0.1], dtype=torch.float64))
    cohort = Cohort(torch.arange(3), mask("x.."))
    found = score(verdict, {"head": shadow}, cohort)
    names = ("malicious_recall", "malicious_precision", "benign_recall", "benign_precision", "accepted")
    assert set(found) == {f"{p}/{k}" for p in ("filter", "shadow/head") for k in names} | {"filter/floor", "auc/head"}
    assert found["filter/malicious_recall"] == 0 and found["shadow/head/malicious_recall"] == 1
    assert found["filter/benign_recall"] == 0.5 and found["shadow/head/benign_recall"] == 1
    assert found["auc/head"] == 1
