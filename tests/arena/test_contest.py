"""What is a run of the contest, and which runs make a row."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Compose

from flame.arena.contest import amiss, changed, other_contest, own
from flame.run.config import plain
from flame.run.record import NO_ROUNDS, RunRecord

ROW = "recipe/arena/row"
SHARE = "defense.malicious_share=0.3"
CELL = ("attack=badnets", "partition=iid", "defense=krum", "seed=1")


def recorded(compose: Compose, *words: str, recipe: str = ROW) -> RunRecord:
    """As a run of these overrides would record itself."""
    choices = dict(word.split("=") for word in [*CELL, *words])
    config = plain(compose(*CELL, *words, name=recipe))
    return RunRecord(Path("run"), "", choices, {**config, "recipe": None}, {}, {"round": np.zeros(0)}, NO_ROUNDS, {})


def node(compose: Compose, *words: str) -> Any:
    """A defense's, interpolations as written."""
    return plain(compose(*words, name=ROW), resolve=False)["defense"]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["defense=krum", SHARE, "memo.dir=x", "hydra/launcher=joblib", "tracker=files", "~tracker"], None),
        (["seed=0", "attack=badnets", "partition=iid", "paths.runs=x"], None),
        (["defense=bucketing", "defense@defense.rule=rfa"], None),
        (["defense=krum", "rounds=2"], "rounds=2"),
        (["attack.poisoned_data_rate=0.1"], "attack.poisoned_data_rate=0.1"),
        (["partition.alpha=3"], "partition.alpha=3"),
        (["attack/trigger=bars"], "attack/trigger=bars"),
        (["attack@attack.backdoor=blended"], "attack@attack.backdoor=blended"),
        (["+client.lr=1"], "+client.lr=1"),
        (["seed=0", "seed=3"], "seed=3"),
        (["attack=blended"], "attack=blended"),
    ],
)
def test_what_changes_the_contest(words: list[str], changed: str | None) -> None:
    assert other_contest(words, "row") == changed


def test_keys_of_the_defense() -> None:
    words = ["defense=bucketing", "defense@defense.rule=rfa", "seed=1", "+defense.f=3", "defense.rule.tolerance=1"]
    assert [*own(words)] == ["defense@defense.rule", "defense.f", "defense.rule.tolerance"]


def test_a_run_of_the_row_is_of_the_contest(compose: Compose) -> None:
    assert changed(recorded(compose), node(compose, "defense=krum"), "row") is None
    assert changed(recorded(compose, SHARE), node(compose, "defense=krum", SHARE), "row") is None
    assert changed(recorded(compose, "memo.dir=x", "engine=pool"), node(compose, "defense=krum"), "row") is None


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("client.lr=0.5", "client.lr is 0.5, not 0.05"),
        ("rounds=2", "evaluate_every is 2, not 20"),
        ("clients_per_round=9", "clients_per_round is 9, not 10"),
        ("attack.poisoned_data_rate=0.1", "attack.poisoned_data_rate is 0.1, not 0.75"),
        ("start.rounds=1", "start.rounds is 1, not 100"),
        ("attack=blended", "attack is blended"),
        ("partition=dirichlet", "partition is dirichlet"),
        ("attack.poisoned_data_rate=0", "attack is badnets"),  # the control is of learned triggers
        (
            "defense.malicious_share=0.3",
            "defense.malicious_share is 0.3, not 0.2",
        ),  # as a config of the user's sets it: the name is krum alone
    ],
)
def test_a_changed_run_is_not(compose: Compose, word: str, said: str) -> None:
    """However it was changed: the command line is not looked at."""
    assert changed(recorded(compose, word), node(compose, "defense=krum"), "row") == said


def test_the_control_is_of_its_own_recipe(compose: Compose) -> None:
    averaging = node(compose, "defense=fedavg")
    run = recorded(compose, "attack=cerp", "defense=fedavg", recipe="recipe/arena/control")
    assert run.config["attack"]["poisoned_data_rate"] == 0 and changed(run, averaging, "row") is None
    again = recorded(compose, "attack=cerp", "defense=fedavg", "client.lr=0.5", recipe="recipe/arena/control")
    assert changed(again, averaging, "row") == "client.lr is 0.5, not 0.05"


def test_a_run_is_held_against_its_own_part(compose: Compose) -> None:
    krum, cell = node(compose, "defense=krum"), "partition=dirichlet_05"
    run = recorded(compose, cell, recipe="recipe/arena/fashion")
    assert run.config["dataset"]["image_size"] == 28
    assert changed(run, krum, "fashion") is None and changed(run, krum, "row") == "partition is dirichlet_05"
    assert changed(recorded(compose, "seed=0"), krum, "fashion") == "partition is iid"
    longer = recorded(compose, cell, "rounds=25", recipe="recipe/arena/fashion")
    assert changed(longer, krum, "fashion") == "evaluate_every is 25, not 24"


def test_an_attack_that_asks_the_rule_in_force_is_of_the_contest_under_every_defense(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"attack": ("ipm_optimal",), "partition": ("iid",)}
    monkeypatch.setattr("flame.arena.contest.recipe", lambda *_: SimpleNamespace(config=ROW, plan=plan))
    run = recorded(compose, "attack=ipm_optimal")
    assert changed(run, node(compose, "defense=krum"), "row") is None
    assert str(changed(run, node(compose, "defense=median"), "row")).startswith("defense.")


def test_what_a_row_lacks_or_has_too_much() -> None:
    plan = {"seed": ["0", "1"], "partition": ["iid"], "attack": ["none", "alie"]}
    whole = [{"attack": attack, "partition": "iid", "seed": seed} for seed in (0, 1) for attack in ("none", "alie")]
    assert amiss(pd.DataFrame(whole), plan) == ""
    assert amiss(pd.DataFrame(whole[:2]), plan) == "it lacks 2 runs, first attack=none partition=iid seed=1"
    easy = {"attack": "lp", "partition": "iid", "seed": 0}
    assert amiss(pd.DataFrame([*whole, easy]), plan) == "it has 1 runs too many, first attack=lp partition=iid seed=0"
    assert amiss(pd.DataFrame([*whole[1:], whole[1]]), plan) == (
        "it lacks 1 runs, first attack=none partition=iid seed=0, "
        "and it has 1 runs too many, first attack=alie partition=iid seed=0"
    )
