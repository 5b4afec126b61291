"""The view on Weights & Biases, read back with W&B's own reader from what was written offline."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from conftest import Train
from hypothesis import given
from hypothesis import strategies as st
from wandb.util import get_core_path

from flame.federation import Round
from flame.run.config import NAMED
from flame.run.record import read_run
from flame.run.recording import Recorder
from flame.run.trackers.base import RunInfo
from flame.run.trackers.exhibits import artifacts
from flame.run.trackers.files import (
    ACCEPTANCE,
    CHOICES,
    CONFIG,
    ENVIRONMENT,
    SUMMARY,
    RunFiles,
    read_metrics,
    write_json,
)
from flame.run.trackers.wandb import WandB, fit, least_mode, run_id
from flame.run.weights import MODEL

CHOSEN = {"dataset": "digits", "partition": "iid", "model": "resnet8", "attack": "badnets", "defense": "krum"}
Records = dict[str, list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where nobody has logged in."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(scope="module")
def sweep(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Defense -> run folder, of two jobs in one process."""
    runs = tmp_path_factory.mktemp("sweep")
    tiny = ("experiment=smoke", "engine=sequential", "train_samples=300", "rounds=2", f"paths.runs={runs}")
    done = train("-m", *tiny, "tracker=wandb", "defense=fedavg,flame_all_state")
    assert done.returncode == 0, done.stderr
    return {json.loads(path.read_text())["defense"]: path.parent for path in runs.glob(f"*/{CHOICES}")}


def written(folder: Path) -> list[Path]:
    """The W&B runs in a run folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def inspect(path: Path) -> Records:
    """Record type -> records, in order; what `wandb leet inspect` starts, without the second of its own imports."""
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(path)]
    command.append(str(path.parent.parent))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    records = defaultdict(list)
    for line in map(json.loads, done.stdout.splitlines()):
        records[line["type"]].append(line[line["type"]])
    return records


def ended(path: Path) -> Records:
    """The records of a run of this process, with the last: W&B's own process may write it after `finish` returns."""
    latest = time.monotonic() + 30
    while not (records := inspect(path))["exit"]:
        assert time.monotonic() < latest, f"{path} has no exit record"
    return records


def rounds_of(records: Records) -> dict[int, dict[str, float]]:
    """Round -> metrics of the rows that are rounds; the last row holds the table."""
    rows = [row["item"] for row in records["history"]]
    return {row["_step"]: {k: v for k, v in row.items() if not k.startswith("_")} for row in rows if "eval/ma" in row}


def test_each_job_of_a_sweep_is_a_run_of_its_own(sweep: dict[str, Path]) -> None:
    assert sorted(sweep) == ["fedavg", "flame_all_state"]
    ids = set()
    for defense, folder in sweep.items():
        (path,) = written(folder)
        (run,) = inspect(path)["run"]
        config = run["config"]["update"]
        expected = yaml.safe_load((folder / CONFIG).read_text())
        assert {key: config[key] for key in expected} == expected
        assert config["choices"]["defense"] == run["job_type"] == defense
        assert run["display_name"] == folder.name
        assert sorted(run["tags"]) == sorted(["digits", "iid", "resnet8", "badnets", defense])
        ids.add((run["run_group"], run["run_id"]))
    assert len({group for group, _ in ids}) == 1
    assert len({name for _, name in ids}) == 2


def test_a_row_a_round_and_then_the_accepted_sets(sweep: dict[str, Path]) -> None:
    folder = sweep["flame_all_state"]
    (path,) = written(folder)
    records = inspect(path)
    expected = {row["round"]: {k: v for k, v in row.items() if v is not None} for row in read_metrics(folder)}
    found = rounds_of(records)
    assert list(found) == [0, 1]
    assert found == {number: pytest.approx(row) for number, row in expected.items()}
    assert {"step_metric": "round", "glob_name": "*"}.items() <= records["metric"][-1].items()
    assert records["exit"][0]["exit_code"] == 0
    last = records["history"][-1]["item"]
    assert last["acceptance._type"] == "table-file" and last["acceptance.log_mode"] == "IMMUTABLE"
    table = json.loads((path.parent / "files" / last["acceptance.path"]).read_text())
    with open(folder / ACCEPTANCE) as file:
        header, *rows = csv.reader(file)
    assert table["columns"] == header
    assert table["data"] == [[float(value) for value in row] for row in rows]
    assert (path.parent / "files" / last["acceptance_map.path"]).read_bytes().startswith(b"\x89PNG")
    assert (folder / "wandb" / "artifacts" / "staging").is_dir()  # not in $HOME


