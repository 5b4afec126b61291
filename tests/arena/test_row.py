"""A row of the arena through Hydra: its runs, the file of a whole row, and what a sweep says in its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml  # type: ignore[import-untyped]
from conftest import Compose
from omegaconf import DictConfig, OmegaConf

from flame.arena import entry
from flame.arena.board import board
from flame.arena.contest import PARTS, recipe
from flame.arena.entry import beside, entries, written
from flame.arena.lines import AGAIN, COLUMNS, CONTROL, VERSION, csv_of, line_of, read
from flame.arena.row import Row, chosen
from flame.run.compose import started
from flame.run.config import identity
from flame.run.record import RunRecord, find_runs, read_run

ROW = "recipe/arena/row"
CONTESTS = {  # version and part -> of what is fixed, the attacks' and partitions' settings and the control's
    (1, "row"): "58ce90969bc5",
    (2, "row"): "4f0aac874cb2",
    (2, "tune"): "2fd7f51161d4",
    (2, "fashion"): "0e26a31f4e79",
}
PLAN = {"seed": ("0",), "partition": ("iid",), "attack": ("none", "badnets")}
TINY = ("experiment=smoke", "train_samples=300", "engine=sequential", "tracker=files", "rounds=1", "clients=10")
TINY += ("dataset=digits", "start.rounds=1")


@pytest.mark.parametrize("part", PARTS)
def test_whoever_changes_the_contest_raises_its_version(part: str, compose: Compose) -> None:
    """An attack's settings do not hang on the partition: each is looked at once."""

    def fixed(defense: str) -> Iterator[str]:
        name, plan = recipe(defense, part).config, recipe(defense, part).plan
        yield from (identity(compose(f"attack={attack}", name=name)) for attack in plan["attack"])
        yield from (identity(compose(f"partition={partition}", name=name)) for partition in plan["partition"])
        yield from plan["seed"]

    found = " ".join([*fixed(""), *fixed(CONTROL)])
    assert sha256(found.encode()).hexdigest()[:12] == CONTESTS[VERSION, part]


@pytest.fixture(scope="module")
def runs(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two attacks under two defenses, tiny."""
    folder = tmp_path_factory.mktemp("arena")
    swept = ("attack=none,badnets", "defense=fedavg,krum", "partition=iid", "seed=0")
    done = train("--config-name", ROW, *TINY, *swept, f"paths.runs={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no row of the arena, as experiment=smoke changes the contest" in done.stdout
    assert not list(folder.glob("*.csv"))
    return find_runs([folder])


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory, compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contest that `runs` are of; no row of it has been published."""

    fixed = {attack: compose(*TINY, f"attack={attack}", "partition=iid", name=ROW) for attack in PLAN["attack"]}
    for module in ("contest", "entry"):
        monkeypatch.setattr(f"flame.arena.{module}.recipe", lambda *_: SimpleNamespace(config=ROW, plan=PLAN))
    monkeypatch.setattr("flame.arena.contest.fixed", lambda config, attack, partition: fixed[attack])
    monkeypatch.setattr("flame.arena.entry.LINES", tmp_path_factory.mktemp("lines"))


def notes(runs: Sequence[Path], *words: str) -> list[dict[str, Any]]:
    """As the sweep of these runs notes them."""
    defense = ["defense=krum" if "krum" in run.name else "defense=fedavg" for run in runs]
    return [
        {"folder": str(run), "words": [name, *words], "error": None} for run, name in zip(runs, defense, strict=True)
    ]


def ended(place: Path) -> DictConfig:
    """What the end of a sweep looks at."""
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(place)}, "overrides": {"hydra": [], "task": []}}})


def entered(noted: list[dict[str, Any]]) -> tuple[pd.DataFrame, list[str]]:
    with started():
        return entries(noted, chosen(ended(Path())), "row")


