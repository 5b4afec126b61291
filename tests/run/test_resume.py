"""Interrupted runs, of the real command, end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from torture import fingerprint, finish, killed_and_resumed, run_folder, start, succeed

from flame.federation import Round
from flame.run.experiment import due, loop
from flame.run.folder import CHECKPOINTS, finished
from flame.run.stop import stop_on_signals
from flame.run.trackers.base import NoView, RunInfo
from flame.run.trackers.files import RunFiles, read_metrics

Tiny = Callable[..., DictConfig]
SOLO = ("engine=sequential", "defense=flame_all_state", "attack=dba")


class Seen(NoView):
    """A view that remembers what it was shown."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def log(self, record: Round) -> None:
        self.rounds.append(record.number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above a run that was never interrupted."""
    runs = tmp_path_factory.mktemp("whole")
    succeed(runs, *SOLO)
    return runs


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same, to be damaged; without its summary it counts as interrupted after the last round."""
    shutil.copytree(whole, tmp_path / "copy")
    (run_folder(tmp_path / "copy") / "summary.json").unlink()
    return tmp_path / "copy"


def spoil(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def checkpoints(runs: Path) -> list[Path]:
    return sorted((run_folder(runs) / "checkpoints").iterdir())


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("engine", "writing"), [("pool", False), ("sequential", True)])
def test_killed_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path, engine: str, writing: bool) -> None:
    overrides = [f"engine={engine}", *SOLO[1:], *(["engine.workers=2"] if engine == "pool" else [])]
    assert killed_and_resumed(tmp_path / "runs", overrides, 3.0, random.Random(5), writing)
    assert fingerprint(tmp_path / "runs") == fingerprint(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_checkpoint_and_exit_with_their_code(whole: Path, tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path, *SOLO, "checkpoint.rounds=0", "checkpoint.seconds=0")  # none but the one at the end
    while process.is_alive() and not any(path.stat().st_size for path in tmp_path.glob("*/metrics.jsonl")):
        time.sleep(0.002)
    assert process.pid is not None
    for _ in range(2):  # an impatient second Ctrl-C changes nothing
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
    assert finish(process) == code
    (last,) = checkpoints(tmp_path)
    rounds = len((run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines())
    assert last.name == f"round_{rounds:06d}.safetensors" and not finished(run_folder(tmp_path))
    said = f"stopped: {rounds} of 6 rounds are done; the same command goes on from there"
    assert said in (run_folder(tmp_path) / "train.log").read_text()
    succeed(tmp_path, *SOLO)
    assert fingerprint(tmp_path) == fingerprint(whole)


def test_a_signal_in_the_midst_of_recording_waits_until_the_round_is_recorded(
    tiny: Tiny, start: Callable, tmp_path: Path
) -> None:
    class Interrupted(RunFiles):
        def log(self, record: Round) -> None:
            super().log(record)
            os.kill(os.getpid(), signal.SIGTERM)  # there, and the round's state is not taken over yet

    cfg, info, seen = tiny("rounds=3"), RunInfo("a", tmp_path, "i", {}, {}, "a"), Seen()
    with pytest.raises(SystemExit) as ended, stop_on_signals() as stop, start(cfg) as (federation, state):
        loop(cfg, info, federation, state, Interrupted(tmp_path, 0), seen, stop)
    assert ended.value.code == 143
    assert len(read_metrics(tmp_path)) == 1 and seen.rounds == [0]
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["round_000001.safetensors"]


def test_a_second_signal_changes_nothing_and_handlers_return() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended, stop_on_signals() as stop, stop.later():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert ended.value.code == 130 and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("rounds", "seconds", "rounds_since", "seconds_since", "wanted"),
    [
        (3, 300, 2, 299.9, False),
        (3, 300, 3, 0.1, True),
        (3, 300, 1, 300.0, True),
        (0, 300, 99, 299.9, False),
        (0, 300, 1, 300.0, True),
        (3, 0, 2, 1e9, False),
        (3, 0, 3, 0.1, True),
        (0, 0, 99, 1e9, False),
    ],
)
def test_a_checkpoint_is_due_by_rounds_or_by_time(
    rounds: int, seconds: int, rounds_since: int, seconds_since: float, wanted: bool
) -> None:
    every = OmegaConf.create({"rounds": rounds, "seconds": seconds})
    assert bool(due(every, rounds_since, seconds_since)) is wanted


def test_rounds_are_counted_from_the_last_checkpoint(tiny: Tiny, start: Callable, tmp_path: Path) -> None:
    """Each third of eight rounds, and the last: 3, 6 and 8, of which two are kept."""
    cfg = tiny("rounds=8", "checkpoint.rounds=3", "checkpoint.seconds=0")
    info = RunInfo("a", tmp_path, "i", {}, {}, "a")
    with stop_on_signals() as stop, start(cfg) as (federation, state):
        loop(cfg, info, federation, state, RunFiles(tmp_path, 0), Seen(), stop)
    kept = sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir())
    assert kept == ["round_000006.safetensors", "round_000008.safetensors"]


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(whole: Path, copy: Path) -> None:
    spoil(checkpoints(copy)[-1])
    succeed(copy, *SOLO)
    assert fingerprint(copy) == fingerprint(whole)
    log = (copy / "log").read_text()
    assert "round_000006.safetensors is damaged" in log and "resumed: 5 of 6 rounds were done" in log


