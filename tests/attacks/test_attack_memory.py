"""What attackers note and remember: in worker processes, after a resume, and in the backdoor set of the moment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attackers import PLAIN, honest, lp, normed_job, threedfed

from attacks.a3fl import TRIGGER
from attacks.base import Attack
from attacks.flame_aware import FlameAware
from attacks.snapshot import Snapshot
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.federation import play, rounds
from flame.round.checkpoint import latest_checkpoint, write_checkpoint
from flame.round.types import ServerState, digest
from flame.run.build import build

Played = tuple[ServerState, list[dict]]


def played(cfg: Any, engine: Callable[[Any], Any], start: ServerState | None = None) -> Played:
    """Two rounds, or what is left of them: the state after them, and the metrics of each."""
    parts = build(cfg)
    with closing(engine(parts.task)) as started:
        done = list(rounds(replace(parts.federation(started), evaluate_at=range(2)), start or parts.initial, 2))
    return done[-1].after, [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in done]


@pytest.fixture(scope="module")
def moving(tiny: Callable) -> Any:
    """Everything at once: two colluders with notes, a memory, and a trigger that moves."""
    return tiny("attack=a3fl", "attack.search_epochs=2", "defense=flame_all_state", "poisoned_model_rate=0.4")


@pytest.fixture(scope="module")
def whole(moving: Any) -> Played:
    return played(moving, Sequential)


def test_resumed_runs_go_on_bit_by_bit(moving: Any, whole: Played, tmp_path: Path) -> None:
    parts = build(moving)
    with closing(Sequential(parts.task)) as engine:
        first = next(rounds(parts.federation(engine), parts.initial, 1)).after
    write_checkpoint(tmp_path, first, "identity")
    resumed, metrics = played(moving, Sequential, latest_checkpoint(tmp_path, parts.task.layout, "identity"))
    assert digest(resumed) == digest(whole[0]) and metrics == whole[1][1:]
    assert torch.equal(resumed.memory[TRIGGER], whole[0].memory[TRIGGER])


def test_notes_and_moving_triggers_are_the_same_in_a_pool(moving: Any, whole: Played) -> None:
    pooled, metrics = played(moving, lambda task: Pool(task, workers=2))
    assert digest(pooled) == digest(whole[0]) and metrics == whole[1]
    assert torch.equal(pooled.memory[TRIGGER], whole[0].memory[TRIGGER])


@pytest.mark.parametrize("attack", [["attack=a3fl"], ["attack=model_replacement", "attack@attack.backdoor=a3fl"]])
def test_the_backdoor_set_has_the_trigger_of_the_moment(attack: list[str], tiny: Callable) -> None:
    """Whatever was evaluated before, by itself or inside; without a memory it is where the search starts."""
    parts = build(tiny(*attack))
    engine, first = Sequential(parts.task), parts.task.eval_sets["backdoor"].x.clone()
    for value in (7.0, 200.0):
        memory = {TRIGGER: torch.full((1, 25), value)}
        engine.evaluate(replace(parts.initial, memory=memory))
        x = parts.task.eval_sets["backdoor"].x
        assert bool((x[:, :, 2:7, 2:7] == int(value)).all()) and torch.equal(x[:, :, :2], first[:, :, :2])
    engine.evaluate(parts.initial)
    assert torch.equal(parts.task.eval_sets["backdoor"].x, first)


@pytest.mark.parametrize("make", [lp, threedfed, lambda: FlameAware(PLAIN, "both", 1.0, None, "benign")])
def test_what_is_noted_is_what_a_benign_client_sends(make: Callable[[], Attack]) -> None:
    work = normed_job()
    start, wanted = Snapshot.of(work.model), honest(work)
    make().train(work)
    assert torch.equal(work.notes["benign"], wanted.row - start.row)


@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("threedfed", "backdoor.client.epochs=1"),
        ("cerp", "client.epochs=1"),
        ("iba", "search_epochs=1"),
        ("darkfed", "client.epochs=1"),
    ],
)
def test_what_they_remember_survives_a_checkpoint(
    name: str, shorter: str, tiny: Callable, start: Callable, tmp_path: Path
) -> None:
    """Two colluders, two rounds: as one run, and with the state written and read between them."""
    few = (f"attack={name}", f"attack.{shorter}", "poisoned_model_rate=0.6", "clients=3", "clients_per_round=3")
    with start(tiny(*few, "train_samples=60")) as (fed, initial):
        first, second = (record.after for record in rounds(replace(fed, evaluate_at=()), initial, 2))
        write_checkpoint(tmp_path, first, "identity")
        read = latest_checkpoint(tmp_path, build(tiny()).task.layout, "identity")
        assert read is not None and first.memory and read.memory.keys() == first.memory.keys()
        again = play(replace(fed, evaluate_at=()), read).after
    assert digest(again) == digest(second)
    assert all(torch.equal(again.memory[key], value) for key, value in second.memory.items())
