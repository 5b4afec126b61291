"""Each rule against numbers worked by hand: five clients, three coordinates (one in the trunk, two in the head)."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from flame.defenses.afa import AFA
from flame.defenses.auror import Auror
from flame.defenses.base import Defense, check_minority, minority
from flame.defenses.columns import SLAB_ELEMENTS, columnwise
from flame.defenses.fltrust import FLTrust
from flame.defenses.foolsgold import FoolsGold
from flame.defenses.krum import Krum, krum_scores
from flame.defenses.norm_clip import NormClip
from flame.defenses.rfa import RFA
from flame.defenses.rlr import RLR
from flame.defenses.trimmed_mean import TrimmedMean, trimmed
from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, Updates, Verdict

PLAIN = StateLayout.from_state({"body.w": torch.zeros(1), "out.w": torch.zeros(2)}, ["body.w", "out.w"])
NORMED = StateLayout.from_state(
    {"body.w": torch.zeros(1), "bn.running_var": torch.zeros(1), "bn.n": torch.tensor(0), "out.w": torch.zeros(2)},
    ["body.w", "out.w"],
)
RFA_DEFAULT = RFA(iterations=1000, smoothing=1e-6)
AFA_DEFAULT = AFA(of="update", xi=2.0, delta_xi=0.5, prior=3.0, block=0.95)


@pytest.mark.parametrize(
    ("share", "clients", "assumed"), [(0.2, 10, 2), (0.49, 10, 4), (0.4, 3, 1), (0.49, 2, 0), (0.0, 7, 0), (0.3, 1, 0)]
)
def test_the_assumed_attackers_are_fewer_than_half(share: float, clients: int, assumed: int) -> None:
    check_minority(share)
    assert minority(share, clients) == assumed


def stream(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def a_round(rows: Any, layout: StateLayout = PLAIN, base: Tensor | None = None, **fields: Any) -> Updates:
    """Updates with the given rows, from clients 0, 1, ..., on a global model of zeros."""
    matrix = torch.tensor(rows) if not isinstance(rows, Tensor) else rows
    n, counters = len(matrix), layout.counter_size
    plain: dict[str, Any] = {
        "layout": layout,
        "base": torch.zeros(layout.size) if base is None else base,
        "base_counters": torch.zeros(counters, dtype=torch.int64),
        "ids": torch.arange(n),
        "rows": matrix.float(),
        "counters": torch.ones(n, counters, dtype=torch.int64),
        "samples": torch.full((n,), 10),
        "losses": torch.zeros(n, dtype=torch.float64),
    }
    return Updates(**(plain | fields))


def answer(defense: Defense, updates: Updates, state: ServerState | None = None) -> Verdict:
    state = ServerState(updates.base, updates.base_counters) if state is None else state
    return defense(state, updates, stream())


def assert_close(actual: Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


NEIGHBOURS = [[0, 0, 0], [1, 0, 0], [3, 0, 0], [0, 0, 4], [10, 10, 10]]  # scores 10, 5, 13, 33, 485 for f = 1


def test_krum_scores_and_choice() -> None:
    updates = a_round(NEIGHBOURS)
    assert_close(krum_scores(updates.geometry.squared_distances("weights_only"), 2), 10, 5, 13, 33, 485)
    verdict = answer(Krum(malicious_share=0.2, keep=1), updates)
    assert_close(verdict.state.row, 1, 0, 0)
    assert_close(verdict.weights, 0, 1, 0, 0, 0)
    assert verdict.info == {"krum/f": 1.0}


def test_multi_krum_leaves_out_the_f_highest_scores() -> None:
    verdict = answer(Krum(malicious_share=0.2, keep=None), a_round(NEIGHBOURS))
    assert_close(verdict.state.row, 1, 0, 1)
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
    assert_close(answer(Krum(malicious_share=0.2, keep=2), a_round(NEIGHBOURS)).state.row, 0.5, 0, 0)


@pytest.mark.parametrize(("n", "f"), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (7, 2), (20, 8)])
def test_krum_lowers_f_until_the_paper_allows_it(n: int, f: int) -> None:
    verdict = answer(Krum(malicious_share=0.49, keep=1), a_round(torch.eye(n, 3) + 1))
    assert verdict.info["krum/f"] == f
    assert int(verdict.accepted.sum()) == (n if n <= 2 else 1)


SPREAD = [[1, -50, 5], [2, 0, 5], [3, 6, 5], [4, 3, 5], [100, 0, -1]]


def test_trimmed_mean_and_median() -> None:
    assert_close(answer(TrimmedMean(trim=0.2), a_round(SPREAD)).state.row, 3, 1, 5)
    assert_close(answer(TrimmedMean(trim=0.5), a_round(SPREAD)).state.row, 3, 0, 5)
    assert_close(answer(TrimmedMean(trim=0.5), a_round(SPREAD[:4])).state.row, 2.5, 1.5, 5)  # midpoint of two
    assert_close(answer(TrimmedMean(trim=0.0), a_round(SPREAD)).state.row, 22, -8.2, 3.8)
    assert_close(answer(TrimmedMean(trim=0.5), a_round(SPREAD)).weights, *[0.2] * 5)


def test_trimmed_count_is_the_floor_and_leaves_one() -> None:
    assert [trimmed(0.2, n) for n in (1, 4, 5, 20)] == [0, 0, 1, 4]
    assert trimmed(0.29, 100) == 29  # 0.29 * 100 = 28.999999999999996
    assert [trimmed(0.5, n) for n in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]


def test_columnwise_covers_every_column_once() -> None:
    rows = torch.arange(3.0)[:, None] + torch.arange(SLAB_ELEMENTS // 3 + 5.0)
    assert torch.equal(columnwise(rows, lambda values: values.sum(dim=1)), rows.sum(dim=0))


def test_rfa_two_steps_from_the_mean() -> None:
    rows = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 6, 0]])
    v, weights = (0, 2), torch.full((3,), 1 / 3)  # the mean, two of which lie at the same distance
    for _ in range(2):
        side, top = 1 / sqrt(9 + v[1] ** 2), 1 / (6 - v[1])
        weights = torch.tensor([side, side, top]) / (2 * side + top)
        v = (0, 6 * float(weights[2]))
    verdict = answer(RFA(iterations=2, smoothing=1e-6), a_round(rows))
    assert_close(verdict.weights, *weights.tolist())
    assert_close(verdict.state.row, *v, 0)


def test_rfa_beside_updates_at_right_angles() -> None:
    """The unit vectors to nine updates of one length l and to 0 cancel out where 0 has 1 / sqrt(10) of the weight."""
    for length in (0.2, 1.0, 50.0):
        rows = torch.cat([torch.zeros(1, 9), length * torch.eye(9)])
        layout = StateLayout.from_state({"w": torch.zeros(7), "out.w": torch.zeros(2)}, ["w", "out.w"])
        verdict = answer(RFA_DEFAULT, a_round(rows, layout=layout))
        assert_close(verdict.weights, 1 / sqrt(10), *[(1 - 1 / sqrt(10)) / 9] * 9)


def test_rfa_ends_at_the_geometric_median() -> None:
    """In a triangle without an angle of 120 degrees the sides are seen from it under 120; else it is the corner."""
    sides = answer(RFA_DEFAULT, a_round([[0, 0, 0], [4, 0, 0], [2, 3, 0]])).state.row
    assert_close(sides, 2, 2 / sqrt(3), 0)
    corner = answer(RFA_DEFAULT, a_round([[0, 0, 0], [4, 0, 0], [2, 0.5, 0]])).state.row
    torch.testing.assert_close(corner, torch.tensor([2, 0.5, 0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [5, 10, 30])
def test_rfa_is_led_neither_by_a_huge_update_nor_by_one_at_the_mean(n: int) -> None:
    rows = torch.randn(n, 3, generator=stream())
    rows[-1] = 1e12
    longest = rows[:-1].norm(dim=1).max()
    assert answer(RFA_DEFAULT, a_round(rows)).state.row.norm() < 4 * longest
    rows[-2] = 1e12 / (n - 1)  # an accomplice where the steps start
    assert answer(RFA_DEFAULT, a_round(rows)).state.row.norm() < 4 * longest


def test_rfa_of_one_and_of_two_is_the_mean() -> None:
    assert_close(answer(RFA_DEFAULT, a_round([[3, 0, 1]])).state.row, 3, 0, 1)
    assert_close(answer(RFA_DEFAULT, a_round([[3, 0, 1], [0, 0, 0]])).weights, 0.5, 0.5)


def test_foolsgold_cut_compares_everything_and_adds_up() -> None:
    """The first coordinate is outside the last layer; updates of length 5, 1 and 0.5 are cut to 1, 1 and 0.5."""
    updates = a_round([[3, 4, 0], [0, 0, 1], [-0.5, 0, 0]])
    verdict = answer(FoolsGold(confidence=1.0, cut=True), updates)
    assert_close(verdict.weights, *[1 / 3] * 3)  # no two point the same way
    assert_close(verdict.state.row, 0.6 - 0.5, 0.8, 1)
    assert_close(verdict.state.memory["defense/foolsgold/rows"][0], 0.6, 0.8, 0)
    alike = answer(FoolsGold(confidence=1.0, cut=True), a_round([[3, 4, 0], [6, 8, 0], [0, 0, 2]]))
    assert_close(alike.weights, 0, 0, 1 / 3)
    assert_close(alike.state.row, 0, 0, 1)


def test_norm_clip() -> None:
    verdict = answer(
        NormClip(bound=5.0, noise_std=0.0), a_round([[3, 4, 0], [6, 8, 0], [0, 0, 1], [0, 0, 0], [0, 0, -20]])
    )
    assert verdict.clip_factors is not None
    assert_close(verdict.clip_factors, 1, 0.5, 1, 1, 0.25)
    assert_close(verdict.state.row, 1.2, 1.6, -0.8)
    assert verdict.info == {
        "norm_clip/clip_bound": 5.0,
        "norm_clip/noise_std": 0.0,
        "norm_clip/median_norm": 5.0,
        "norm_clip/clipped_share": 0.4,
    }


def test_weak_dp_is_the_clipped_mean_with_noise_added_once() -> None:
    rows = [[3, 4, 0], [6, 8, 0], [0, 0, 1], [0, 0, 0], [0, 0, -20]]  # clipped mean (1.2, 1.6, -0.8), as above
    verdict = answer(NormClip(bound=5.0, noise_std=0.5), a_round(rows))
    assert_close(verdict.state.row - 0.5 * torch.randn(3, generator=stream()), 1.2, 1.6, -0.8)
    assert_close(verdict.weights, *[0.2] * 5)


def test_weak_dp_noise_has_the_std_it_was_given() -> None:
    updates, state = a_round(torch.zeros(5, 3)), ServerState(torch.zeros(3), torch.zeros(0, dtype=torch.int64))
    weak_dp = NormClip(bound=1.0, noise_std=0.25)
    draws = torch.cat([weak_dp(state, updates, stream(seed)).state.row for seed in range(1000)])
    assert draws.std().item() == pytest.approx(0.25, rel=0.05)  # 3,000 draws: standard error 1.3 %
    assert draws.mean().item() == pytest.approx(0, abs=0.02)


def test_rlr_turns_where_fewer_than_theta_agree() -> None:
    rows = [[1, 1, 0], [1, 1, 0], [1, 3, 0], [3, -1, 0], [-1, -1, 0]]  # sign sums 3, 1, 0; means 1, 0.6, 0
    base = torch.tensor([10.0, 10.0, 10.0])
    verdict = answer(RLR(threshold=0.6), a_round(rows, base=base))
    assert_close(verdict.state.row, 11, 9.4, 10)
    assert verdict.info["rlr/flipped_share"] == pytest.approx(2 / 3)
    assert_close(answer(RLR(threshold=0.0), a_round(rows, base=base)).state.row, 11, 10.6, 10)


def test_fltrust_weighs_by_angle_and_gives_all_the_servers_length() -> None:
    rows = [[1, 0, 0], [0, 3, 0], [-5, 0, 0], [3, 4, 0], [4, -3, 0]]  # cosines 1, 0, -1, 0.6, 0.8
    verdict = answer(FLTrust(root_samples=1), a_round(rows, root=torch.tensor([2.0, 0, 0])))
    assert_close(verdict.weights, 1 / 2.4, 0, 0, 0.6 / 2.4, 0.8 / 2.4)
    assert_close(verdict.state.row, 4 / 2.4, 0, 0)
    untrusted = answer(FLTrust(root_samples=1), a_round(rows, root=torch.zeros(3)))
    assert not bool(untrusted.accepted.any()) and not bool(untrusted.state.row.any())
    with pytest.raises(ValueError, match="server's own update"):
        answer(FLTrust(root_samples=1), a_round(rows))


@pytest.mark.parametrize("size", [1.0, 1e6, 1e14])
def test_one_client_moves_bounded_rules_by_no_more_than_promised(size: float) -> None:
    rows = torch.randn(5, 3, generator=stream())
    hostile = torch.cat([rows[:4], torch.tensor([[size, -size, size]])])
    root = torch.tensor([0.5, -0.5, 0.5])
    moved = answer(FLTrust(root_samples=1), a_round(hostile, root=root)).state.row
    assert moved.norm() <= root.norm() * (1 + 1e-6)
    clip = NormClip(bound=0.5, noise_std=0.0)
    assert answer(clip, a_round(hostile)).state.row.norm() <= 0.5 * (1 + 1e-6)
    without = torch.cat([rows[:4], torch.zeros(1, 3)])
    shift = answer(clip, a_round(hostile)).state.row - answer(clip, a_round(without)).state.row
    assert shift.norm() <= 0.1 * (1 + 1e-5)  # bound / n


STATISTICS = [[0, 0, 0, 1], [1, 0, 0, 2], [3, 0, 0, 3], [0, 0, 4, 4], [10, 10, 10, 90]]  # last column: running_var


@pytest.mark.parametrize(
    ("defense", "expected"),
    [
        (Krum(malicious_share=0.2, keep=1), 2.0),  # the accepted client's
        (Krum(malicious_share=0.2, keep=None), 2.5),  # mean of the accepted
        (TrimmedMean(trim=0.5), 3.0),  # the rule itself
        (NormClip(bound=1e-3, noise_std=1.0), 20.0),  # mean of all, neither clipped nor noised
        (RLR(threshold=1.0), 20.0),  # mean, never turned
    ],
)
def test_batchnorm_statistics_and_counters(defense: Defense, expected: float) -> None:
    verdict = answer(defense, a_round(STATISTICS, layout=NORMED))
    assert verdict.state.row[3].item() == pytest.approx(expected)
    assert verdict.state.counters.tolist() == [0]  # the server's own


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Krum(malicious_share=0.5, keep=1), "defense.malicious_share=0.5"),
        (lambda: Krum(malicious_share=0.2, keep=0), "defense.keep=0"),
        (lambda: TrimmedMean(trim=0.6), "defense.trim=0.6"),
        (lambda: RFA(iterations=0, smoothing=1e-6), "defense.iterations=0"),
        (lambda: RFA(iterations=3, smoothing=0.0), "defense.smoothing=0.0"),
        (lambda: NormClip(bound=0.0, noise_std=0.0), "defense.bound=0.0"),
        (lambda: NormClip(bound=1.0, noise_std=-1.0), "defense.noise_std=-1.0"),
        (lambda: FoolsGold(confidence=0.0, cut=False), "defense.confidence=0.0"),
        (lambda: Auror(threshold=0.0, find_rounds=1, vote=0.5), "defense.threshold=0.0"),
        (lambda: Auror(threshold=1.0, find_rounds=0, vote=0.5), "defense.find_rounds=0"),
        (lambda: Auror(threshold=1.0, find_rounds=1, vote=0.4), "defense.vote=0.4"),
        (lambda: replace(AFA_DEFAULT, of="gradient"), "defense.of='gradient'"),
        (lambda: replace(AFA_DEFAULT, xi=0.0), "defense.xi=0.0"),
        (lambda: replace(AFA_DEFAULT, delta_xi=-0.1), "defense.delta_xi=-0.1"),
        (lambda: replace(AFA_DEFAULT, prior=float("nan")), "defense.prior=nan"),
        (lambda: replace(AFA_DEFAULT, block=0.5), "defense.block=0.5"),
        (lambda: RLR(threshold=1.5), "defense.threshold=1.5"),
        (lambda: FLTrust(root_samples=0), "defense.root_samples=0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
