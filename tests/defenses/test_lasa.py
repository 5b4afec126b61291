"""LASA by hand, and against a float64 transcription of its authors' arithmetic on twenty seeded rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.recorded import cached_round, recorded_round
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from flame.defenses.lasa import LASA
from flame.geometry.layout import StateLayout

RULE = LASA(sparsity=0.3, norm_radius=1.0, sign_radius=1.0, aggregated="sparse")
State = dict[str, Tensor]


def their_sparse(update: State, sparsity: float) -> State:
    """utils/mask_help.py: of tensors with 2 or 4 axes, what is larger than the k-th largest of all of them."""
    masked = [key for key, value in update.items() if value.dim() in (2, 4)]
    scores = torch.cat([update[key].abs().flatten() for key in masked])
    least = scores.topk(int(len(scores) * (1 - sparsity))).values[-1]
    return {k: v * (v.abs() > least) if k in masked else v for k, v in update.items()}


def their_usual(values: list[float], radius: float) -> set[int]:
    scores = np.abs(np.array(values) - np.median(values)) / np.std(values)
    return set(np.argwhere(scores < radius)[:, 0].tolist())


def theirs(updates: list[State], rule: LASA) -> State:
    """algorithms/defense/lasa.py; for `clipped` the mean is over what is not sparse."""
    norms = [torch.cat([v.flatten() for v in u.values()]).norm() for u in updates]
    bound = torch.stack(norms).median()
    clipped = [{k: v * min(1.0, float(bound / s)) for k, v in u.items()} for u, s in zip(updates, norms, strict=True)]
    sparse = [their_sparse(u, rule.sparsity) for u in clipped]
    kept = sparse if rule.aggregated == "sparse" else clipped
    result = {}
    for key in updates[0]:
        lengths = [float(u[key].norm()) for u in sparse]
        shares = [
            0.5 * (1 + float(u[key].sign().sum() / u[key].sign().abs().sum()) * (1 - rule.sparsity)) for u in sparse
        ]
        both = their_usual(lengths, rule.norm_radius) & their_usual(shares, rule.sign_radius)
        chosen = sorted(both) or range(len(updates))
        result[key] = torch.stack([kept[i][key] for i in chosen]).mean(0)
    return result


@pytest.mark.parametrize("aggregated", ["sparse", "clipped"])
def test_the_mean_of_the_authors(aggregated: str) -> None:
    for seed in range(20):
        rule = replace(RULE, aggregated=aggregated, norm_radius=(1.0, 2.0)[seed % 2])
        plain, recorded = cached_round(seed, 9, False), recorded_round(seed, 9, False)
        start = {k: v.double() for k, v in plain.global_state.items()}
        wanted = theirs([{k: v.double() - start[k] for k, v in c.items()} for c in plain.client_states], rule)
        verdict = rule(recorded.state, recorded.updates, stream())
        layout = recorded.updates.layout
        found = layout.unflatten(verdict.state.row - recorded.state.row, recorded.state.counters)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key].double(), value, rtol=1e-4, atol=1e-6)


MATRIX = StateLayout.from_state({"body.w": torch.zeros(2, 2), "out.b": torch.zeros(1)}, ["body.w", "out.b"])


def test_step_by_step() -> None:
    """Of four weights with sparsity 0.4 two are above the second largest's threshold: one is left; the bias stays."""
    rule = replace(RULE, sparsity=0.4)
    rows = torch.tensor([[4.0, -3, 2, 1, 0.5]])
    assert rule.sparsified(rows, MATRIX).tolist() == [[4, 0, 0, 0, 0.5]]
    assert replace(RULE, sparsity=0.0).sparsified(rows, MATRIX).tolist() == rows.tolist()
    lengths = torch.tensor([[1.0], [1], [1], [1], [9]])  # median 1, std 3.2: only the last is 2.5 away; signs alike
    assert rule.usual(lengths).tolist() == [True, True, True, True, False]
    signs = torch.tensor([[1.0], [1], [1], [1], [-1]])
    assert rule.usual(signs).tolist() == [True, True, True, True, False]
    assert rule.usual(torch.tensor([[1.0], [-1]])).tolist() == [True, True]  # both score 1: nobody, so everybody
    assert rule.usual(torch.zeros(3, 2)).all()


def test_weights_are_shares_of_the_coordinates() -> None:
    rows = [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [-1, 1, 1]]  # client 4 is unusual in the first tensor alone
    verdict = answer(replace(RULE, sparsity=0.0), a_round(rows))
    assert_close(verdict.state.row, 1, 1, 1)
    assert_close(verdict.weights, *[0.25 / 3 + 0.4 / 3] * 4, 0.4 / 3)
    assert verdict.info["lasa/kept"] == pytest.approx(14 / 3) and verdict.info["lasa/clip_bound"] == pytest.approx(
        3**0.5
    )
