"""What every defense makes of broken, huge, tiny and equal updates, and that what it clips stays within its bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_defense_properties import (
    BY_POSITION,
    CLIPPING,
    LAYOUT,
    D,
    a_round,
    check,
    defense,
    every_defense,
    generic,
    stream,
)
from torch import Tensor

import flame.geometry.products
from flame.defenses.base import defend


@every_defense
@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 1e38, 1e20])
def test_an_unusable_update_is_rejected_and_changes_nothing(name: str, value: float) -> None:
    rows = generic(6)
    rows[2, 0] = value
    state, updates = a_round(rows)
    honest = torch.arange(6) != 2
    verdict = defend(defense(name), state, updates, stream())
    check(verdict, 6)
    assert verdict.weights[2] == 0 and verdict.info["guard/kept_model"] == 0
    without = defend(defense(name), state, updates.select(honest), stream())
    torch.testing.assert_close(verdict.weights[honest], without.weights)
    torch.testing.assert_close(verdict.state.row, without.state.row)


@every_defense
def test_a_short_update_counts_alike_on_both_sides_of_the_threshold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above `EXACT_ELEMENTS` products are taken in float32, about a centre that is much longer than one update."""
    rows = generic(7) + 10 * generic(1, seed=1)
    rows[2] *= 1e-6
    state, updates = a_round(rows)
    exact = defend(defense(name), state, updates.first(7), stream())
    monkeypatch.setattr(flame.geometry.products, "EXACT_ELEMENTS", 0)
    found = defend(defense(name), state, updates.first(7), stream())
    torch.testing.assert_close(found.weights, exact.weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.state.row, exact.state.row, rtol=1e-4, atol=1e-5)
    if exact.clip_factors is not None and found.clip_factors is not None:
        torch.testing.assert_close(found.clip_factors, exact.clip_factors, rtol=1e-4, atol=1e-6)


@every_defense
def test_one_huge_update_leaves_the_model_finite(name: str) -> None:
    rows = generic(7)
    rows[3, :D] = 1e14
    state, updates = a_round(rows)
    check(defend(defense(name), state, updates, stream()), 7)


KINDS = ["honest", "zero", "denormal", "negative", "duplicate", "large", "largest", "nan", "inf", "1e38"]


def hostile(kinds: list[str], seed: int) -> Tensor:
    """[n, d + b], one update of each kind; `negative` and `duplicate` refer to the client before."""
    rows = generic(len(kinds), seed)
    for i, kind in enumerate(kinds):
        if kind in ("negative", "duplicate"):
            rows[i] = rows[i - 1] * (-1 if kind == "negative" else 1)
        elif kind in ("large", "largest"):
            rows[i, :D] *= 1e4 if kind == "large" else 1e14
        elif kind != "honest":
            rows[i] = {"zero": 0.0, "denormal": 1e-42, "1e38": 1e38}.get(kind, float(kind) if kind[0] in "ni" else 0)
    return rows


@every_defense
@settings(max_examples=15)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=9), seed=st.integers(0, 10))
def test_hostile_rounds_leave_a_finite_model_and_a_valid_verdict(name: str, kinds: list[str], seed: int) -> None:
    state, updates = a_round(hostile(kinds, seed))
    for number in range(2):
        verdict = defend(defense(name), state, updates, stream(number))
        check(verdict, len(kinds))
        running_var = verdict.state.row[LAYOUT.spans["running_var"]]
        assert bool((running_var >= 0).all())
        assert all(bool(t.isfinite().all()) for t in verdict.state.memory.values())
        state = replace(state, memory=verdict.state.memory)


@every_defense
@settings(max_examples=8)
@given(n=st.integers(1, 8), value=st.sampled_from([0.0, 1e-42, 1e-20, 1.0, 1e6]), seed=st.integers(0, 5))
def test_rounds_of_equal_rows_do_not_divide_by_zero(name: str, n: int, value: float, seed: int) -> None:
    rows = (torch.randn(1, LAYOUT.size, generator=stream(seed)).abs() * value).expand(n, -1).clone()
    state, updates = a_round(rows)
    verdict = defend(defense(name), state, updates, stream())
    check(verdict, n)
    assert verdict.info["guard/kept_model"] == 0


# arc clips before another rule, lasa leaves parameters out of what it has clipped: tests of their own
@pytest.mark.parametrize("name", [name for name in CLIPPING if name not in ("arc", "lasa")])
@settings(max_examples=8)
@given(kinds=st.lists(st.sampled_from(KINDS[:7]), min_size=1, max_size=9), seed=st.integers(0, 5))
@example(kinds=["large"] * 9, seed=0)  # each rule clips some whom it accepts
def test_updates_are_clipped_to_the_bound_and_averaged_as_reported(name: str, kinds: list[str], seed: int) -> None:
    """The new row is the reference plus weights times factors times updates, and no accepted one exceeds the bound."""
    state, updates = a_round(hostile(kinds, seed))
    rule: Any = defense(name, quiet=True)
    verdict = rule(state, updates, stream())
    assert verdict.clip_factors is not None
    sent = rule.clip.centre(updates) if hasattr(rule, "clip") else updates
    scaled = not hasattr(rule, "clip") or rule.clip.apply_to != "nothing"
    parts = (verdict.weights * (verdict.clip_factors if scaled else 1))[:, None] * sent.rows[:, :D]
    wanted, magnitude = sent.base[:D] + parts.sum(0), sent.base[:D].abs() + parts.abs().sum(0)
    assert bool(((verdict.state.row[:D] - wanted).abs() <= 1e-6 * magnitude).all())
    if name != BY_POSITION:
        (bound,) = (value for key, value in verdict.info.items() if key.endswith("/clip_bound"))
        norms = rule.clip.norms(sent) if hasattr(rule, "clip") else updates.geometry.norms("weights_only")
        assert bool(((norms * verdict.clip_factors)[verdict.accepted] <= bound * (1 + 1e-9)).all())
