"""Faults of the machine: dead workers, full disks, missing rights, little shared memory, failing jobs of a sweep."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sweeps import kill_and_give_again
from torture import OFTEN, ROOT, TINY, fingerprint, finish, run_folder, start, succeed

from flame.round.checkpoint import read_checkpoint, write_atomically
from flame.run.trackers.files import _append, read_metrics

SOLO = ("engine=sequential", "defense=flame_all_state", "attack=dba", "rounds=4")


def mounts() -> bool:
    """Whether this process may mount file systems (of its own namespace)."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not mounts(), reason="may not mount file systems here")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """A small disk, in memory, at `folder`."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_files() -> Iterator[None]:
    """No file can grow beyond 100 bytes; around one call only, since pytest writes its own output to a file too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_line_that_does_not_fit_is_not_half_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    _append(path, "x" * 59 + "\n")
    with small_files(), pytest.raises(OSError, match="File too large"):
        _append(path, "y" * 59 + "\n")
    assert path.read_text() == "x" * 59 + "\n"


def test_file_that_does_not_fit_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    write_atomically(tmp_path / "summary.json", b"old")
    with small_files(), pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "summary.json", b"x" * 200)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"summary.json": b"old"}


@needs_mounts
def test_full_disk_stops_the_run_in_words_and_loses_nothing(tmp_path: Path) -> None:
    succeed(tmp_path / "whole", *SOLO)
    runs = tmp_path / "small"
    with disk(runs, "800k"):  # two checkpoints fit, the third beside them does not
        assert finish(start(runs, *SOLO)) == 1
        log, folder = (runs / "log").read_text(), run_folder(runs)
        assert "the disk is full: free some space. Then give the same command again" in log
        assert "Traceback" not in log
        assert {read_checkpoint(path)[0].round for path in (folder / "checkpoints").iterdir()} == {1, 2}
        assert (folder / "metrics.jsonl").read_text().endswith("}\n") and len(read_metrics(folder)) >= 2
        mount("-o", "remount,size=8m", str(runs))
        succeed(runs, *SOLO)
        assert fingerprint(runs) == fingerprint(tmp_path / "whole")


@needs_mounts
def test_read_only_run_folder_is_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with disk(runs, "8m"):
        folder = runs / "mine"
        folder.mkdir()
        mount("-o", "remount,ro", str(runs))
        assert finish(start(tmp_path / "log", *SOLO, f"hydra.run.dir={folder}")) == 1
    assert (
        f"{folder} cannot be written (Read-only file system): set paths.runs" in (tmp_path / "log" / "log").read_text()
    )


def test_folder_where_a_file_belongs_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "config.yaml").mkdir(parents=True)
    assert finish(start(tmp_path, *SOLO, f"hydra.run.dir={folder}")) == 1
    log = (tmp_path / "log").read_text()
    assert f"{folder}/config.yaml: Is a directory; something else is in its place" in log


@needs_mounts
def test_small_shared_memory_is_named(tmp_path: Path) -> None:
    overrides = shlex.join([*TINY, *OFTEN, "engine=pool", "engine.workers=1", f"paths.runs={tmp_path}"])
    script = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {sys.executable} train.py {overrides}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "shared memory is too small" in done.stderr and "engine=sequential" in done.stderr


def test_three_deaths_stop_the_run_with_the_cause_and_a_checkpoint(tmp_path: Path) -> None:
    deadly = ("attack=none", "attack._target_=deadly.Deadly")
    assert finish(start(tmp_path, *deadly, "engine=pool", "engine.workers=1", "checkpoint.rounds=0")) == 1
    log = (tmp_path / "log").read_text()
    assert log.count("a worker died (SIGKILL, often out of memory)") == 2
    assert "3 workers died in one round" in log and "lower engine.workers" in log and "Traceback" not in log
    (checkpoint,) = (run_folder(tmp_path) / "checkpoints").iterdir()
    assert read_checkpoint(checkpoint)[0].round == len(read_metrics(run_folder(tmp_path))) == 2


@pytest.mark.parametrize("launcher", ["basic", "joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_killed_sweep_given_again_runs_what_is_missing_and_lists_failures(tmp_path: Path, launcher: str) -> None:
    if launcher == "submitit_local":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `submitit` is not installed")
    command = [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])]
    kill_and_give_again(tmp_path, command)


def test_names_cannot_leave_the_run_folder(tmp_path: Path) -> None:
    for trick in ("defense=../../../etc/passwd", "dataset=/etc/passwd", "model=$(touch x)"):
        assert finish(start(tmp_path, trick)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"log"} and not (ROOT / "x").exists()
