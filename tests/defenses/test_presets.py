"""Every public FLAME against a slow twin of its own code, and what its deviations lead to."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from oracles.public_flames import ORACLES
from oracles.recorded import as_recorded, cached_round, recorded_round
from oracles.rounds import Round
from torch import Generator

from flame.defenses.base import Defense, defend
from flame.round.types import Verdict
from flame.run.build import compose_defense

CELLS = [(s, n, bn) for n in (5, 10, 11, 20) for s in range(5 if n < 20 else 2) for bn in (True, False)]  # 34 rounds


@cache
def preset(name: str, factor: float = 0.0) -> Defense:
    return compose_defense([f"defense={name}", f"defense.noise.factor={factor}"])


def verdict(name: str, plain: Round, factor: float = 0.0) -> Verdict:
    record = as_recorded(plain)
    return defend(preset(name, factor), record.state, record.updates, Generator().manual_seed(0))


def check_against_oracle(name: str, plain: Round) -> None:
    found = verdict(name, plain)
    accepted, bound, expected = ORACLES[name](
        plain.global_state, plain.client_states, plain.trainable, plain.samples, noise=0.0
    )
    assert found.accepted.nonzero().flatten().tolist() == accepted
    assert found.info["flame/clip_bound"] == pytest.approx(bound, rel=1e-6)
    state = as_recorded(plain).plain(found.state)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ORACLES)
def test_preset_equals_the_public_code(name: str) -> None:
    for cell in CELLS:
        check_against_oracle(name, cached_round(*cell))


def shrunk(plain: Round, share: float) -> Round:
    """The same clients nearer to the global model: distances shrink with the square."""
    start = plain.global_state
    clients = [
        {k: start[k] + share * (v - start[k]) if v.is_floating_point() else v for k, v in w.items()}
        for w in plain.client_states
    ]
    return replace(plain, client_states=clients)


@pytest.mark.parametrize("name", ORACLES)
def test_preset_equals_the_public_code_where_float32_rounds_the_distances_away(name: str) -> None:
    for seed in range(4):
        check_against_oracle(name, shrunk(cached_round(seed, 10, seed % 2 == 0), 0.003))


@pytest.mark.parametrize("name", ORACLES)
def test_noise_goes_where_the_public_code_puts_it(name: str) -> None:
    """Per tensor: none in both, or the same standard deviation (640 and 1,152 draws: 4 standard errors are 11 %)."""
    plain, factor = cached_round(0, 10, True), 0.5
    record = as_recorded(plain)
    calm = {n: record.plain(verdict(name, plain, n).state) for n in (0.0, factor)}
    oracle = {
        n: ORACLES[name](plain.global_state, plain.client_states, plain.trainable, plain.samples, noise=n)[2]
        for n in (0.0, factor)
    }
    for key in oracle[0.0]:
        if key.endswith("running_var"):
            continue  # floored at 0
        mine, theirs = ((states[factor][key] - states[0.0][key]).double() for states in (calm, oracle))
        assert bool(mine.any()) == bool(theirs.any()), key
        if mine.numel() > 600 and bool(theirs.any()):
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.11), key


def aged(plain: Round, steps: int) -> Round:
    """The same round when every client has counted the same many steps before it."""
    clients = [
        {k: v if v.is_floating_point() else torch.tensor(steps + 10) for k, v in w.items()} for w in plain.client_states
    ]
    start = {k: v if v.is_floating_point() else torch.tensor(steps) for k, v in plain.global_state.items()}
    return replace(plain, global_state=start, client_states=clients)


def test_counters_in_a_float32_vector_switch_the_filter_off_with_time() -> None:
    """Steps grow, the angle between models shrinks below what float32 resolves, and everyone is accepted."""
    plain = cached_round(0, 20, True)
    young, old = (aged(plain, steps) for steps in (0, 100_000))
    assert int(verdict("flame_bnguard", young).accepted.sum()) < 20
    assert int(verdict("flame_bnguard", old).accepted.sum()) == 20
    assert int(verdict("flame_weights_only", old).accepted.sum()) < 20


def test_statistics_and_counters_in_the_norm_inflate_the_bound() -> None:
    plain = cached_round(1, 10, True)
    bounds = [verdict(name, plain).info["flame/clip_bound"] for name in ("flame_weights_only", "flame_flpoison")]
    assert bounds[1] > 2 * bounds[0]


def test_noise_on_running_var_is_floored_and_reported() -> None:
    record, plain = recorded_round(0, 10), cached_round(0, 10, True)
    found = verdict("flame_zhmzm", plain, 1.0)
    assert found.info["guard/floored"] > 0
    assert found.state.row[record.updates.layout.spans["running_var"]].min() == 0
    assert verdict("flame_weights_only", plain, 1.0).info["guard/floored"] == 0


def test_zhmzm_scales_a_client_by_the_norm_at_its_rank() -> None:
    """Clients 1, 2, 3 accepted: they get the factors of positions 0, 1, 2."""
    clip = preset("flame_zhmzm").clip  # type: ignore[attr-defined]
    norms, accepted = torch.tensor([4.0, 1, 2, 8]).double(), torch.tensor([False, True, True, True])
    assert clip.bound(norms, accepted) == 3
    assert clip.factors(norms, 3.0, accepted).tolist() == [1, 0.75, 1, 1]