def test_the_summary_is_that_of_the_files(sweep: dict[str, Path]) -> None:
    folder = sweep["fedavg"]
    summary = json.loads((folder / SUMMARY).read_text())
    (path,) = written(folder)
    found: dict[str, Any] = {}
    for record in inspect(path)["summary"]:
        found |= record.get("update", {})
    assert {key: found[key] for key in summary["metrics"]} == pytest.approx(summary["metrics"])
    assert found["state_sha256"] == summary["state_sha256"]


def described(folder: Path, name: str = "a-run-0123456789ab", sweep: str = "") -> RunInfo:
    """A run folder as `flame.run.experiment` prepares it."""
    folder.mkdir(exist_ok=True)
    write_json(folder / CHOICES, CHOSEN)
    parts = "".join(f"{group}: {{}}\n" for group in NAMED)
    (folder / CONFIG).write_text(f"rounds: 3\nseed: 0\nclients_per_round: 4\n{parts}")
    write_json(folder / ENVIRONMENT, {"commit": "1234567", "dirty": False})
    write_json(folder / "identity.json", {"identity": "0123456789ab"})
    return RunInfo(name, folder, "0123456789ab", {"rounds": 3, "seed": 0, "dataset": {}}, CHOSEN, sweep or name)


def test_a_resumed_run_is_whole_under_the_same_id(tmp_path: Path, history: list[Round]) -> None:
    info = described(tmp_path / "run")
    for first, last in ((0, 2), (1, 3)):  # stopped after two rounds, resumed from a checkpoint after the first
        files, tracker = RunFiles(info.folder, first), WandB("p", None, "offline")
        tracker.start(info, first)
        for record in history[first:last]:
            files.log(record)
            tracker.log(record)
        tracker.close(int(last < 3))
    stopped, resumed = map(ended, written(info.folder))
    assert list(rounds_of(stopped)) == [0, 1] and stopped["exit"][0]["exit_code"] == 1
    assert list(rounds_of(resumed)) == [0, 1, 2]
    assert rounds_of(resumed)[0] == rounds_of(stopped)[0]
    assert stopped["run"][0]["run_id"] == resumed["run"][0]["run_id"] == info.identity
    assert stopped["run"][0]["run_group"] == info.name  # no sweep: a group of its own


def test_online_without_a_key_goes_on_offline(
    tmp_path: Path, history: list[Round], caplog: pytest.LogCaptureFixture
) -> None:
    info, tracker = described(tmp_path / "run"), WandB("p", None, "online")
    RunFiles(info.folder, 0)
    tracker.start(info, 0)
    tracker.log(history[0])
    tracker.close(0)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "no W&B key" in warning and "wandb sync" in warning
    assert list(rounds_of(ended(written(info.folder)[0]))) == [0]


def test_a_view_that_fails_does_not_stop_the_run(
    tmp_path: Path, history: list[Round], caplog: pytest.LogCaptureFixture
) -> None:
    info, tracker = described(tmp_path / "run"), WandB("p", None, "offline")
    files = RunFiles(info.folder, 0)
    tracker.start(info, 0)
    assert wandb.run is not None
    wandb.run.finish()  # behind the tracker's back: W&B refuses what follows
    for record in history:
        files.log(record)
        tracker.log(record)
    tracker.finish({"metrics": {}, "state_sha256": ""})
    tracker.close(0)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert str(info.folder) in warning
    assert len(read_metrics(info.folder)) == 3


def test_disabled_writes_nothing(tmp_path: Path, history: list[Round]) -> None:
    tracker = WandB("p", None, "disabled")
    tracker.start(described(tmp_path / "run"), 0)
    tracker.log(history[0])
    tracker.finish({"metrics": {}, "state_sha256": ""})
    tracker.close(0)
    assert not (tmp_path / "run" / "wandb").exists()
    assert "WANDB_DATA_DIR" not in os.environ


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tracker\.mode=onlin .* choose one of disabled, offline, online"):
        WandB("p", None, "onlin")


