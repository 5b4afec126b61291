"""Untargeted attacks, worked by hand for three colluders and four parameters.

u1 = (1, 2, 0, -1)   u2 = (3, 2, 0, -1)   u3 = (2, 2, 3, -4)
mean (2, 2, 1, -2), deviations (-1, 0, -1, 1), (1, 0, -1, 1), (0, 0, 2, -2) of squared length 3, 3, 8,
variance (2/3, 0, 2, 2), squared distances 4 (u1 u2), 19 (u1 u3), 19 (u2 u3).
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attacks import fang, min_max, min_sum
from attacks.alie import ALIE, z_max
from attacks.base import Attack, Scene
from attacks.collusion import away
from attacks.fang import Fang
from attacks.gaussian import Gaussian
from attacks.ipm import IPM
from attacks.min_max import MinMax
from attacks.min_sum import MinSum
from attacks.sign_flip import SignFlip
from flame.geometry.layout import StateLayout
from flame.round.seeding import generator
from flame.round.types import ServerState

OWN = torch.tensor([[1.0, 2, 0, -1], [3, 2, 0, -1], [2, 2, 3, -4]])
MEAN, STD = torch.tensor([2.0, 2, 1, -2]), torch.tensor([sqrt(2 / 3), 0, sqrt(2), sqrt(2)])
STATISTICS = torch.tensor([[0.5, -0.25], [0.5, -0.125], [1, 1]])


def layout(d: int) -> StateLayout:
    """d trainable parameters, one running mean and one running variance."""
    state = {"bn.running_mean": torch.zeros(1), "bn.running_var": torch.ones(1), "fc.weight": torch.zeros(d)}
    return StateLayout.from_state(state, ["fc.weight"])


def sent(attack: Attack, own: Tensor = OWN, clients: int = 10, seed: int = 0) -> Tensor:
    """[m, d] what the colluders send; their statistics and their rows in place must be left alone."""
    m, d = own.shape
    rows = torch.cat([own, STATISTICS[:m]], 1)
    before = rows.clone()
    scene = Scene(ServerState(torch.zeros(d + 2), torch.zeros(0, dtype=torch.int64)), layout(d), clients)
    crafted = attack.craft(rows, scene, generator(seed, "craft")).rows
    assert torch.equal(rows, before)
    assert torch.equal(crafted[:, d:], STATISTICS[:m])
    return crafted[:, :d]


def test_alie() -> None:
    torch.testing.assert_close(sent(ALIE(1.5)), (MEAN + 1.5 * STD).repeat(3, 1))


def test_z_max() -> None:
    """50 clients with 24 of them colluding lack 2 for a majority of 26: Phi(z) = 24/26, z = 1.426 (tables)."""
    assert z_max(50, 24) == pytest.approx(1.426, abs=5e-4)
    assert z_max(20, 4) == pytest.approx(0.1573, abs=5e-4)  # 7 supporters, Phi(z) = 9/16
    assert z_max(5, 1) == 0  # Phi(z) = 2/4
    for n in range(1, 12):
        for m in range(1, n + 1):
            assert 0 <= z_max(n, m) < 4


def test_ipm() -> None:
    assert torch.equal(sent(IPM(10.0)), torch.tensor([-20.0, -20, -10, 20]).repeat(3, 1))


def test_sign_flip() -> None:
    assert sent(SignFlip(4.0)).tolist() == [[-4, -8, 0, 4], [-12, -8, 0, 4], [-8, -8, -12, 16]]


def test_gaussian_noise_has_its_std_and_is_each_clients_own() -> None:
    noise = sent(Gaussian(3.0), torch.zeros(3, 20_000))
    assert float(noise.std()) == pytest.approx(3.0, rel=5 / sqrt(2 * 60_000))
    assert abs(float(noise.mean())) < 5 * 3 / sqrt(60_000)
    correlation = torch.corrcoef(noise)
    assert float((correlation - torch.eye(3)).abs().max()) < 5 / sqrt(20_000)


@pytest.mark.parametrize(
    ("direction", "p", "gamma"),
    [
        # binding is u3, D^2 = 19: 4 g^2 + 8 g + 8 = 19
        ("sign", torch.tensor([-1.0, -1, -1, 1]), (sqrt(60) - 4) / 4),
        # p.p = 14/3, c3.p = 0: 14/3 g^2 + 8 = 19
        ("std", STD, sqrt(33 / 14)),
        # c3.p = -6/sqrt(13): g^2 + 12/sqrt(13) g + 8 = 19
        ("unit", -MEAN / sqrt(13), (sqrt(179) - 6) / sqrt(13)),
    ],
)
def test_min_max(direction: str, p: Tensor, gamma: float) -> None:
    torch.testing.assert_close(away(OWN, direction), p)
    torch.testing.assert_close(sent(MinMax(direction)), (MEAN + gamma * p).repeat(3, 1))


@pytest.mark.parametrize(
    ("direction", "p", "gamma"),
    [  # u3 has the largest sum of squared distances, 38; the deviations add up to 14: 3 g^2 p.p + 14 = 38
        ("sign", torch.tensor([-1.0, -1, -1, 1]), sqrt(24 / 12)),
        ("std", STD, sqrt(24 / 14)),
        ("unit", -MEAN / sqrt(13), sqrt(24 / 3)),
    ],
)
def test_min_sum(direction: str, p: Tensor, gamma: float) -> None:
    torch.testing.assert_close(sent(MinSum(direction)), (MEAN + gamma * p).repeat(3, 1))


@given(
    m=st.integers(2, 7), d=st.integers(1, 9), seed=st.integers(0, 999), kind=st.sampled_from(["std", "unit", "sign"])
)
def test_the_largest_gamma_is_allowed_and_a_larger_one_is_not(m: int, d: int, seed: int, kind: str) -> None:
    """Against the constraints as the paper writes them, in float64."""
    own = torch.randn(m, d, generator=generator(seed, "own"), dtype=torch.float64)
    p = away(own, kind)
    between = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist")

    def slack(rule: Any, gamma: float) -> float:
        off = (own - (own.mean(0) + gamma * p)).norm(dim=1)
        if rule is min_max:
            return float(between.max() - off.max())
        return float(between.square().sum(1).max() - off.square().sum())

    for rule in (min_max, min_sum):
        gamma = rule.largest_gamma(own - own.mean(0), p)
        assert slack(rule, gamma) >= -1e-6
        assert slack(rule, 1.01 * gamma + 1e-3) < 0


def test_fang_trimmed_mean_draws_beyond_the_spread_against_the_direction() -> None:
    crafted = torch.cat([sent(Fang("trimmed_mean", 1e-5), seed=seed) for seed in range(40)])  # [120, 4]
    s = torch.tensor([1.0, 1, 1, -1])
    off = (MEAN - crafted) * s / STD.clamp_min(1e-9)
    moving = [0, 2, 3]  # the second coordinate has no spread
    assert float(off[:, moving].min()) > 3 - 1e-4 and float(off[:, moving].max()) < 4 + 1e-4
    assert float(off[:, moving].mean()) == pytest.approx(3.5, abs=5 / sqrt(12 * 360))
    assert bool((crafted[:, 1] == 2).all())


def test_fang_krum_by_hand() -> None:
    """s = (1, 1, 1, -1), n = 10. Theorem 1: lambda <= sqrt(23 / (3 * 4)) + sqrt(33 / 4).

    Krum over m + 1 updates looks at the nearest one: u1 and u2 are 4 apart, but the crafted update is at least
    ||u1||^2 = 6 from u1, so no lambda works. With a second copy at distance 0 the first lambda does.
    """
    lam = sqrt(23 / 12) + sqrt(33 / 4)
    torch.testing.assert_close(sent(Fang("krum", 1e-5)), -lam * torch.tensor([1.0, 1, 1, -1]).repeat(3, 1))


@given(m=st.integers(1, 7), copies=st.integers(1, 7), lam=st.floats(1e-3, 3), seed=st.integers(0, 999))
def test_simulated_krum_against_krum(m: int, copies: int, lam: float, seed: int) -> None:
    own = torch.randn(m, 3, generator=generator(seed, "own"), dtype=torch.float64)
    crafted = torch.full((3,), -lam, dtype=torch.float64)
    everyone = torch.cat([crafted.repeat(copies, 1), own])
    scores = []
    for i, one in enumerate(everyone):  # Blanchard et al.: the n - f - 2 nearest others
        others = sorted(float((one - o).square().sum()) for j, o in enumerate(everyone) if j != i)
        scores.append(sum(others[: max(1, len(everyone) - copies - 2)]))
    if abs(scores[0] - min(scores[copies:])) < 1e-9:
        return  # a tie, which rounding decides
    among = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").square()
    selected = fang.krum_selects_crafted(among, (own - crafted).square().sum(1), copies)
    assert selected == (scores[0] < min(scores[copies:]))


def test_fang_krum_halves_lambda_until_it_is_selected() -> None:
    """Twelve colluders: among the candidates bound / 2^k, the largest that one or more copies make Krum select."""
    own = torch.randn(12, 6, generator=generator(4, "own")) + 0.4
    s = torch.where(own.mean(0) > 0, 1.0, -1.0)
    lam = fang.largest_lambda(own, s, 40, 1e-5)
    gram = (own @ own.T).double()
    bound = fang.upper_bound(gram, 6, 40)
    among = torch.cdist(own, own).double().square()

    def selected(value: float, copies: int) -> bool:
        return fang.krum_selects_crafted(among, (own + value * s).double().square().sum(1), copies)

    candidates = [bound / 2**k for k in range(40) if bound / 2**k > 1e-5]
    working = {copies: [v for v in candidates if selected(v, copies)] for copies in range(1, 13)}
    fewest = min(copies for copies, values in working.items() if values)
    assert lam == pytest.approx(max(working[fewest]))
    assert lam < bound


@pytest.mark.parametrize("attack", [ALIE(1.5), MinMax("std"), MinSum("std"), Fang("trimmed_mean", 1e-5)])
def test_a_single_colluder_has_no_spread_to_hide_in(attack: Attack) -> None:
    """What it sends is its benign update, and not NaN; a run in which there is never another is refused."""
    torch.testing.assert_close(sent(attack, OWN[:1]), OWN[:1])
    with pytest.raises(ValueError, match=r"clients_per_round=5 .* one attacker: \w+ needs two, .* say attack=none"):
        attack.check_round(5, range(1, 2))
    attack.check_round(5, range(1, 3))


def test_a_z_max_of_zero_is_refused() -> None:
    """Of ten clients two colluders lack four for a majority of six: Phi(z) = 4/8."""
    assert z_max(10, 2) == 0 and z_max(10, 3) == pytest.approx(0.18, abs=5e-3)
    with pytest.raises(ValueError, match=r"attack.z=null is z_max, 0 for 2 colluders among 10 clients.* 1\.5"):
        ALIE(None).check_round(10, range(2, 3))
    ALIE(None).check_round(10, range(1, 4))  # drawn at random, there are three in some rounds
    ALIE(1.5).check_round(10, range(2, 3))
    Fang("krum", 1e-5).check_round(5, range(1, 2))


CRAFTED = torch.tensor([[2 / 3, 5 / 24], [sqrt(1 / 18), sqrt(182) / 24]])  # mean and std of STATISTICS


def statistics(attack: Attack, base: float) -> Tensor:
    """[m, 2] running mean and variance that are sent, for a global variance of `base`."""
    rows, row = torch.cat([OWN, STATISTICS], 1), torch.tensor([0.0, 0, 0, 0, 0, base])
    scene = Scene(ServerState(row, torch.zeros(0, dtype=torch.int64)), layout(4), 10)
    return attack.craft(rows, scene, generator(0, "craft")).rows[:, 4:]


def test_crafted_statistics_by_hand() -> None:
    """Updates (1/2, -1/4), (1/2, -1/8), (1, 1): mean (2/3, 5/24), squared deviations 1/18 and 182/24^2."""
    torch.testing.assert_close(
        statistics(ALIE(1.5, statistics="crafted"), 1.0), (CRAFTED[0] + 1.5 * CRAFTED[1]).repeat(3, 1)
    )
    assert statistics(SignFlip(4.0, statistics="crafted"), 9.0).tolist() == [[-2, 1], [-2, 0.5], [-4, -4]]
    torch.testing.assert_close(statistics(IPM(1.0, statistics="crafted"), 1.0), -CRAFTED[:1].repeat(3, 1))


def test_a_crafted_variance_is_never_below_zero() -> None:
    """The global one is 1 (or 0): down by 4 would be -3."""
    assert statistics(SignFlip(4.0, statistics="crafted"), 1.0)[:, 1].tolist() == [1, 0.5, -1]
    assert statistics(SignFlip(4.0, statistics="crafted"), 0.0)[:, 1].tolist() == [1, 0.5, 0]
    assert bool((statistics(Gaussian(100.0, statistics="crafted"), 0.25)[:, 1] >= -0.25).all())


@pytest.mark.parametrize("name", ["alie", "krum", "trimmed_mean", "gaussian", "ipm", "max", "sum", "flip"])
def test_crafted_statistics_are_columns_like_the_others(name: str) -> None:
    """What is sent is what would be if all six columns were weights."""
    make: dict[str, Any] = {
        "alie": partial(ALIE, 1.5),
        "krum": partial(Fang, "krum", 1e-5),
        "trimmed_mean": partial(Fang, "trimmed_mean", 1e-5),
        "gaussian": partial(Gaussian, 1.0),
        "ipm": partial(IPM, 10.0),
        "max": partial(MinMax, "std"),
        "sum": partial(MinSum, "unit"),
        "flip": partial(SignFlip, 4.0),
    }
    rows = torch.cat([OWN, STATISTICS], 1)
    state = ServerState(torch.full((6,), 1e3), torch.zeros(0, dtype=torch.int64))
    crafted = make[name](statistics="crafted").craft(rows, Scene(state, layout(4), 10), generator(0, "craft")).rows
    plain = StateLayout.from_state({"fc.weight": torch.zeros(6)}, ["fc.weight"])
    weights = make[name]().craft(rows, Scene(state, plain, 10), generator(0, "craft")).rows
    assert torch.equal(crafted, weights)
    assert torch.equal(
        make[name]().craft(rows, Scene(state, layout(4), 10), generator(0, "craft")).rows[:, 4:], STATISTICS
    )


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ALIE, (-1.0,), "attack.z=-1.0"),
        (ALIE, (0.0,), r"attack.z=0.0 is out of range: must be null \(z_max\) or > 0"),
        (partial(Gaussian, statistics="sent"), (1.0,), "attack.statistics='sent' .* one of honest, crafted"),
        (IPM, (0.0,), "attack.epsilon=0.0 is out of range: must be > 0"),
        (SignFlip, (-1.0,), "attack.factor=-1.0"),
        (Gaussian, (-1.0,), "attack.std=-1.0"),
        (MinMax, ("up",), "attack.direction='up' is out of range: must be one of std, unit, sign"),
        (MinSum, ("up",), "attack.direction='up'"),
        (Fang, ("median", 1e-5), "attack.form='median' is out of range: must be one of krum, trimmed_mean"),
        (Fang, ("krum", 0.0), "attack.threshold=0.0"),
    ],
)
def test_errors(make: Any, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(*arguments)
