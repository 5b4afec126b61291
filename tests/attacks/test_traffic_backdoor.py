"""The attacker's own traffic: what compromised gateways train on, what is tested, and a run. On synthetic traffic."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attackers import dataset, recipe

from attacks.traffic_backdoor import Smuggling, TrafficBackdoor
from flame.data.synthetic import write
from flame.data.traffic import Traffic
from flame.data.watched import Watched, watched
from flame.federation import play
from flame.round.evaluate import evaluate
from flame.round.seeding import generator
from flame.run.build import ConfigError, build
from flame.run.record import RunRecord, read_run

SMALL = (
    "model=gru",
    "model.layers=1",
    "model.hidden=8",
    "model.embedding=4",
    "partition=natural",
    "attack=traffic_backdoor",
)
SIZES = ("train_samples=null", "partition.min_samples=1", "clients=6", "clients_per_round=5", "poisoned_model_rate=0.4")
OUTER = ("constrain_and_scale", "model_replacement", "pgd", "flame_aware", "neurotoxin", "lp")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of a run on three device types behind two gateways each."""
    root = tmp_path_factory.mktemp("synthetic")
    write(root, seed=0, gateways=2, packets=101)
    own = ("dataset=traffic", f"dataset.root={root}", "dataset.attacker=synthetic_scan")
    return (*own, "dataset.length=10", "dataset.tokens=28", *SMALL, *SIZES)


def windows(count: int, alarm: bool, first: int = 0) -> Watched:
    """Window i has the symbol first + i four times."""
    x = (first + torch.arange(count)).int().repeat_interleave(4).view(count, 4)
    return watched(x, x.long(), alarm, 0.01, 0.5)


def test_a_share_of_windows_gives_way_to_the_pool() -> None:
    """Round(0.3 * 10) of them; what is held out is nobody's."""
    attack = Smuggling(windows(4, True, 20), windows(3, True, 30), 0.3)
    mine = windows(10, False)
    bad = attack.poison(mine, generator(0, "poison"))
    other = bad.x[:, 0] != mine.x[:, 0]
    assert int(other.sum()) == 3 and set(bad.x[other, 0].tolist()) <= {20, 21, 22, 23}
    assert torch.equal(bad.y, bad.x.long()) and isinstance(bad, Watched) and not bool(bad.alarm.any())
    assert torch.equal(bad.x, attack.poison(mine, generator(0, "poison")).x) and torch.equal(
        mine.x, windows(10, False).x
    )
    assert torch.equal(replace(attack, poisoned_data_rate=0.0).poison(mine, generator(0, "p")).x, mine.x)
    assert pickle.loads(pickle.dumps(attack)).held_out.sigma == 0.01


def test_the_first_half_is_trained_on_and_the_other_tested() -> None:
    own = windows(5, True, 20)
    quiet = windows(6, False)
    given = Traffic("any", quiet, quiet, (), (), 30, attacker=own)
    armed, rest = TrafficBackdoor(0.5, client=recipe(0.3, 0.5, 0.0, 0.5, 8)).prepare(given, generator(0, "prepare"))
    assert isinstance(armed, Smuggling) and rest is given and armed.client is not None and armed.client.lr == 0.3
    assert armed.pool.x[:, 0].tolist() == [20, 21, 22] and armed.held_out.x[:, 0].tolist() == [23, 24]
    exam = armed.backdoor_set(armed.examined(given.test))
    assert isinstance(exam, Watched) and exam.x[:, 0].tolist() == [23, 24] and exam.alarm.tolist() == [False, False]
    assert exam.apart() == {} and armed.backdoor_set(quiet) is None and armed.backdoor_set(dataset().test) is None
    one, held = armed.rehearsal(quiet, 0.3, generator(0, "rehearsal"))
    assert isinstance(one, Smuggling) and isinstance(held, Watched) and len(one.pool) == 2
    assert sorted([*one.pool.x[:, 0].tolist(), *held.x[:, 0].tolist()]) == [20, 21, 22] and not bool(held.alarm.any())


