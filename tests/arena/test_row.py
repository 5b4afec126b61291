"""A row of the arena through Hydra: what changes the contest, what is lacking, and the file of a whole row."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import Compose

from flame.arena.board import board
from flame.arena.lines import CONTROL, VERSION, line_of, read
from flame.arena.row import finish, other_contest
from flame.report.recipes import recipes
from flame.run.config import identity
from flame.run.record import find_runs, read_run

ROW = "recipe/arena/row"
CONTESTS = {1: "8005d2001e82"}  # version -> of what is fixed, the attacks' settings included
PLAN = {"seed": ["0"], "partition": ["iid"], "attack": ["none", "badnets"]}
TINY = ("experiment=smoke", "train_samples=300", "engine=sequential", "tracker=files", "rounds=1", "clients=10")


def test_whoever_changes_the_contest_raises_its_version(compose: Compose) -> None:
    plan = recipes()["row"].plan
    attacks = [identity(compose(f"attack={attack}", name=ROW)) for attack in plan["attack"]]
    fixed = " ".join([*attacks, *plan["partition"], *plan["seed"]])
    assert sha256(fixed.encode()).hexdigest()[:12] == CONTESTS[VERSION]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["defense=krum", "defense.f=3", "memo.dir=x", "hydra/launcher=joblib", "tracker=files"], None),
        (["seed=0", "attack=badnets", "partition=iid", "paths.runs=x"], None),
        (["defense=krum", "rounds=2"], "rounds=2"),
        (["attack.poisoned_data_rate=0.1"], "attack.poisoned_data_rate=0.1"),
        (["partition.alpha=3"], "partition.alpha=3"),
        (["attack/trigger=bars"], "attack/trigger=bars"),
        (["+client.lr=1"], "+client.lr=1"),
    ],
)
def test_what_changes_the_contest(words: list[str], changed: str | None) -> None:
    assert other_contest(words) == changed


@pytest.fixture(scope="module")
def runs(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two attacks under two defenses, tiny."""
    folder = tmp_path_factory.mktemp("arena")
    swept = ("attack=none,badnets", "defense=fedavg,krum", "partition=iid", "seed=0", "start.rounds=1")
    done = train("--config-name", ROW, *TINY, *swept, "dataset=digits", f"paths.runs={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no row of the arena, as experiment=smoke changes the contest" in done.stdout
    assert not list(folder.glob("*.csv"))
    return find_runs([folder])


@pytest.fixture
def no_board(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no row had been published."""
    monkeypatch.setattr("flame.arena.lines.LINES", tmp_path_factory.mktemp("lines"))


@pytest.mark.usefixtures("no_board")
def test_a_whole_row_becomes_a_file_and_is_on_the_board(runs: list[Path], tmp_path: Path) -> None:
    text = finish(runs, [], tmp_path, PLAN)
    lines = read(sorted(tmp_path.glob("*.csv")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fedavg.csv", "krum.csv"] and len(lines) == 4
    assert set(board(lines)["defense"]) == {"fedavg", "krum"} and "krum <-" in text
    krum = next(read_run(run) for run in runs if "krum" in run.name and "badnets" in run.name)
    (line,) = lines[(lines["defense"] == "krum") & (lines["attack"] == "badnets")].to_dict("records")
    assert line["ba"] == pytest.approx(krum.reported("eval/ba"), abs=1e-6)
    assert line["state_sha256"] == (krum.summary or {})["state_sha256"] and line["identity"] == krum.identity
    assert 0 < line["server_seconds"] < line["run_seconds"]


def test_a_row_that_is_not_whole_is_no_file(runs: list[Path], tmp_path: Path) -> None:
    text = finish(runs, [], tmp_path, {**PLAN, "seed": ["0", "1"]})
    assert "krum: no whole row, it lacks 2 runs, first attack=none partition=iid seed=1" in text
    assert not list(tmp_path.iterdir())


def test_settings_of_a_defense_are_in_its_name(runs: list[Path]) -> None:
    krum = next(read_run(run) for run in runs if "krum" in run.name)
    key = next(key for key in krum.config["defense"] if not key.startswith("_"))
    assert line_of(krum, [key])["defense"].startswith(f"krum {key}=")


def test_where_nobody_poisons_the_defense_is_the_control(runs: list[Path]) -> None:
    run = next(read_run(run) for run in runs if "badnets" in run.name)
    run.config["attack"]["poisoned_data_rate"] = 0
    assert line_of(run)["defense"] == CONTROL
