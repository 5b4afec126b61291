"""Attacks that see every update: whom Mimic copies, and the factor that a rule minds most; twins in float64."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.byzfl_rounds import module
from oracles.recorded import recorded_round
from torch import Tensor

from attacks.alie import ALIE
from attacks.around import Around
from attacks.base import Attack, Scene, Sight
from attacks.ipm import IPM
from attacks.line_search import LineSearch, search
from attacks.mimic import KEY, Mimic, power_step
from attacks.rop import ROP, SEEN, aside
from flame.defenses.krum import Krum
from flame.defenses.trimmed_mean import TrimmedMean
from flame.federation import play
from flame.round.seeding import generator
from flame.round.types import Updates
from flame.run.build import ConfigError, build

SEARCH = LineSearch(TrimmedMean(0.2), evaluations=20, start=0.0, step=10.0, ratio=0.8)


def a_round(seed: int, n: int = 10, memory: dict[str, Tensor] | None = None) -> tuple[Scene, Tensor]:
    """A seeded round of n clients, the first two colluding, and their rows."""
    recorded = recorded_round(seed, n)
    mine = torch.arange(n) < 2
    state = replace(recorded.state, memory=memory or {})
    updates: Updates = recorded.updates
    return Scene(state, updates.layout, n, [{}, {}], Sight(updates, mine)), updates.rows[mine]


def crafted(attack: Attack, scene: Scene, rows: Tensor, seed: int = 0) -> Tensor:
    """[d], what the first colluder sends of the trainable part, after a look at the rest."""
    found = attack.craft(rows, scene, generator(seed, "craft")).rows
    d = scene.layout.trainable
    assert torch.equal(found[:, d:], rows[:, d:]) and torch.equal(found[0, :d], found[1, :d])
    return found[0, :d]


class TheirMimic:
    """The arithmetic of the authors' MimicVariantAttacker in float64, from a given first vector."""

    def __init__(self, warmup: int, start: Tensor) -> None:
        self.warmup, self.t, self.z, self.mu, self.target = warmup, 0, start.double(), torch.zeros(0), -1

    def choose(self, honest: Tensor) -> int:
        g, t = honest.double(), self.t
        if t < self.warmup:
            average = sum(g) / len(g)
            self.mu = average if t == 0 else t / (1 + t) * self.mu + average / (1 + t)
            total = sum(torch.dot(x - self.mu, self.z) * (x - self.mu) for x in g)
            assert isinstance(total, Tensor)
            unit = total / total.norm()
            self.z = unit if t == 0 else t / (1 + t) * self.z + unit / (1 + t)
            self.z = self.z / self.z.norm()
            self.target = max(range(len(g)), key=lambda i: float(g[i].dot(self.z)))
        self.t += 1
        return self.target


@pytest.mark.parametrize("warmup", [1, 8, 40])
def test_mimic_copies_whom_the_authors_copy(warmup: int) -> None:
    memory: dict[str, Tensor] = {}
    d = recorded_round(0, 10).updates.layout.trainable
    theirs = TheirMimic(warmup, torch.randn(d, generator=generator(0, "craft")))
    for seed in range(20):
        scene, rows = a_round(seed, memory=memory)
        found = Mimic(warmup).craft(rows, scene, generator(0, "craft"))
        memory = dict(found.memory)
        assert scene.sight is not None
        honest = scene.sight.others[:, :d]
        assert torch.equal(found.rows[0, :d], honest[theirs.choose(honest)]), seed


def test_mimic_by_hand() -> None:
    """Updates (2, 1), (-2, 1), (0, -2), mean 0, and z = (1, 0): the sum of <c, z> c is (8, 0)."""
    centred = torch.tensor([[2.0, 1], [-2, 1], [0, -2]])
    assert power_step(centred, torch.tensor([1.0, 0])).tolist() == [1, 0]
    assert power_step(torch.zeros(3, 2), torch.tensor([0.0, 4])).tolist() == [0, 1]


def test_mimic_whose_target_is_away_takes_the_next_along_its_direction() -> None:
    memory = {
        f"{KEY}/rounds": torch.tensor(1),
        f"{KEY}/target": torch.tensor(99),
        f"{KEY}/direction": torch.eye(1, recorded_round(0, 10).updates.layout.trainable)[0],
    }
    scene, rows = a_round(0, memory=memory)
    assert scene.sight is not None
    largest = scene.sight.others[:, 0].argmax()
    sent = crafted(Mimic(1), scene, rows)
    assert torch.equal(sent, scene.sight.others[largest, : len(sent)])


