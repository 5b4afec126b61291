"""Cohorts: exactly as many attackers as promised, drawn evenly, the same for every run with the same seed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from flame.round.cohort import BEGAN, EvaluatedRounds, Population, Schedule

ALWAYS = Schedule(start=0, stop=None, every=1)
POPULATION = Population(
    clients=100, per_round=20, poisoned_model_rate=0.2, rule="fixed", schedule=ALWAYS, hostile=True, seed=0
)


@given(
    clients=st.integers(1, 60),
    share=st.floats(0.01, 1),
    pmr=st.floats(0, 0.99),
    seed=st.integers(0, 99),
    round_=st.integers(0, 500),
    rule=st.sampled_from(["fixed", "random"]),
)
@example(clients=3, share=0.5, pmr=0.75, seed=0, round_=0, rule="fixed")  # 2 of 2: no benign client, 1 is left at home
def test_every_cohort(clients: int, share: float, pmr: float, seed: int, round_: int, rule: str) -> None:
    n = max(1, round(share * clients))
    of = n if rule == "fixed" else clients
    hostile = round(pmr * of)  # some, where PMR is not 0, and not all
    if (pmr > 0 and hostile == 0) or hostile == of or round(pmr * clients) == clients:
        with pytest.raises(ValueError, match="poisoned_model_rate"):
            Population(clients, n, pmr, rule, ALWAYS, True, seed)
        return
    population = Population(clients, n, pmr, rule, ALWAYS, True, seed)
    cohort, truth = population.cohort(round_), population.compromised()
    assert cohort.ids.shape == cohort.compromised.shape == (n,)
    assert cohort.ids.dtype == torch.int64 and cohort.compromised.dtype == torch.bool
    assert bool((cohort.ids.diff() > 0).all()) and cohort.ids[0] >= 0 and cohort.ids[-1] < clients
    assert int(truth.sum()) == round(pmr * clients)
    assert torch.equal(cohort.compromised, truth[cohort.ids])
    if rule == "fixed" and round(pmr * n) <= truth.sum() and n - round(pmr * n) <= (~truth).sum():
        assert int(cohort.compromised.sum()) == round(pmr * n)


def test_fixed_means_exactly_pmr_times_n() -> None:
    for round_ in range(200):
        assert int(POPULATION.cohort(round_).compromised.sum()) == 4


def test_fixed_draws_everyone_evenly() -> None:
    """500 rounds of 20 out of 100: each client takes part in 100, give or take 5 standard deviations of 9."""
    counts = torch.zeros(100)
    for round_ in range(500):
        counts[POPULATION.cohort(round_).ids] += 1
    assert int(counts.sum()) == 500 * 20
    assert float((counts - 100).abs().max()) < 5 * (500 * 0.2 * 0.8) ** 0.5


def test_random_is_hypergeometric() -> None:
    """20 out of 100 with 20 compromised: mean 4 and variance 20 * 0.2 * 0.8 * 80 / 99 = 2.586 attackers a round."""
    population = replace(POPULATION, rule="random")
    counts = torch.tensor([population.cohort(r).compromised.sum() for r in range(1000)], dtype=torch.float64)
    variance = 20 * 0.2 * 0.8 * 80 / 99
    assert abs(float(counts.mean()) - 4) < 5 * (variance / 1000) ** 0.5
    assert abs(float(counts.var()) / variance - 1) < 5 * (2 / 999) ** 0.5


def test_a_cohort_is_a_function_of_seed_and_round() -> None:
    one, same = POPULATION.cohort(7), replace(POPULATION).cohort(7)
    assert torch.equal(one.ids, same.ids) and torch.equal(one.compromised, same.compromised)
    assert not torch.equal(one.ids, POPULATION.cohort(8).ids)
    assert not torch.equal(one.ids, replace(POPULATION, seed=1).cohort(7).ids)
    assert not torch.equal(POPULATION.compromised(), replace(POPULATION, seed=1).compromised())


@pytest.mark.parametrize("rule", ["fixed", "random"])
def test_without_attack_the_cohorts_are_the_same(rule: str) -> None:
    attacked = replace(POPULATION, rule=rule)
    peaceful = replace(attacked, hostile=False)
    for round_ in range(20):
        assert torch.equal(attacked.cohort(round_).ids, peaceful.cohort(round_).ids)
        assert not peaceful.cohort(round_).compromised.any()


@pytest.mark.parametrize(
    ("schedule", "active"),
    [
        (Schedule(0, None, 1), {0, 1, 2, 3, 4, 5, 6, 7}),
        (Schedule(2, None, 1), {2, 3, 4, 5, 6, 7}),
        (Schedule(2, 5, 1), {2, 3, 4}),
        (Schedule(1, None, 3), {1, 4, 7}),
        (Schedule(1, 5, 3), {1, 4}),
        (Schedule(3, 4, 1), {3}),  # single shot
        (Schedule(3, 3, 1), set()),
    ],
)
@pytest.mark.parametrize("rule", ["fixed", "random"])
def test_schedule(schedule: Schedule, active: set[int], rule: str) -> None:
    """Outside the attacked rounds compromised clients take part, and train benignly."""
    always = replace(POPULATION, rule=rule)
    scheduled, truth = replace(always, schedule=schedule), always.compromised()
    for round_ in range(8):
        assert schedule.active(round_) == (round_ in active)
        cohort = scheduled.cohort(round_)
        assert torch.equal(cohort.ids, always.cohort(round_).ids)
        assert torch.equal(cohort.compromised, truth[cohort.ids] & (round_ in active))
        assert bool(truth[cohort.ids].any())  # of 20 out of 100 with 20 compromised, in these eight rounds
        if rule == "fixed":
            assert int(cohort.compromised.sum()) == (4 if round_ in active else 0)


def test_too_few_attackers_or_too_few_others() -> None:
    """The cohort is always full: 3 of 4 clients compromised, then everyone but one."""
    assert int(replace(POPULATION, clients=4, per_round=4, poisoned_model_rate=0.75).cohort(0).compromised.sum()) == 3
    few = replace(POPULATION, clients=21, per_round=20, poisoned_model_rate=0.1)  # 2 compromised, round(0.1 * 20) = 2
    assert int(few.cohort(0).compromised.sum()) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 0}, r"clients=0 is out of range"),
        ({"per_round": 101}, r"clients_per_round=101 is out of range: must be in \[1, clients=100\]"),
        ({"per_round": 0}, r"clients_per_round=0 is out of range"),
        ({"poisoned_model_rate": 1.0}, r"poisoned_model_rate=1.0 is out of range: must be in \[0, 1\)"),
        ({"poisoned_model_rate": -0.1}, r"poisoned_model_rate=-0.1 is out of range"),
        ({"poisoned_model_rate": float("nan")}, r"poisoned_model_rate=nan is out of range"),
        ({"per_round": 3, "poisoned_model_rate": 0.9}, r"0.9 of clients_per_round=3 rounds to no benign client"),
        ({"poisoned_model_rate": 0.995}, r"poisoned_model_rate=0.995 of clients=100 rounds to all of them: lower it"),
        ({"poisoned_model_rate": 0.02}, r"poisoned_model_rate=0.02 of clients_per_round=20 rounds to no attacker"),
        ({"poisoned_model_rate": 0.004, "rule": "random"}, r"=0.004 of clients=100 rounds to no attacker"),
        ({"rule": "some"}, r"attackers='some' is unknown: must be fixed or random"),
    ],
)
def test_population_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(POPULATION, **change)


def test_without_attack_any_rate_will_do() -> None:
    for rate in (0.004, 0.995):
        assert not replace(POPULATION, poisoned_model_rate=rate, hostile=False).cohort(0).compromised.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, None, 0), "attack_rounds.every=0"), ((-1, None, 1), "start=-1"), ((3, 2, 1), "start=3, stop=2")],
)
def test_schedule_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)


def test_a_run_in_which_no_attacker_is_drawn() -> None:
    """One of 100 clients is compromised, two are drawn a round: in a single attacked round most seeds have none."""
    once = replace(
        POPULATION, clients=100, per_round=2, poisoned_model_rate=0.01, rule="random", schedule=Schedule(3, 4, 1)
    )
    found = [replace(once, seed=seed).attacked(10) for seed in range(200)]
    assert found == [bool(replace(once, seed=seed).cohort(3).compromised.any()) for seed in range(200)]
    assert 0 < sum(found) < 20
    assert not any(replace(once, seed=seed).attacked(3) for seed in range(20))
    assert replace(once, rule="fixed", poisoned_model_rate=0.5).attacked(10)
    assert not replace(once, rule="fixed", poisoned_model_rate=0.5, hostile=False).attacked(10)


def test_the_attacker_s_clients_are_drawn_once_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, draw = [], Population.compromised
    monkeypatch.setattr(Population, "compromised", lambda population: calls.append(0) or draw(population))
    assert not replace(POPULATION, hostile=False, schedule=Schedule(0, None, 1)).attacked(50)
    assert len(calls) == 1


@pytest.mark.parametrize(("start", "stop", "every"), [(0, None, 1), (2, None, 3), (1, 5, 2), (4, 4, 1), (0, 99, 1)])
def test_attacked_rounds_are_the_active_ones(start: int, stop: int | None, every: int) -> None:
    schedule = Schedule(start, stop, every)
    assert [*schedule.rounds(9)] == [r for r in range(9) if schedule.active(r)]


def test_how_many_colluders_a_round_may_have() -> None:
    many = replace(POPULATION, clients=20, per_round=10, poisoned_model_rate=0.2, rule="fixed")
    assert [*many.colluders] == [2]
    assert [*replace(many, rule="random").colluders] == [1, 2, 3, 4]
    assert not replace(many, hostile=False).colluders and not replace(many, poisoned_model_rate=0.0).colluders


@given(rounds=st.integers(1, 60), every=st.integers(1, 70), last=st.integers(1, 70))
def test_evaluated_rounds_are_every_kth_and_the_last(rounds: int, every: int, last: int) -> None:
    wanted = {r for r in range(rounds) if (r + 1) % every == 0 or r >= rounds - last}
    found = EvaluatedRounds(rounds, every, last)
    assert {r for r in range(-5, rounds + 5) if r in found} == wanted
    assert len(found) == len(wanted) and "1" not in found


def test_any_number_of_rounds_takes_no_memory() -> None:
    found = EvaluatedRounds(30_000_000, 2, 5)
    tracemalloc.start()
    try:
        assert 1 in found and 0 not in found and 29_999_998 in found and len(found) == 15_000_002
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("schedule", "active"),
    [
        (Schedule(0, None, 1, 0.7), {3, 4, 5, 6, 7}),
        (Schedule(2, None, 1, 0.7), {5, 6, 7}),
        (Schedule(0, 1, 1, 0.7), {3}),  # single shot
        (Schedule(1, 4, 2, 0.7), {4, 6}),
    ],
)
def test_an_attack_that_waits_for_ma(schedule: Schedule, active: set[int]) -> None:
    """MA exceeds 0.7 in round 2, not when it equals it in round 1; that it falls back in round 4 changes nothing."""
    population, truth = replace(POPULATION, schedule=schedule), POPULATION.compromised()
    memory: Mapping[str, torch.Tensor] = {"other": torch.ones(1)}
    for round_, ma in enumerate([0.2, 0.7, 0.71, 0.9, 0.1, 0.8, 0.8, 0.8]):
        cohort = population.cohort(round_, memory)
        assert torch.equal(cohort.ids, POPULATION.cohort(round_).ids)
        assert torch.equal(cohort.compromised, truth[cohort.ids] & (round_ in active))
        assert population.waits(memory) == (round_ <= 2)
        memory = schedule.noted(memory, ma, round_ + 1)
    assert memory.keys() == {"other", BEGAN} and int(memory[BEGAN]) == 3


def test_without_after_ma_or_attack_nothing_waits() -> None:
    assert not POPULATION.waits({}) and not ALWAYS.noted({}, 1.0, 1)
    waiting = replace(POPULATION, schedule=replace(ALWAYS, after_ma=0.5))
    assert waiting.waits({}) and not replace(waiting, hostile=False).waits({})
    assert waiting.attacked(10) and not replace(waiting, hostile=False).attacked(10)


def test_an_attack_that_never_began_is_said() -> None:
    waiting = replace(POPULATION, schedule=Schedule(2, None, 1, 0.9))
    assert "after_ma=0.9, its best: 0.8123; lower it" in str(waiting.unattacked(10, {}, 0.8123))
    late, soon = ({BEGAN: torch.tensor(began)} for began in (8, 7))
    assert "first exceeded attack_rounds.after_ma=0.9 in round 7 of 10" in str(waiting.unattacked(10, late, 0.95))
    assert waiting.unattacked(10, soon, 0.95) is None and POPULATION.unattacked(10, {}, 0.5) is None
    assert replace(waiting, hostile=False).unattacked(10, {}, 0.5) is None


@pytest.mark.parametrize("share", [0.0, 1.0, 70, float("nan")])
def test_after_ma_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=r"attack_rounds\.after_ma=.* is out of range: must be in \(0, 1\)"):
        Schedule(0, None, 1, share)
