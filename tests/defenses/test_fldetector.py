"""FLDetector: its Hessian product against dense matrices, its memory and its verdicts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_cluster_defenses import random
from test_defenses import a_round, answer, assert_close
from torch import Tensor

from flame.defenses.fldetector import FLDetector, hessian_product
from flame.round.types import Updates

FLDETECTOR = FLDetector(window=3, most_clusters=5, references=20)


def bfgs(aggregates: Tensor) -> Tensor:
    """H v by the textbook recursion with dense matrices, from sigma times the identity."""
    s, y = aggregates[:-1], aggregates.diff(dim=0)
    b = torch.eye(aggregates.shape[1], dtype=torch.float64) * (y[-1] @ s[-1]) / (s[-1] @ s[-1])
    for step, bend in zip(s, y, strict=True):
        b = b - torch.outer(b @ step, b @ step) / (step @ b @ step) + torch.outer(bend, bend) / (bend @ step)
    return b @ aggregates[-1]


@pytest.mark.parametrize("k", [2, 3, 6])
def test_hessian_product_is_that_of_the_dense_recursion(k: int) -> None:
    aggregates = random(k, 8, seed=k)
    torch.testing.assert_close(hessian_product(aggregates), bfgs(aggregates).float(), atol=1e-4, rtol=1e-4)


def test_hessian_product_in_one_dimension_is_the_ratio() -> None:
    assert_close(hessian_product(torch.tensor([[8.0, 0, 0], [4, 0, 0], [2, 0, 0]])), -1, 0, 0)  # each move halves
    assert_close(hessian_product(torch.zeros(3, 3)), 0, 0, 0)


def rounds_of(rows: list[list[list[float]]], rule: FLDetector = FLDETECTOR) -> list[Any]:
    """Verdicts on one round after the other."""
    state, verdicts = None, []
    for number, each in enumerate(rows):
        updates: Updates = a_round(each) if state is None else a_round(each, base=state.row)
        verdicts.append(answer(rule, updates, state))
        state = replace(verdicts[-1].state, round=number + 1)
    return verdicts


def test_fldetector_rejects_who_defies_prediction() -> None:
    honest = [[1.0, 0, 0]] * 4
    verdicts = rounds_of([[*honest, [1.0, 0, 0]], [*honest, [1.0, 0, 0]], [*honest, [1, 5, 0]], [*honest, [1, -5, 0]]])
    assert [v.info["fldetector/judged"] for v in verdicts] == [0, 0, 5, 5]
    assert [bool(v.accepted[4]) for v in verdicts] == [True, True, False, False]
    assert all(bool(v.accepted[:4].all()) for v in verdicts)
    memory = verdicts[-1].state.memory
    assert memory["defense/fldetector/scores/rows"][4].tolist() == [2, 5, 5, 0]  # two rounds, 5 times the mean error
    assert memory["defense/fldetector/update/rows"][4].tolist() == [1, -5, 0]
    assert memory["defense/fldetector/aggregates"].tolist() == [[1, 0, 0]] * 4


def test_fldetector_scores_alike_among_few_and_among_many() -> None:
    """Each client swings by 2 about the same prediction: in round 2 two of them are judged, in round 3 all ten."""
    state, signs, few = None, torch.tensor([1.0, -1] * 5), [0, 1, 6, 7, 8, 9]
    for number, ids in enumerate([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], few, list(range(10))]):
        rows = [[1.0, float(signs[i]), 0] for i in ids]
        updates = a_round(rows, base=None if state is None else state.row, ids=torch.tensor(ids))
        verdict = answer(FLDETECTOR, updates, state)
        assert bool(verdict.accepted.all())
        state, signs[ids] = replace(verdict.state, round=number + 1), -signs[ids]
    scores = verdict.state.memory["defense/fldetector/scores/rows"]
    assert scores[:2].tolist() == [[2, 1, 1, 0]] * 2 and scores[2:].tolist() == [[1, 1, 0, 0]] * 8


def test_fldetector_does_not_judge_newcomers() -> None:
    state = rounds_of([[[1.0, 0, 0]] * 5] * 3)[-1].state
    new = a_round([[1, 0, 0]] * 4 + [[9, 9, 9]], ids=torch.tensor([0, 1, 2, 3, 77]))
    verdict = answer(FLDETECTOR, new, state)
    assert bool(verdict.accepted.all()) and verdict.info["fldetector/judged"] == 4


def test_a_window_without_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"defense\.window=0"):
        replace(FLDETECTOR, window=0)