def test_a_round_of_attackers_alone_has_nobody_to_look_at() -> None:
    scene, rows = a_round(0)
    assert scene.sight is not None
    alone = replace(scene, sight=replace(scene.sight, mine=torch.ones(10, dtype=torch.bool)))
    rows = scene.sight.updates.rows
    for attack in (Mimic(1), ALIE(1.5, search=SEARCH), IPM(1.0, search=SEARCH)):
        assert not attack.craft(rows, alone, generator(0, "craft")).rows[:, : scene.layout.trainable].any()
    with pytest.raises(ValueError, match="sees every client's update"):
        Mimic(1).craft(rows, replace(scene, sight=None), generator(0, "craft"))


def test_search_by_hand() -> None:
    """1, then 3 and 7 are better, 15 is not; the step of 8 shrinks to 4, 2, 1: 11, 9 and 8 are not, 7.5 is not."""
    asked: list[float] = []

    def damage(x: float) -> float:
        asked.append(x)
        return -abs(x - 7)

    assert search(damage, 8, 1.0, 2.0, 0.5 + 1e-12) == 7
    assert asked == pytest.approx([1, 3, 7, 15, 11, 9, 8, 7.5])
    assert search(lambda x: min(x, 12.0), 5, 0.0, 10.0, 0.6) == 30  # 10, then 30; equals are not better
    assert search(damage, 1, 5.0, 1.0, 0.8) == 5


RULES: list[tuple[str, Callable[[int], Any], Any]] = [
    ("TrMean", lambda f: {"f": f}, TrimmedMean(0.2)),
    ("Krum", lambda f: {"f": f + 1}, Krum(malicious_share=0.2, keep=1)),  # byzfl counts one neighbour more
    ("Average", lambda f: {}, TrimmedMean(0.0)),
]


class TheirSearch:
    """Optimal ALIE and IPM as ByzFL computes them, in float64, against a rule [n, d] -> [d]."""

    def __init__(self, honest: Tensor, f: int, rule: Callable[[Tensor], Tensor], ipm: bool) -> None:
        self.honest, self.f, self.rule, self.ipm = honest.double(), f, rule, ipm

    def sent(self, tau: float) -> Tensor:
        mean = self.honest.mean(0)
        return -tau * mean if self.ipm else mean + tau * self.honest.var(0, correction=1).sqrt()

    def damage(self, tau: float) -> float:
        everyone = torch.cat([self.honest, self.sent(tau).expand(self.f, -1)])
        return float((self.rule(everyone) - self.honest.mean(0)).norm())

    def best(self) -> float:
        x, delta, left = 0.0, 10.0, 11
        y = self.damage(x)
        while left > 0:
            tried, left = self.damage(x + delta), left - 1
            if tried <= y:
                delta *= 0.8
                break
            x, y, delta = x + delta, tried, delta * 2
        while left > 0:
            tried, left = self.damage(x + delta), left - 1
            x, y = (x + delta, tried) if tried > y else (x, y)
            delta *= 0.8
        return x


def trimmed(rows: Tensor) -> Tensor:
    return rows.sort(0).values[2:-2].mean(0)


@pytest.mark.parametrize("ipm", [False, True])
def test_the_factor_is_that_of_byzfl(ipm: bool) -> None:
    for seed in range(20):
        scene, rows = a_round(seed)
        assert scene.sight is not None
        d = scene.layout.trainable
        theirs = TheirSearch(scene.sight.others[:, :d], 2, trimmed, ipm)
        asked = replace(SEARCH, evaluations=12)
        attack = IPM(1.0, search=asked) if ipm else ALIE(1.5, search=asked)
        wanted = theirs.sent(theirs.best()).float()
        torch.testing.assert_close(crafted(attack, scene, rows), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("theirs", "settings", "ours"), RULES)
