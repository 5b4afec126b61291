"""What a client weighs that sends its update at 0, 1 or 5 per cent of its length: each rule's bound, with its reason.

Nothing is gained by sending less, but for what the table below says. A new defense must be entered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, exp
from typing import Any

import pytest
import torch
from test_defense_properties import LAYOUT, NAMES, a_round, defense, generic, stream
from torch import Tensor

from flame.defenses.rfa import weiszfeld

SHORT = 3  # the client in question
SHARES = (0.0, 0.01, 0.05)
ASSUMED = 0.2  # share of attackers that Krum and its kind are told


@dataclass(frozen=True)
class Bound:
    """The largest weight among n clients of equally many images, and why it is no less."""

    of: Callable[[int], float]
    reason: str


EQUAL = Bound(lambda n: 1 / n, "all weights are equal, or at most the equal one")
MAJORITY = Bound(lambda n: 1 / (n // 2 + 1), "more than half are accepted, and share equally")
FEWER = Bound(lambda n: 1 / (n - round(ASSUMED * n)), "all but the assumed attackers share equally")
PICKED = Bound(lambda n: 1 / (n - 2 * ((n - 3) // 4)), "Bulyan's n - 2f share equally, f at most (n - 3) / 4")
ONE = Bound(lambda n: 1.0, "one client, or a cluster of one, may be all that is accepted")
SHARED = Bound(lambda n: 1.0, "how many are accepted is not bounded; whoever is weighs as much as each other one")


def most_trusted(n: int) -> float:
    """FLARE's weight of a client that all others name, where the rest of their int(n/2) - 1 votes are spread evenly."""
    each = n // 2 - 1
    return exp((n - 1) / each) / (exp((n - 1) / each) + (n - 1) * exp((n * each - n + 1) / (n - 1) / each))


def at_rate(eta: float) -> Bound:
    return Bound(lambda n: eta * MAJORITY.of(n), f"{MAJORITY.reason}, at server learning rate {eta}")


BOUNDS = {
    **dict.fromkeys(["fedavg", "flip", "norm_clip", "weak_dp", "crfl", "rlr", "median", "trimmed_mean"], EQUAL),
    "indicator": EQUAL,  # where nothing is planted, as here; else whoever is accepted weighs the same
    "centered_clipping": EQUAL,  # 1/n is an update within the bound; clipping lessens it
    "fldetector": EQUAL,  # in the first rounds, before anyone is judged
    "foolsgold": EQUAL,  # whoever resembles nobody has 1/n; lengths play no part
    "flame_3dfed": EQUAL,  # the sum of the accepted is divided by n
    "flame_indicator": Bound(lambda n: 0.5 / n, "the sum of the accepted is divided by n, at rate 0.5"),
    "flame_backfed": at_rate(0.1),
    "flame_backfed_update": at_rate(0.5),
    **dict.fromkeys(["flame_weights_only", "flame_all_state", "flame_zhmzm", "flame_bc_layers"], MAJORITY),
    **dict.fromkeys(["flame_guncuke", "flame_flpoison", "flame_secretflow", "flame_safefl_mpc"], MAJORITY),
    **dict.fromkeys(["flame_safefl_hydra", "flame_bnguard", "flame_ymir", "freqfed"], MAJORITY),
    **dict.fromkeys(["majority_drawn", "majority_shortest", "bnguard"], MAJORITY),
    "snowball": Bound(lambda n: 1 / ceil(n / 2), "the target of its second stage is half of the clients"),
    **dict.fromkeys(["multi_krum", "dnc", "smea"], FEWER),
    **dict.fromkeys(["nnm", "arc"], FEWER),  # even one that is in every mean has 1 / (n - f) of each
    "caf": Bound(lambda n: 1 / (n - 2 * round(ASSUMED * n)), "weights are at most 1, and add up to more than n - 2f"),
    "multi_metrics": Bound(lambda n: 1 / max(1, int(0.3 * n)), "three in ten are accepted, and share equally"),
    "feddlad": Bound(
        lambda n: max(1, round(0.12 * n)) / round(0.48 * n),
        "of reference: its size; pardoned: the part of all pardoned",
    ),
    "flare": Bound(most_trusted, "exp(votes / their mean) of a client that all others name: 0.31 of 10"),
    "masa": Bound(lambda n: 1 / ceil(n / 2), "whoever loses no more than the median client is accepted"),
    "bulyan": PICKED,
    "krum": ONE,  # never of updates that resemble one another; see below
    "bucketing": Bound(lambda n: 0.5 + 0.5 * (n % 2), "of Krum: one bucket of two, or the last one"),
    "flshield": ONE,  # the zero update is a cluster of its own, and may be the better one of two; see below
    "fltrust": Bound(lambda n: 1.0, "by angle to the server's update alone; see below"),
    "rfa": Bound(lambda n: 1.2 / n**0.5, "1 / sqrt(n) beside updates at right angles, and these nearly are; see below"),
    **dict.fromkeys(["afa", "alignins", "auror", "deepsight", "fedredefense", "lasa", "rflbat", "signguard"], SHARED),
}


