"""A sweep of the real command whose parent is killed and which is given again, under any launcher."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from torture import OFTEN, PATIENCE, ROOT, TINY, fingerprint, finish, start, succeed

from flame.run.folder import finished

SOLO = ("engine=sequential", "defense=flame_all_state", "attack=dba")


class Forked:
    """The command in a process that has imported torch already, with what is used here of `subprocess.Popen`."""

    def __init__(self, runs: Path, words: list[str]) -> None:
        self._log, self.returncode = runs / "log", 0
        self._log.unlink(missing_ok=True)
        self._process = start(runs, *words)
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Both streams go to one file."""
        self.returncode = finish(self._process)
        return "", self._log.read_text()


def sweep(runs: Path, launcher: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str] | Forked:
    """Four jobs of which two cannot run; a real interpreter for Slurm's, which start others."""
    jobs = [*SOLO, "seed=0,1", "rounds=-1,2", *launcher]
    if {"hydra/launcher=basic", "hydra/launcher=joblib"} & set(launcher):
        return Forked(runs, ["-m", *jobs])
    words = [*TINY, *OFTEN, *jobs, f"paths.runs={runs}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "train.py", "-m", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def kill_and_give_again(
    runs: Path,
    launcher: list[str],
    environment: Mapping[str, str] = os.environ,
    idle: Callable[[], bool] = lambda: True,
) -> None:
    """SIGKILL the sweep after its first finished run; once its jobs are gone, the same command does the rest.

    Every run is finished once, with the bits of one that was never interrupted, the failures are listed, and the exit
    code is 1. `idle` tells whether the launcher's queue is empty.
    """
    first = sweep(runs, launcher, environment)
    wait_for(lambda: first.poll() is not None or bool(done(runs)))
    first.kill()
    wait_for(idle)
    wait_until_free(runs)
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)  # joblib's workers would wait five minutes for their dead parent
    first.communicate()
    before = {folder: (folder / "summary.json").stat().st_mtime_ns for folder in done(runs)}
    again = sweep(runs, launcher, environment)
    output, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 1, errors
    output += errors + "".join(path.read_text() for path in runs.glob(".submitit/*/*.out"))
    assert output.count("is finished; resume=false") == len(before) > 0
    assert all((folder / "summary.json").stat().st_mtime_ns == then for folder, then in before.items())
    assert hashes(runs) == uninterrupted(runs / "whole")
    listed = errors[errors.index("2 jobs failed; the same command runs what is missing:") :]
    assert listed.count(f"  {runs}/digits-") == 2 and listed.count("rounds=-1 is out of range") == 2


def done(runs: Path) -> list[Path]:
    """Folders of finished runs."""
    return [path.parent for path in runs.glob("*/summary.json") if finished(path.parent)]


def hashes(runs: Path) -> list[str]:
    """Of the final models."""
    return sorted(json.loads((folder / "summary.json").read_text())["state_sha256"] for folder in done(runs))


def uninterrupted(runs: Path) -> list[str]:
    """What they should be."""
    for seed in (0, 1):
        succeed(runs / str(seed), *SOLO, f"seed={seed}", "rounds=2")
    return sorted(str(fingerprint(runs / str(seed))["state"]) for seed in (0, 1))


def wait_for(condition: Callable[[], bool]) -> None:
    """A hung sweep is an error."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_free(runs: Path) -> None:
    """Until no job that outlived its sweep (joblib's do, for a moment) holds a run folder."""
    for path in runs.glob("*/identity.json"):
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
