"""CAF, SMEA and ARC by hand, and against byzfl on twenty seeded rounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from oracles.byzfl_rounds import FILE, ROUNDS, answers, module, rows
from oracles.recorded import recorded_round
from test_defenses import a_round, answer, assert_close

from flame.defenses.arc import ARC, shortened
from flame.defenses.caf import CAF, along_main_direction
from flame.defenses.fedavg import FedAvg
from flame.defenses.krum import Krum
from flame.defenses.norm_clip import NormClip
from flame.defenses.smea import SMEA, narrowest
from flame.geometry.products import Geometry
from flame.run.build import make

RULES = {"caf": CAF(0.2), "smea": SMEA(0.2), "arc": ARC(0.2, FedAvg(weights="uniform"))}
RECORDED = json.loads(FILE.read_text())


def along_updates(name: str, seed: int, n: int) -> list[float]:
    """[n], as `answers` has it, by the project's rule."""
    recorded = recorded_round(seed, n)
    verdict = RULES[name](recorded.state, recorded.updates, torch.Generator())
    if name == "arc":
        assert verdict.clip_factors is not None
        return verdict.clip_factors.tolist()
    moved = (verdict.state.row - recorded.state.row)[: recorded.updates.layout.trainable]
    found: list[float] = (rows(seed, n) @ moved.double()).tolist()
    return found


@pytest.mark.parametrize("name", RULES)
def test_the_recorded_answers_of_byzfl(name: str) -> None:
    for (seed, n), theirs in zip(ROUNDS, RECORDED, strict=True):
        assert along_updates(name, seed, n) == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), seed


@pytest.mark.parametrize("place", [0, 1, 13])
def test_the_record_is_what_byzfl_says(place: int) -> None:
    if module("aggregators.aggregators") is None:
        pytest.skip("byzfl is not installed")
    for name, values in answers(*ROUNDS[place]).items():
        assert values == pytest.approx(RECORDED[place][name], rel=1e-6)


def test_caf_takes_weight_from_who_is_far_along_the_main_direction() -> None:
    gram = torch.tensor([[9, -3, -3], [-3, 1, 1], [-3, 1, 1]], dtype=torch.float64)  # 3, -1, -1 on a line; mean 1/3
    variance, squares = along_main_direction(gram, torch.ones(3).double())
    assert variance == pytest.approx(32 / 9) and squares.tolist() == pytest.approx([64 / 9, 16 / 9, 16 / 9])
    verdict = answer(CAF(0.2), a_round([[x, 0, 0] for x in (0, 0, 0, 0, 10)]))  # 16 around 2, then 0 around 0
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
    assert verdict.info == {"caf/f": 1.0, "caf/largest_variance": pytest.approx(0)}
    unequal = answer(CAF(0.2), a_round([[x, 0, 0] for x in (-1, 1, 2, 2, 6)]))
    assert_close(unequal.state.row, 4 / 3, 0, 0)  # t: 9, 1, 0, 0, 16 around 2, so that c = 7/16, 15/16, 1, 1, 0
    assert unequal.info["caf/largest_variance"] == pytest.approx(1)  # then 2.755 are left, which is not above 3


def test_a_far_client_does_not_shield_a_nearer_one() -> None:
    """Where the maximum is over everybody, the far one's stays it, and the nearer one keeps its weight for ever."""
    verdict = answer(CAF(0.2), a_round([[x, 0, 0] for x in (0, 1, 2, 0, 1, 2, 0, 2, 50, 1e6)]))
    assert verdict.weights[8] < 1e-9 and verdict.weights[9] == 0
    assert 0.9 < verdict.state.row[0] < 1.1


@pytest.mark.parametrize("size", [1e3, 1e10])
def test_one_far_client_moves_neither_rule(size: float) -> None:
    rows_ = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    rows_ = torch.cat([rows_, torch.full((1, 3), size)])
    for rule in (CAF(0.2), SMEA(0.2)):
        verdict = answer(rule, a_round(rows_))
        assert verdict.weights[9] == 0 and verdict.state.row.norm() < 2


def test_smea_takes_the_choice_that_spreads_least() -> None:
    verdict = answer(SMEA(0.2), a_round([[x, 0, 0] for x in (0, 1, 2, 3, 9)]))
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
    assert_close(verdict.state.row, 1.5, 0, 0)
    assert verdict.info == {"smea/f": 1.0, "smea/largest_variance": pytest.approx(1.25)}
    cross = torch.tensor([[3, 0], [-3, 0], [0, 2], [0, -2]], dtype=torch.float64)  # not both of the first
    chosen, spread = narrowest(cross @ cross.T, 3)
    assert spread == pytest.approx(8 / 3) and chosen[2:].all() and chosen[:2].sum() == 1


def test_smea_is_for_small_rounds() -> None:
    SMEA(0.2).check_clients(25)
    with pytest.raises(ValueError, match=r"defense\.malicious_share=0.2 .* 30 clients.* 593,775 choices"):
        SMEA(0.2).check_clients(30)
    SMEA(0.1).check_clients(30)


def test_arc_clips_the_longest_to_the_next_length() -> None:
    rows_ = [[3, 4, 0], [0, 1, 0], [0, 0, 2], [1, 0, 0], [0, 3, 0]]  # 2 * 1 * 4 // 5 = 1 of five
    verdict = answer(RULES["arc"], a_round(rows_))
    assert_close(verdict.state.row, 2.8 / 5, 6.4 / 5, 0.4)
    assert verdict.info["arc/clip_bound"] == 3 and verdict.info["arc/clipped"] == 1
    inner = answer(ARC(0.2, NormClip(bound=1.5, noise_std=0.0)), a_round(rows_))  # 0.6 * 0.5 of the longest
    assert inner.clip_factors is not None and inner.clip_factors.tolist() == pytest.approx([0.3, 1, 0.75, 1, 0.5])


def test_arc_hands_on_the_geometry_of_what_it_clipped() -> None:
    updates = recorded_round(3, 10).updates
    factors = torch.linspace(0.2, 1, 10, dtype=torch.float64)
    short = shortened(updates, factors)
    measured = Geometry.measure(
        short.layout, short.base, short.rows, short.base_counters, short.counters - short.base_counters
    )
    for scope in ("weights_only", "all_state"):
        one, two = short.geometry.scope(scope), measured.scope(scope)
        torch.testing.assert_close(one.gram, two.gram, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.along, two.along, rtol=1e-5, atol=1e-6)
    assert shortened(updates, torch.ones(10).double()) is updates


def test_arc_goes_before_any_rule_and_asks_for_what_it_needs(compose: Any) -> None:
    built = make(compose("dataset=digits", "defense=arc", "defense@defense.rule=smea"), "defense")
    assert built == ARC(0.2, SMEA(0.2))
    with pytest.raises(ValueError, match=r"defense\.rule\.malicious_share"):
        built.check_clients(30)
    krum = answer(ARC(0.2, Krum(malicious_share=0.2, keep=1)), a_round([[1, 0, 0]] * 4 + [[100, 0, 0]]))
    assert_close(krum.state.row, 1, 0, 0)