def rule(name: str) -> Any:
    """Without noise, and Snowball's autoencoder with next to no training, which takes seconds."""
    built: Any = defense(name, quiet=True)
    if name == "snowball":
        return replace(built, top_down=replace(built.top_down, first_epochs=1, epochs=1, step=1.0))
    return built


def clients(n: int, seed: int, alike: bool) -> Tensor:
    """[n, d + b], updates with a common drift, or each its own way."""
    rows = generic(n, seed)
    if not alike:
        trainable = LAYOUT.span("weights_only")
        rows[:, trainable] = 0.3 * torch.randn(n, trainable.stop, generator=stream(seed + 50))
    return rows


def weights(name: str, rows: Tensor, share: float, seed: int) -> Tensor:
    """[n], when client SHORT sends `share` of its update."""
    shrunk = rows.clone()
    shrunk[SHORT] *= share
    state, updates = a_round(shrunk)
    even = replace(updates, samples=torch.full_like(updates.samples, 10))
    found: Tensor = rule(name)(state, even, stream(seed)).weights
    return found


def test_every_defense_has_a_bound() -> None:
    assert sorted(BOUNDS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_sending_less_gains_no_more_weight_than_the_bound(name: str) -> None:
    for n, seed, alike in ((10, 0, True), (10, 1, False), (9, 2, True), (9, 3, False)):
        rows = clients(n, seed, alike)
        for share in SHARES:
            found = weights(name, rows, share, seed)
            assert found[SHORT] <= BOUNDS[name].of(n) + 1e-9, (n, seed, share)
            others = found[torch.arange(n) != SHORT].max()
            if BOUNDS[name] is SHARED and others > 0:
                assert found[SHORT] <= others + 1e-9, (n, seed, share)


def test_what_the_bound_of_one_leaves_to_say() -> None:
    """Krum takes no short update beside alike ones, FLTrust gives no more than before, FLShield shares with others."""
    for n, seed, alike in ((10, 0, True), (10, 1, False), (9, 2, True), (9, 3, False)):
        rows = clients(n, seed, alike)
        for share in SHARES:
            assert not alike or weights("krum", rows, share, seed)[SHORT] == 0
            assert weights("fltrust", rows, share, seed)[SHORT] <= weights("fltrust", rows, 1.0, seed)[SHORT] + 1e-5
            if share > 0:
                found = weights("flshield", rows, share, seed)
                assert found[SHORT] <= found[torch.arange(n) != SHORT].max() + 1e-9


@pytest.mark.parametrize("name", ["fltrust", "foolsgold"])
@pytest.mark.parametrize("alike", [True, False])
def test_rules_by_angle_do_not_see_lengths(name: str, alike: bool) -> None:
    rows = clients(10, 0, alike)
    for share in SHARES[1:]:
        torch.testing.assert_close(weights(name, rows, share, 0), weights(name, rows, 1.0, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", SHARES)
def test_the_median_of_alike_updates_does_not_come_to_a_short_one(share: float) -> None:
    """Where updates resemble one another a short one is further from the median than they, and weighs less."""
    for n, seed in ((5, 0), (10, 1), (20, 2)):
        assert weights("rfa", clients(n, seed, True), share, seed)[SHORT] < 1 / n


@pytest.mark.parametrize("n", [4, 10, 50])
def test_a_true_median_gives_a_silent_client_more_beside_updates_at_right_angles(n: int) -> None:
    """By symmetry v is c times the sum of the others; their pulls balance where a silent client weighs 1 / sqrt(n)."""
    rows = torch.eye(n, dtype=torch.float64)
    assert float(weiszfeld(rows @ rows.T, 1000, 1e-6)[SHORT]) == pytest.approx(1 / n)
    rows[SHORT] = 0
    assert float(weiszfeld(rows @ rows.T, 1000, 1e-6)[SHORT]) == pytest.approx(1 / n**0.5, rel=1e-3)


@pytest.mark.parametrize("share", SHARES)
def test_a_true_median_is_the_short_update_where_the_others_cancel(share: float) -> None:
    """Of pairs of opposite updates the unit vectors cancel anywhere near 0: who is there has all the weight."""
    half = torch.randn(5, 40, generator=stream(0), dtype=torch.float64)
    rows = torch.cat([half, -half, share * half[:1]])
    assert float(weiszfeld(rows @ rows.T, 1000, 1e-6)[-1]) > 0.999