@pytest.mark.parametrize("died", ["before the summary", "while it was concluded"])
def test_run_that_died_after_its_last_round_is_concluded(whole: Path, copy: Path, died: str) -> None:
    (run_folder(copy) / "figure.png").unlink()
    summary = json.loads((run_folder(whole) / "summary.json").read_text())
    if died == "while it was concluded":
        (run_folder(copy) / "summary.json").write_text(json.dumps({**summary, "finished": False}))
    succeed(copy, *SOLO)
    assert "resumed: 6 of 6 rounds were done" in (copy / "log").read_text()
    found = json.loads((run_folder(copy) / "summary.json").read_text())
    assert found == summary and finished(run_folder(copy))
    assert (run_folder(copy) / "figure.png").exists() and fingerprint(copy) == fingerprint(whole)


def test_without_a_whole_checkpoint_the_run_is_refused_and_nothing_is_lost(copy: Path) -> None:
    for path in checkpoints(copy):
        spoil(path)
    before = files_under(run_folder(copy))
    assert finish(start(copy, *SOLO)) == 1
    assert "no checkpoint can be read; remove them to start anew" in (copy / "log").read_text()
    after = files_under(run_folder(copy))
    assert {k: after[k] for k in before if k != "train.log"} == {k: before[k] for k in before if k != "train.log"}


def test_other_code_stops_a_resume_unless_it_is_forced(whole: Path, copy: Path) -> None:
    """And then the record says so."""
    path = run_folder(copy) / "environment.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "code": "0" * 12, "commit": "c" * 40}))
    before = files_under(run_folder(copy))
    assert finish(start(copy, *SOLO)) == 1
    said = f"was begun with other files (commit {'c' * 40}): code {'0' * 12}, now {known['code']}; resume=force goes on"
    assert said in (copy / "log").read_text() and "Traceback" not in (copy / "log").read_text()
    after = files_under(run_folder(copy))
    assert {k: after[k] for k in before if k != "train.log"} == {k: before[k] for k in before if k != "train.log"}
    succeed(copy, *SOLO, "resume=force")
    assert fingerprint(copy) == fingerprint(whole)
    both = f"{'0' * 12}+{known['code']}"
    summary = json.loads((run_folder(copy) / "summary.json").read_text())
    assert summary["code"] == json.loads(path.read_text())["code"] == both


def test_finished_run_is_skipped_with_one_line_and_resume_false_runs_beside_it(whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(whole, runs)
    before, folder = files_under(run_folder(runs)), run_folder(runs)
    (runs / "log").write_text("")
    succeed(runs, *SOLO)
    (line,) = (runs / "log").read_text().splitlines()
    assert line.endswith("is finished; resume=false runs it again in a new folder")
    succeed(runs, *SOLO, "resume=false")
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 2
    after = files_under(folder)
    assert {k: v for k, v in after.items() if k != "train.log"} == {k: v for k, v in before.items() if k != "train.log"}


def test_another_config_is_refused_before_anything_is_written(whole: Path) -> None:
    folder = run_folder(whole)
    before = files_under(folder)
    assert finish(start(whole, *SOLO, "seed=1", f"hydra.run.dir={folder}")) == 1
    assert files_under(folder) == before
    assert "choose another hydra.run.dir" in (whole / "log").read_text()