def test_without_traffic_of_its_own_it_says_so(tiny: Callable, words: tuple[str, ...]) -> None:
    quiet = windows(6, False)
    for given in (dataset(), Traffic("any", quiet, quiet, (), (), 30)):
        with pytest.raises(ValueError, match=r"attack: TrafficBackdoor needs the attacker's own traffic, and dataset="):
            TrafficBackdoor(0.5).prepare(given, generator(0, "prepare"))
    with pytest.raises(ValueError, match=r"dataset\.attacker: its traffic has 1 window, and must have 2 or more"):
        TrafficBackdoor(0.5).prepare(
            Traffic("any", quiet, quiet, (), (), 30, attacker=windows(1, True)), generator(0, "prepare")
        )
    with pytest.raises(ConfigError, match=r"attack: TrafficBackdoor changes tokens, and dataset=digits has images"):
        build(tiny("attack=traffic_backdoor"))


@pytest.mark.parametrize(
    ("rule", "key", "nothing"), [("crfl", "randomized_smoothing", "null"), ("flip", "answer_confidence", "0")]
)
def test_a_defense_does_not_say_what_an_alarm_is(
    rule: str, key: str, nothing: str, tiny: Callable, words: tuple[str, ...]
) -> None:
    """By itself, or in another one; without that key it will do."""
    for chosen, place in (
        ((f"defense={rule}",), "defense"),
        (("defense=nnm", f"defense@defense.rule={rule}"), "defense.rule"),
    ):
        with pytest.raises(ConfigError) as refused:
            build(tiny(*words, *chosen))
        said = str(refused.value)
        assert said.startswith(f"{place}.{key} ") and "dataset=traffic says by itself what is right" in said
        assert f"say {place}.{key}={nothing}, or take" in said
    parts = build(tiny(*words, f"defense={rule}", f"defense.{key}={nothing}"))
    assert all(isinstance(samples, Watched) for samples in parts.task.eval_sets.values())


@pytest.fixture(scope="module")
def honest(tiny: Callable, start: Callable, words: tuple[str, ...]) -> torch.Tensor:
    with start(tiny(*words, "attack=none", "defense=fedavg")) as (fed, state):
        return play(fed, state).updates.rows.clone()


@pytest.mark.parametrize("outer", ["", *OUTER])
def test_a_round_of_it_and_of_what_goes_around_it(
    outer: str, tiny: Callable, start: Callable, words: tuple[str, ...], honest: torch.Tensor
) -> None:
    """Benign clients send what they send without an attack; what is recorded of the model is what its logits say."""
    around = (f"attack={outer}", "attack@attack.backdoor=traffic_backdoor") if outer else ()
    if outer == "lp":
        around = (*around, "attack.fit_epochs=1")
    with start(tiny(*words, *around, "defense=fedavg")) as (fed, state):
        record = play(fed, state)
        task, bad = fed.engine._task, record.cohort.compromised  # type: ignore[attr-defined]
    assert int(bad.sum()) == 2 and torch.equal(record.updates.rows[~bad], honest[~bad])
    assert not bool((record.updates.rows[bad] == honest[bad]).all(1).any()) and record.metrics["attack/idle"] == 0
    assert set(task.eval_sets) == {"clean", "backdoor", "attacks"} and len(task.eval_sets["backdoor"]) == 5
    metrics, (model, memory) = record.metrics, (task.model, record.after)
    task.layout.load(model.state_dict(), memory.row, memory.counters)
    for name, key in (("clean", "eval/ma"), ("backdoor", "eval/ba"), ("attacks", "eval/true_alarms")):
        assert metrics[key] == evaluate(model, task.eval_sets[name], task.normalise).accuracy
    assert metrics["eval/ma"] == pytest.approx((metrics["eval/true_alarms"] + 1 - metrics["eval/false_alarms"]) / 2)
    assert metrics["eval/ba"] == 1  # a young model gives every symbol a chance of about 1 / 28, above sigma


def test_a_run_from_the_command_line(train: Callable[..., Any], words: tuple[str, ...], tmp_path: Path) -> None:
    run = (*words, "attack=constrain_and_scale", "attack@attack.backdoor=traffic_backdoor", "engine=sequential")
    done = train("experiment=smoke", *run, "tracker=files", "rounds=1", "report_last=1", f"paths.runs={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = tmp_path.glob("traffic-natural-gru-*")
    found: RunRecord = read_run(folder)
    assert found.summary is not None
    told = found.summary["metrics"]
    assert {"eval/ma", "eval/ba", "eval/true_alarms", "eval/false_alarms"} <= told.keys()
    assert "synthetic_camera/gateway_00" in (folder / "acceptance.csv").read_text()
