"""Rules published around and after FLAME, against numbers worked by hand: clipping, selection, mixing, inspection."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from test_defenses import NEIGHBOURS, a_round, answer, assert_close, stream

from flame.defenses.alignins import AlignIns, mz_scores, sign_alignment
from flame.defenses.base import Defense
from flame.defenses.bnguard import BNGuard, first_statistics
from flame.defenses.bucketing import Bucketing, buckets
from flame.defenses.bulyan import Bulyan, closest_mean
from flame.defenses.centered_clipping import CenteredClipping
from flame.defenses.crfl import CRFL
from flame.defenses.dnc import DnC, outlier_scores
from flame.defenses.fedavg import FedAvg
from flame.defenses.flshield import FLShield
from flame.defenses.fltrust import FLTrust
from flame.defenses.krum import Krum
from flame.defenses.nnm import NNM, neighbours
from flame.defenses.signguard import SignGuard, sign_shares
from flame.defenses.trimmed_mean import TrimmedMean
from flame.geometry.layout import StateLayout
from flame.round.smoothing import Smoothing
from flame.round.types import ServerState
from flame.run.build import make

MEAN = FedAvg(weights="uniform")
SIGNGUARD = SignGuard(lower=0.1, upper=3.0, coordinates=1.0)
ALIGNINS = AlignIns(sparsity=0.34, sign_radius=1.0, direction_radius=1.0)
SMOOTHING = Smoothing(copies=20, noise_std=0.01, alpha=0.001)
DNC = DnC(malicious_share=0.2, filter_factor=1.0, coordinates=3, passes=1)


def test_centered_clipping_starts_at_the_last_aggregate() -> None:
    rule = CenteredClipping(bound=1.0, iterations=1)
    first = answer(rule, a_round([[3, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, -20]]))
    assert_close(first.state.row, 0.2, 0, -0.2)  # each moves it by at most 1 / 5
    assert_close(first.weights, 1 / 15, 0.2, 0.2, 0.2, 0.01)
    second = a_round([[0.2, 2, -0.2], *[[0.2, 0, -0.2]] * 4], base=first.state.row)
    verdict = answer(rule, second, first.state)
    assert_close(verdict.state.row - first.state.row, 0.2, 0.2, -0.2)
    assert_close(verdict.weights, 0.1, 0.2, 0.2, 0.2, 0.2)
    assert verdict.info["centered_clipping/kept"] == pytest.approx(0.1)


@pytest.mark.parametrize("size", [1.0, 1e6, 1e14])
def test_one_client_moves_centered_clipping_by_no_more_than_its_share(size: float) -> None:
    rows = torch.randn(5, 3, generator=stream())
    rule, other = CenteredClipping(bound=0.5, iterations=1), rows.clone()
    rows[4], other[4] = torch.tensor([size, -size, size]), 0
    shift = answer(rule, a_round(rows)).state.row - answer(rule, a_round(other)).state.row
    assert shift.norm() <= 0.1 * (1 + 1e-5)  # tau / n


ALONG_ONE = [[0, 0, 0], [0, 1, 0], [0, -1, 0], [1, 0, 0], [9, 0, 0]]  # centred: -2, -2, -2, -1, 7 along the first axis


def test_dnc_drops_the_furthest_along_the_main_direction() -> None:
    assert_close(outlier_scores(torch.tensor(ALONG_ONE)), 4, 4, 4, 1, 49)
    verdict = answer(DNC, a_round(ALONG_ONE))
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
    assert_close(verdict.state.row, 0.25, 0, 0)
    assert_close(answer(replace(DNC, filter_factor=9.0), a_round(ALONG_ONE)).weights, 0, 0, 0, 1, 0)


def test_dnc_accepts_who_is_kept_in_every_pass() -> None:
    rows = torch.tensor([[9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 0], [1, 1, 1]])
    one_by_one = replace(DNC, coordinates=1, passes=20)  # some pass draws each coordinate
    assert answer(one_by_one, a_round(rows)).accepted.tolist() == [False, False, False, True, True]


def test_bulyan_picks_then_takes_the_middle() -> None:
    rows = [[x, 0, 0] for x in (0, 1, 2, 3, 4, 5, 100)]  # picked in this order: 2, 3, 1, 4, 5; middle three: 2, 3, 4
    verdict = answer(Bulyan(malicious_share=0.15), a_round(rows))
    assert_close(verdict.weights, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0)
    assert_close(verdict.state.row, 3, 0, 0)
    assert verdict.info == {"bulyan/f": 1.0}
    assert_close(closest_mean(torch.tensor([[16.0, 1, 2, 8, 4]]), 3), 7 / 3)  # median 4: 4, 2, 1
    assert_close(closest_mean(torch.tensor([[3.0, 20, 1, 5]]), 2), 4)


@pytest.mark.parametrize(("n", "f"), [(1, 0), (6, 0), (7, 1), (10, 1), (11, 2)])
def test_bulyan_lowers_f_until_the_paper_allows_it(n: int, f: int) -> None:
    verdict = answer(Bulyan(malicious_share=0.2), a_round(torch.randn(n, 3, generator=stream())))
    assert verdict.info["bulyan/f"] == f
    assert int(verdict.accepted.sum()) == n - 2 * f


def test_nnm_weighs_a_client_by_the_means_it_is_in() -> None:
    mixing = neighbours(a_round(NEIGHBOURS).geometry.squared_distances("weights_only"), 4)
    assert (4 * mixing).tolist() == [[1, 1, 1, 1, 0]] * 4 + [[0, 1, 1, 1, 1]]
    verdict = answer(NNM(malicious_share=0.2, rule=MEAN), a_round(NEIGHBOURS))
    assert_close(verdict.state.row, 1.5, 0.5, 1.5)  # four times (1, 0, 1), once (3.5, 2.5, 3.5)
    assert_close(verdict.weights, 0.2, 0.25, 0.25, 0.25, 0.05)
    verdict = answer(NNM(malicious_share=0.2, rule=Krum(malicious_share=0.2, keep=1)), a_round(NEIGHBOURS))
    assert_close(verdict.state.row, 1, 0, 1)
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)


def test_bucketing_weighs_a_client_by_its_bucket() -> None:
    assert (2 * buckets(torch.tensor([4, 2, 0, 1, 3]), 2)).tolist() == [
        [0, 0, 1, 0, 1],
        [1, 1, 0, 0, 0],
        [0, 0, 0, 2, 0],
    ]
    weights = answer(Bucketing(size=2, rule=MEAN), a_round(NEIGHBOURS)).weights
    assert_close(weights.sort().values, *[1 / 6] * 4, 1 / 3)
    assert_close(answer(Bucketing(size=9, rule=MEAN), a_round(NEIGHBOURS)).state.row, 2.8, 2, 2.8)
    krum = Krum(malicious_share=0.2, keep=1)
    one, plain = answer(Bucketing(size=1, rule=krum), a_round(NEIGHBOURS)), answer(krum, a_round(NEIGHBOURS))
    assert torch.equal(one.state.row, plain.state.row) and torch.equal(one.weights, plain.weights)


def test_wrappers_take_any_rule_and_one_another(compose: Any) -> None:
    inner = ("defense@defense.rule=nnm", "defense@defense.rule.rule=median")
    built = make(compose("dataset=digits", "defense=bucketing", *inner), "defense")
    assert built == Bucketing(2, NNM(0.2, TrimmedMean(trim=0.5)))


@pytest.mark.parametrize("wrap", [lambda rule: NNM(0.2, rule), lambda rule: Bucketing(2, rule)])
def test_wrappers_ask_for_what_the_inner_rule_needs(wrap: Any) -> None:
    assert wrap(FLTrust(root_samples=7)).root_samples == 7
    assert wrap(MEAN).root_samples == 0 and not wrap(MEAN).needs_lab
    assert wrap(wrap(FLShield("bijective", 0.0, 1))).needs_lab


def test_signguard_filters_by_length_and_by_signs() -> None:
    rows = [[1, 1, 1], [1, 1, 2], [4, 1, 1], [-1, -1, -1], [100, 100, 100]]  # lengths: median sqrt(6)
    verdict = answer(SIGNGUARD, a_round(rows))
    assert_close(verdict.weights, 1 / 3, 1 / 3, 1 / 3, 0, 0)
    third = 1 / sqrt(3)  # client 2 is sqrt(18) long
    assert_close(verdict.state.row, (2 + 4 * third) / 3, (2 + third) / 3, (3 + third) / 3)
    assert verdict.info["signguard/usual_length"] == 4 and verdict.info["signguard/usual_signs"] == 4
    shares = sign_shares(torch.tensor([[1, -2, 0, 3], [0, 0, 0, -1]]))
    assert shares.tolist() == [[0.5, 0.25, 0.25], [0, 0.75, 0.25]]


def test_alignins_inspects_direction_and_signs() -> None:
    rows = [[2, 1, 1], [2, 1, -1], [2, -1, 1], [4, 2, 2], [-2, 1, 1]]  # TDA 2 / sqrt(6) and its negative; MPSA 1 and 0
    updates = a_round(rows, base=torch.tensor([3.0, 0.0, 0.0]))
    for rule in (ALIGNINS, replace(ALIGNINS, direction_radius=3.0), replace(ALIGNINS, sign_radius=3.0)):
        verdict = answer(rule, updates)  # either filter rejects client 4
        assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
        assert_close(verdict.state.row, 5, 0.5, 0.5)  # client 3 is clipped to the median length of the accepted
        assert verdict.info["alignins/clip_bound"] == pytest.approx(sqrt(6))
    assert bool(answer(replace(ALIGNINS, sign_radius=3.0, direction_radius=3.0), updates).accepted.all())
    assert_close(mz_scores(torch.tensor([1.0, 1, 1, 1, 0])), 0, 0, 0, 0, 2.5)
    assert sign_alignment(torch.tensor([3.0, -2, 1, 0.1]), torch.tensor([1.0, 1, -1, -1]), 2) == 0.5


NORMED = StateLayout.from_state(
    {"w": torch.zeros(1), "bn.running_mean": torch.zeros(2), "bn.running_var": torch.zeros(2), "out.w": torch.zeros(2)},
    ["w", "out.w"],
)


def test_bnguard_keeps_the_larger_cluster_of_statistics() -> None:
    usual = [1, 0, 0, 1, 3, 2, 2]  # means 1 and 3: mean 2, variance 1; variances 2 and 2: mean 2, variance 0
    rows = torch.tensor([usual, usual, usual, [5, 0, 0, 1, 3, 2, 2.5], [1, 0, 0, 1, 3, 8, 9]])
    updates = a_round(rows, layout=NORMED)
    assert first_statistics(updates)[[0, 4]].tolist() == [[2, 0, 2, 1], [8.5, 0.25, 2, 1]]
    verdict = answer(BNGuard(), updates)
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
    assert_close(verdict.state.row, 2, 0, 0, 1, 3, 2, 2.125)
    assert_close(answer(BNGuard(), a_round(rows[[0, 4]], layout=NORMED)).weights, 0.5, 0.5)  # halves
    with pytest.raises(ValueError, match=r"model\.norm=batch"):
        answer(BNGuard(), a_round(NEIGHBOURS))


def test_crfl_clips_the_model_and_perturbs_it() -> None:
    rule, updates = CRFL(bound=5.0, growth=1.0, noise_std=0.0, randomized_smoothing=SMOOTHING), a_round([[6, 8, 0]] * 5)
    assert_close(answer(rule, updates).state.row, 3, 4, 0)
    later = ServerState(updates.base, updates.base_counters, round=2)
    assert_close(answer(rule, updates, later).state.row, 4.2, 5.6, 0)
    assert_close(answer(replace(rule, bound=50.0), updates).state.row, 6, 8, 0)
    noisy = replace(rule, noise_std=0.25)
    draws = torch.cat([noisy(later, updates, stream(seed)).state.row for seed in range(1000)])
    assert (draws.view(-1, 3) - torch.tensor([4.2, 5.6, 0])).std().item() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("rule", [DNC, SIGNGUARD, ALIGNINS, CRFL(9.0, 0.0, 0.1, SMOOTHING), BNGuard()])
def test_rules_that_average_keep_counters_and_leave_statistics_unclipped(rule: Defense) -> None:
    rows = torch.tensor([[1.0, 1, 1, 100, 100, 100, 100]]).repeat(5, 1)
    verdict = answer(rule, a_round(rows, layout=NORMED, base=torch.ones(7)))
    assert_close(verdict.state.row[3:], *[101] * 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CenteredClipping(bound=0.0, iterations=1), "defense.bound=0.0"),
        (lambda: CenteredClipping(bound=1.0, iterations=0), "defense.iterations=0"),
        (lambda: replace(DNC, malicious_share=0.5), "defense.malicious_share=0.5"),
        (lambda: replace(DNC, filter_factor=-1.0), "defense.filter_factor=-1.0"),
        (lambda: replace(DNC, passes=0), "defense.passes=0"),
        (lambda: Bulyan(malicious_share=0.25), "defense.malicious_share=0.25"),
        (lambda: NNM(malicious_share=0.5, rule=MEAN), "defense.malicious_share=0.5"),
        (lambda: Bucketing(size=0, rule=MEAN), "defense.size=0"),
        (lambda: replace(SIGNGUARD, lower=1.1), "defense.lower=1.1"),
        (lambda: replace(SIGNGUARD, coordinates=0.0), "defense.coordinates=0.0"),
        (lambda: replace(ALIGNINS, sparsity=0.0), "defense.sparsity=0.0"),
        (lambda: replace(ALIGNINS, sign_radius=0.0), "defense.sign_radius=0.0"),
        (lambda: CRFL(0.0, 0.0, 0.0, SMOOTHING), "defense.bound=0.0"),
        (lambda: CRFL(1.0, 0.0, -1.0, SMOOTHING), "defense.noise_std=-1.0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