@pytest.mark.usefixtures("small")
def test_a_whole_row_becomes_a_file_and_is_on_the_board(runs: list[Path], tmp_path: Path) -> None:
    lines, refused = entered(notes(runs))
    files, said = written(lines, tmp_path, "row")
    assert not refused and len(said) == 2 and {path.name for path in files.values()} == {"fedavg.csv", "krum.csv"}
    lines = read(files.values())
    assert len(lines) == 4 and set(board(lines)["defense"]) == {"fedavg", "krum"}
    krum = next(read_run(run) for run in runs if "krum" in run.name and "badnets" in run.name)
    (line,) = lines[(lines["defense"] == "krum") & (lines["attack"] == "badnets")].to_dict("records")
    assert line["ba"] == pytest.approx(krum.reported("eval/ba"), abs=1e-6)
    assert line["state_sha256"] == (krum.summary or {})["state_sha256"] and line["identity"] == krum.identity
    assert 0 < line["server_seconds"] < line["run_seconds"]


@pytest.mark.usefixtures("small")
def test_a_board_is_shown_once_there_is_something_to_compare_with(runs: list[Path], tmp_path: Path) -> None:
    files, _ = written(entered(notes(runs))[0], tmp_path, "row")
    assert beside({"krum": files["krum"]}, "row") == (
        "no board yet: nothing can be compared before the rows of control and fedavg are there"
    )
    control = read([files["fedavg"]]).assign(defense=CONTROL)
    (tmp_path / "control.csv").write_text(csv_of(control))
    text = beside({**files, CONTROL: tmp_path / "control.csv"}, "row")
    assert "krum <-" in text and text.index("krum <-") and CONTROL not in text
    files["krum"].write_text(csv_of(read([files["krum"]]).assign(processor="two")))
    assert "krum ‡ <-" in beside({**files, CONTROL: tmp_path / "control.csv"}, "row")
    (again := entry.LINES / AGAIN).mkdir()  # averaging was made there, too, and ended in the same models
    (again / "fedavg.csv").write_text(csv_of(read([files["fedavg"]]).assign(processor="two")))
    assert "krum <-" in beside({**files, CONTROL: tmp_path / "control.csv"}, "row")


@pytest.mark.usefixtures("small")
def test_a_row_that_is_not_whole_is_no_file(runs: list[Path], tmp_path: Path) -> None:
    some = [run for run in runs if "krum" in run.name and "none" in run.name]
    files, said = written(entered(notes(some))[0], tmp_path, "row")
    assert said == ["krum: no whole row, it lacks 1 runs, first attack=badnets partition=iid seed=0"]
    assert not files and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_defenses_have_files_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    lines, names = entered(notes(runs))[0], {"fedavg": "a/b", "krum": "a b"}
    files, _ = written(lines.assign(defense=lines["defense"].map(names)), tmp_path, "row")
    assert set(read(tmp_path.glob("*.csv"))["defense"]) == {"a/b", "a b"}
    assert {path.name for path in files.values()} == {"a%2Fb.csv", "a+b.csv"}