def test_against_byzfl_itself(theirs: str, settings: Callable[[int], Any], ours: Any) -> None:
    if module("aggregators.aggregators") is None:
        pytest.skip("byzfl is not installed")
    rules = module("aggregators.aggregators")
    attacks = importlib.import_module("byzfl.attacks.attacks")
    for seed in range(4):
        scene, rows = a_round(seed)
        assert scene.sight is not None
        honest = scene.sight.others[:, : scene.layout.trainable].double().numpy()
        for name, attack in (("ALittleIsEnough", ALIE(1.5)), ("InnerProductManipulation", IPM(1.0))):
            optimal = getattr(attacks, f"Optimal_{name}")(getattr(rules, theirs)(**settings(2)), [], f=2)
            found = crafted(replace(attack, search=replace(SEARCH, rule=ours)), scene, rows)
            wanted = torch.from_numpy(optimal(honest)).float()
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_rule_in_force_is_asked_unless_another_is_named(tiny: Callable, start: Callable) -> None:
    words = ("attack=ipm_optimal", "defense=krum", "poisoned_model_rate=0.4")
    assert build(tiny(*words)).attack.search.rule == Krum(malicious_share=0.2, keep=1)
    assert build(tiny(*words, "defense@attack.search.rule=median")).attack.search.rule == TrimmedMean(0.5)
    with start(tiny("attack=alie_optimal", "defense=fldetector", "poisoned_model_rate=0.4")) as (fed, state):
        assert bool(play(replace(fed, evaluate_at=()), state).after.row.isfinite().all())


def test_a_rule_with_images_cannot_be_asked(tiny: Callable) -> None:
    with pytest.raises(ConfigError, match=r"attack\.search\.rule=FLTrust needs images"):
        build(tiny("attack=alie_optimal", "defense=fltrust"))
    with pytest.raises(ConfigError, match=r"attack\.search\.rule\.trim=0\.7 is out of range"):
        build(tiny("attack=alie_optimal", "defense@attack.search.rule=trimmed_mean", "attack.search.rule.trim=0.7"))


def test_what_is_around_an_attack_that_sees_all_sees_it_too() -> None:
    assert Around(Mimic(1)).omniscient and not Around(ALIE(1.5)).omniscient


def their_relocation(honest: Tensor, last: Tensor | None, z: float, angle: float, pi: float, lamb: float) -> Tensor:
    """attacks/rop.py of CRYPTO-KU's library in float64, on gradients, which point against updates."""
    mu, gm = -honest.double().mean(0), torch.zeros(honest.shape[1]).double() if last is None else -last.double()
    place = gm * pi + mu * (1 - pi)
    ud = (mu if last is None else gm) * lamb + mu * (1 - lamb)
    pert = torch.ones_like(mu)
    pert = pert - ud * ((pert @ ud) / (ud @ ud))
    pert = pert / pert.norm() * math.sin(math.radians(angle)) + ud / ud.norm() * math.cos(math.radians(angle))
    return -(place + pert * (z / pert.norm())).float()


@pytest.mark.parametrize(("angle", "pi", "lamb"), [(270.0, 1.0, 0.9), (90.0, 0.5, 0.5), (200.0, 0.0, 0.0)])
def test_rop_is_that_of_its_library(angle: float, pi: float, lamb: float) -> None:
    attack = ROP(z=0.7, angle=angle, pi=pi, reference=lamb)
    memory: dict[str, Tensor] = {}
    for seed in range(20):
        scene, rows = a_round(seed, memory=memory)
        assert scene.sight is not None
        d, now = scene.layout.trainable, scene.state.row
        last = None if not memory else (now - memory[SEEN])[:d]
        wanted = their_relocation(scene.sight.others[:, :d], last, 0.7, angle, pi, lamb)
        torch.testing.assert_close(crafted(attack, scene, rows), wanted, rtol=1e-4, atol=1e-5)
        memory = dict(attack.craft(rows, scene, generator(0, "craft")).memory)


def test_rop_by_hand() -> None:
    """Ones (1, 1) beside (1, 0): orthogonal is (0, 1); at 270 degrees -sin is 1, at 180 cos is -1."""
    along = torch.tensor([2.0, 0])
    torch.testing.assert_close(aside(along, math.radians(270)), torch.tensor([0.0, 1]))
    torch.testing.assert_close(aside(along, math.pi), torch.tensor([-1.0, 0]))
    assert aside(torch.zeros(4), math.radians(270)).tolist() == [0.5] * 4
    with pytest.raises(ValueError, match=r"attack\.z=null is z_max, 0 for 2 colluders among 10"):
        ROP(None, 270.0, 1.0, 0.9).check_round(10, range(2, 3))
    ROP(None, 270.0, 1.0, 0.9).check_round(10, range(3, 4))
