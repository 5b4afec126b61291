"""Hostile clients against every defense that conf/ has, and damaged files against every reader of a run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damaged import damaged_files
from hostile import (
    ALLOWED,
    LAYOUT,
    REFUSED,
    TRICKS,
    VARIANCES,
    check,
    honest,
    hostile,
    hostile_rounds,
    start_state,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import NAMES as DEFENSES
from rules import defense

from flame.defenses.base import defend
from flame.geometry.guard import LARGEST_NORM, LARGEST_STEP
from flame.round.seeding import generator
from flame.round.types import ServerState, Updates, Verdict


def judged(name: str, state: ServerState, updates: Updates) -> Verdict:
    """A defense's checked verdict."""
    verdict = defend(defense(name), state, updates, generator(0, "defense", state.round))
    check(verdict, state, updates)
    return verdict


@pytest.mark.parametrize("trick", TRICKS)
def test_guard_refuses_what_training_cannot_send_and_nothing_else(trick: str) -> None:
    state = start_state(generator(1, "state"))
    updates = hostile(honest(state, 5, generator(1, "updates")), {2: trick})
    usable, info = updates.guarded
    assert usable.tolist() == [True, True, trick in ALLOWED, True, True]
    assert info["guard/nonfinite"] + info["guard/oversized"] == (trick in REFUSED)
    assert info["guard/implausible"] == (trick in ("negative running_var", "counter backwards"))


def test_guard_at_its_limits() -> None:
    state = start_state(generator(1, "state"))
    updates = honest(state, 4, generator(1, "updates"))
    updates.rows[0], updates.rows[1] = 0, 0
    updates.rows[0, 0], updates.rows[1, 0] = LARGEST_NORM, 1.01 * LARGEST_NORM
    updates.counters[2], updates.counters[3] = state.counters + LARGEST_STEP, state.counters + LARGEST_STEP + 1
    assert updates.guarded[0].tolist() == [True, False, True, False]


def test_a_negative_running_var_is_counted_and_the_global_one_floored() -> None:
    state = start_state(generator(1, "state"))
    updates = honest(state, 1, generator(1, "updates"))
    updates.rows[:, VARIANCES] = -state.row[VARIANCES] - 1e-3
    verdict = judged("fedavg", state, updates)
    assert verdict.info["guard/implausible"] == 1 and verdict.info["guard/floored"] > 0
    assert bool((verdict.state.row[VARIANCES] == 0).all())


def test_without_a_usable_update_the_model_stays() -> None:
    state = start_state(generator(1, "state"))
    updates = hostile(honest(state, 3, generator(1, "updates")), {0: "nan", 1: "inf", 2: "1e38"})
    verdict = judged("fedavg", state, updates)
    assert torch.equal(verdict.state.row, state.row)
    assert verdict.info["guard/kept_model"] == 1.0 and not verdict.accepted.any()


def test_what_made_the_model_nonfinite_is_forgotten() -> None:
    state = start_state(generator(1, "state"))
    updates = honest(state, 3, generator(1, "updates"))

    def overflowing(state: ServerState, updates: Updates, stream: torch.Generator) -> Verdict:
        nan = torch.full_like(state.row, torch.nan)
        return Verdict(replace(state, row=nan, memory={"rule/last": nan}), torch.full((3,), 1 / 3).double())

    verdict = defend(overflowing, state, updates, generator(0, "defense"))
    assert torch.equal(verdict.state.row, state.row) and not verdict.state.memory
    assert verdict.info["guard/kept_model"] == 1.0


def test_noise_below_zero_on_a_running_var_is_floored_and_counted() -> None:
    state = start_state(generator(1, "state"))

    def noisy(state: ServerState, updates: Updates, stream: torch.Generator) -> Verdict:
        row = state.row.clone()
        row[VARIANCES.start] = -0.25
        return Verdict(replace(state, row=row), torch.ones(1, dtype=torch.float64))

    verdict = defend(noisy, state, honest(state, 1, generator(1, "updates")), generator(0, "defense"))
    assert verdict.state.row[VARIANCES.start] == 0 and verdict.info["guard/floored"] == 1.0


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.parametrize("trick", TRICKS)
def test_one_of_seven_clients_is_hostile(name: str, trick: str) -> None:
    state = start_state(generator(2, "state"))
    judged(name, state, hostile(honest(state, 7, generator(2, "updates")), {3: trick}))