def test_the_end_of_a_sweep_says_everything(
    runs: list[Path], small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole rows, runs that cannot be read, jobs that failed; none hides another, and the exit code is 1."""
    damaged, failed = ({"folder": str(tmp_path / name), "words": [], "error": None} for name in ("damaged", "failed"))
    noted = [*notes(runs), damaged, failed | {"error": "ValueError: why"}]
    row, ledger = Row("row"), tmp_path / "ledger"
    ledger.write_text("".join(json.dumps(note) + "\n" for note in noted))
    row._ledger, row._row = ledger, True
    with started(), pytest.raises(SystemExit) as end:
        row.on_multirun_end(ended(tmp_path))
    out, err = capsys.readouterr()
    assert end.value.code == 1 and not ledger.exists() and (tmp_path / "krum.csv").exists()
    assert "krum.csv; copied to results/arena" in out and "no board yet" in out
    assert "damaged is not a complete run folder" in out and "1 job failed" in err and "why" in err


def test_a_published_file_that_is_wrong_hides_no_row(
    runs: list[Path], small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old.csv").write_text("")
    monkeypatch.setattr("flame.arena.entry.LINES", tmp_path)
    row, ledger, place = Row("row"), tmp_path / "ledger", tmp_path / "place"
    place.mkdir()
    ledger.write_text("".join(json.dumps(note) + "\n" for note in notes(runs)))
    row._ledger, row._row = ledger, True
    with started(), pytest.raises(SystemExit):
        row.on_multirun_end(ended(place))
    assert (place / "krum.csv").exists() and "no board: " in caplog.text and "old.csv" in caplog.text


def test_a_fault_of_ours_at_the_end_is_told_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hydra makes a warning of what a callback raises, and exits with 0."""

    def faulty(*_: object) -> bool:
        raise LookupError("a fault")

    monkeypatch.setattr("flame.arena.row.conclude", faulty)
    row, ledger = Row("row"), tmp_path / "ledger"
    ledger.write_text("")
    row._ledger, row._row = ledger, True
    with pytest.raises(SystemExit) as end:
        row.on_multirun_end(ended(tmp_path))
    assert end.value.code == 1 and not ledger.exists()
    assert "no board" in caplog.text and "LookupError: a fault" in caplog.text


def test_a_config_of_the_user_s_makes_no_row(train: Callable, tmp_path: Path) -> None:
    """It starts from the row, and no word of the command line says that the contest is another."""
    values = {"rounds": 1, "train_samples": 300, "clients": 10, "start": {"rounds": 1}}
    swept = {"seed": 0, "partition": "iid", "attack": "none", "defense": "krum"}
    mine = {"defaults": [f"/{ROW}", "_self_"], **values, "hydra": {"sweeper": {"params": swept}}}
    (tmp_path / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(mine, sort_keys=False))
    words = ("--config-dir", str(tmp_path), "--config-name", "mine", "tracker=files")
    done = train(*words, f"paths.runs={tmp_path / 'runs'}")
    assert done.returncode == 1 and "is no run of the arena: clients is 10, not 30" in done.stdout, done.stderr[-2000:]
    assert not list((tmp_path / "runs").glob("*.csv"))


def krum(runs: list[Path]) -> RunRecord:
    return next(read_run(run) for run in runs if "krum" in run.name and "badnets" in run.name)


def test_settings_of_a_defense_are_in_its_name(runs: list[Path]) -> None:
    run = krum(runs)
    assert line_of(run, ["defense.keep"])["defense"] == "krum keep=1"
    run.choices["defense@defense.rule"] = "rfa"  # type: ignore[index]
    assert line_of(run, ["defense@defense.rule"])["defense"] == "krum rule=rfa"


def test_settings_that_are_not_in_the_name_make_no_row(runs: list[Path], small: None) -> None:
    """Those of a config of the user's; the others are taken as the command line has them."""
    noted = notes([run for run in runs if "krum" in run.name], "defense.keep=2")
    lines, refused = entered(noted)
    assert lines.empty and refused[0].endswith("is no run of the arena: defense.keep is 1, not 2")


def test_a_run_on_another_device_is_marked_so(runs: list[Path]) -> None:
    run = krum(runs)
    before = line_of(run)["processor"]
    run.environment["device"] = "cuda:0 (H)"  # type: ignore[index]
    assert line_of(run)["processor"] == f"{before}; cuda:0 (H)" and set(line_of(run)) == set(COLUMNS)


def test_where_nobody_poisons_the_defense_is_the_control(runs: list[Path]) -> None:
    run = next(read_run(run) for run in runs if "badnets" in run.name and "fedavg" in run.name)
    run.config["attack"]["poisoned_data_rate"] = 0
    assert line_of(run)["defense"] == CONTROL


def test_no_defense_can_be_the_control(runs: list[Path]) -> None:
    run = krum(runs)
    run.choices["defense"] = CONTROL  # type: ignore[index]
    with pytest.raises(ValueError, match=r"defense=control: .* give it another name"):
        line_of(run)
    run = krum(runs)
    run.config["attack"]["poisoned_data_rate"] = 0
    with pytest.raises(ValueError, match="nobody poisons, and the defense is krum; the control's is fedavg"):
        line_of(run)