@pytest.mark.parametrize(
    ("environment", "mode", "found"),
    [
        ({}, "offline", "offline"),
        ({"WANDB_MODE": "disabled"}, "online", "disabled"),
        ({"WANDB_MODE": "offline"}, "online", "offline"),
        ({"WANDB_MODE": "dryrun"}, "online", "offline"),
        ({"WANDB_MODE": "online"}, "offline", "offline"),  # what leaves this machine is the config's to say
        ({"WANDB_MODE": "online"}, "disabled", "disabled"),
        ({"WANDB_DISABLED": "true"}, "online", "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "online", "disabled"),
        ({"WANDB_DISABLED": "false"}, "online", "online"),
        ({"WANDB_DISABLED": ""}, "offline", "offline"),
    ],
)
def test_the_environment_may_ask_for_less(environment: dict[str, str], mode: str, found: str) -> None:
    assert least_mode(mode, environment) == found


def test_a_view_that_the_environment_disables_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    WandB("p", None, "offline").start(described(tmp_path / "run"), 0)
    assert not (tmp_path / "run" / "wandb").exists()


def test_an_unknown_mode_of_the_environment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WANDB_MODE=of is not a mode of W&B"):
        least_mode("offline", {"WANDB_MODE": "of"})


@pytest.mark.parametrize("name", ["a/b", "what?", "", " ", "x" * 129, "50%", "a:b", "a#b", "a\\b"])
def test_a_name_that_wandb_refuses_is_refused_before_the_run(name: str) -> None:
    with pytest.raises(ValueError, match=r"^tracker\.project=.* is no name for W&B: must be 1 to 128 characters"):
        WandB(name, None, "offline")
    with pytest.raises(ValueError, match=r"^tracker\.entity="):
        WandB("p", name, "offline")


@pytest.mark.parametrize("name", ["a/b", "x" * 129, "Läufe", "x" * 128])
def test_names_are_judged_as_by_wandb(name: str) -> None:
    assert _refused(lambda: WandB(name, None, "offline")) == _refused(lambda: wandb.Settings(project=name))


def _refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except (ValueError, wandb.Error):
        return True
    return False


def test_a_picture_that_fails_leaves_the_rest_of_the_view(
    tmp_path: Path, history: list[Round], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: object) -> bytes:
        raise RuntimeError("no latex")

    monkeypatch.setattr("flame.run.trackers.exhibits.acceptance_png", fail)
    info, tracker = described(tmp_path / "run"), WandB("p", None, "offline")
    files = RunFiles(info.folder, 0)
    tracker.start(info, 0)
    for record in history:
        files.log(record)
        tracker.log(record)
    tracker.finish({"metrics": {"eval/ma": 0.5}, "state_sha256": "f00d"})
    tracker.close(0)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "RuntimeError: no latex" in warning and "complete without it" in warning
    records = ended(written(info.folder)[0])
    assert records["exit"][0].get("exit_code", 0) == 0
    assert any(entry.get("update", {}).get("state_sha256") == "f00d" for entry in records["summary"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits-iid-s0-0123456789ab", "0123456789ab"),
        ("digits-iid-s0-0123456789ab-20260101-120000", "0123456789ab-20260101-120000"),
        ("mine", "0123456789ab"),
    ],
)
def test_the_id_is_the_identity(tmp_path: Path, name: str, expected: str) -> None:
    assert run_id(described(tmp_path, name)) == expected


def test_files_go_with_a_run_that_was_asked_for_them(
    tmp_path: Path, history: list[Round], caplog: pytest.LogCaptureFixture
) -> None:
    """The final model and the recorded rounds, offline; they are named where they lie and not copied."""
    info, tracker = described(tmp_path / "run"), WandB("p", None, "offline", artifacts=["model", "recorded"])
    files, recorder = RunFiles(info.folder, 0), Recorder(info.folder, rounds=[0, 1], every=0, seed=0)
    tracker.start(info, 0)
    for record in history:
        files.log(record)
        recorder.log(record)
    (info.folder / MODEL).write_bytes(b"weights")
    tracker.finish({"metrics": {}, "state_sha256": "f00d"})
    tracker.close(0)
    found = {record["name"]: record for record in ended(written(info.folder)[0])["artifact"]}
    model, recorded = (found[f"{kind}-0123456789ab"] for kind in ("model", "recorded"))
    assert model["type"] == "model" and recorded["type"] == "dataset"
    (entry,) = model["manifest"]["contents"]
    assert entry["local_path"] == str(info.folder / MODEL) and int(entry["size"]) == 7
    names = [Path(entry["local_path"]).name for entry in recorded["manifest"]["contents"]]
    assert names == ["round_000000.safetensors", "round_000001.safetensors"]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_files_that_are_not_there_are_named(
    tmp_path: Path, history: list[Round], caplog: pytest.LogCaptureFixture
) -> None:
    folder = described(tmp_path / "run").folder
    RunFiles(folder, 0).log(history[0])
    assert list(artifacts(["recorded"], read_run(folder), "id")) == []
    assert "tracker.artifacts: the run has nothing for recorded in " in caplog.text and "record.every" in caplog.text


def test_unknown_artifacts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tracker.artifacts=\['all'\] is unknown: must be a list of model, recorded"):
        WandB("p", None, "offline", artifacts=["model", "all"])


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_names_fit_and_stay_different(one: str, other: str) -> None:
    assert len(fit(one, 64)) <= 64
    assert fit(one, 64) == one or len(one) > 64
    assert (fit(one, 64) == fit(other, 64)) == (one == other)