@pytest.mark.parametrize("name", DEFENSES)
def test_everyone_sends_the_same(name: str) -> None:
    state = start_state(generator(3, "state"))
    for n in (1, 2, 3, 8):
        updates = honest(state, n, generator(3, "updates"))
        for row in (updates.rows[0].clone(), torch.zeros(LAYOUT.size), torch.full((LAYOUT.size,), 1e-42)):
            updates.rows[:] = row
            judged(name, state, replace(updates))  # a copy: the geometry is cached per object


@pytest.mark.parametrize("name", DEFENSES)
@settings(max_examples=15, database=None)
@given(st.data())
def test_with_an_honest_majority_the_model_stays_finite_and_refused_clients_do_not_move_it(
    name: str, data: st.DataObject
) -> None:
    n = data.draw(st.integers(3, 11), label="clients")
    m = data.draw(st.integers(1, (n - 1) // 2), label="hostile")
    seed = data.draw(st.integers(0, 1000), label="seed")
    tricks = {i: data.draw(st.sampled_from(list(TRICKS))) for i in range(m)}
    state = start_state(generator(seed, "state"))
    updates = hostile(honest(state, n, generator(seed, "updates")), tricks)
    verdict = judged(name, state, updates)
    refused = [i for i, trick in tricks.items() if trick in REFUSED]
    assert not verdict.accepted[refused].any()
    keep = torch.ones(n, dtype=torch.bool)
    keep[refused] = False
    alone = judged(name, state, replace(updates.select(keep)))  # as if they had not taken part
    assert torch.allclose(verdict.state.row, alone.state.row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in DEFENSES if name in ("flame_weights_only", "flame_all_state")])
@settings(max_examples=25, database=None)
@given(seed=st.integers(0, 1000), trick=st.sampled_from(list(ALLOWED)))
def test_flame_lets_no_accepted_update_exceed_the_bound(name: str, seed: int, trick: str) -> None:
    state = start_state(generator(seed, "state"))
    updates = hostile(honest(state, 9, generator(seed, "updates")), {0: trick})
    verdict = judged(name, state, updates)
    assert verdict.clip_factors is not None
    norms = updates.geometry.norms("weights_only") * verdict.clip_factors
    bound = verdict.info["flame/clip_bound"]
    assert bool((norms[verdict.accepted] <= bound * (1 + 1e-6)).all())
    moved = (verdict.state.row - state.row)[LAYOUT.span("weights_only")].norm()
    noise = verdict.info["flame/noise_std"] * LAYOUT.trainable**0.5
    assert float(moved) <= bound * (1 + 1e-5) + 4 * noise


@pytest.mark.parametrize("size", [1e-6, 1e-12, 1e-20, 1e-38])
def test_tiny_update_is_as_far_from_the_others_as_its_direction_says(size: float) -> None:
    updates = honest(start_state(generator(4, "state")), 5, generator(4, "updates"))
    updates.rows[0] = size * torch.linspace(-1, 2, LAYOUT.size)
    rows = updates.rows[:, LAYOUT.span("weights_only")].double()
    directions = rows / rows.norm(dim=1, keepdim=True)
    distances = updates.geometry.cosine_distances("weights_only", "update")
    torch.testing.assert_close(distances, 1 - directions @ directions.T, rtol=0, atol=1e-9)


def test_sample_of_torture_rounds() -> None:
    assert hostile_rounds(200, DEFENSES, seed=1) == 200


def test_sample_of_torture_files(tmp_path: Path) -> None:
    assert damaged_files(tmp_path, 300, seed=1) == 300
