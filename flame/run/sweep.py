"""What Hydra calls around jobs: a folder that cannot be written is refused in words before anything else happens, and a
sweep outlives its failing jobs: each failure is noted when it happens, all are listed at the end, exit code 1. After
each job a line says how far the sweep is and when it will be done.

Works under every launcher that ships Hydra's callbacks to the jobs (basic, joblib, submitit): the jobs' processes share
nothing but a file in the sweep's folder.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from flame.run.config import register
from flame.run.console import keep_going
from flame.run.cores import batch_size, cores
from flame.run.text import duration

log = logging.getLogger(__name__)
ROOT = str(Path(__file__).resolve().parents[2])  # found by jobs that a launcher starts without train.py, anywhere
SWEEP = "FLAME_SWEEP"  # environment variable: the sweep that a job belongs to


class SweepReport(Callback):
    """Hydra's hooks before a sweep, after each of its jobs and after the sweep."""

    def __init__(self) -> None:
        self._ledger: Path | None = None  # one JSON line per job that has ended; travels to the jobs with this object
        self._jobs = 0  # of the sweep
        self._began = 0.0  # time.time() at its start
        self._found: set[str] | None = None  # what was in a single run's folder before, if there was one

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the process of a job, which submitit starts without train.py."""
        keep_going()
        register()
        self.__dict__.update(state)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Before a single run, for which Hydra makes a folder."""
        folder = Path(config.hydra.run.dir)
        self._found = {path.name for path in folder.iterdir()} if folder.is_dir() else None
        must_be_writable(folder)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Name the sweep, for its jobs to inherit, choose a file that no other sweep uses, and bound the batches."""
        must_be_writable(Path(config.hydra.sweep.dir))
        folder, name = Path(config.hydra.sweep.dir).absolute(), f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
        os.environ[SWEEP], before = f"sweep-{name}", os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([ROOT, *filter(None, before.split(os.pathsep))]))
        self._ledger = folder / f".sweep-{name}.jsonl"
        try:
            self._jobs, self._began = len(jobs(config, config.hydra.overrides.task)), time.time()
        except CompactHydraException as error:  # Hydra would make a warning of it and go on
            sys.exit(str(error))
        sweeper = config.hydra.sweeper
        if "max_batch_size" in sweeper and sweeper.max_batch_size is None:  # Hydra's own, and not set by the user
            with read_write(config):
                sweeper.max_batch_size = batch_size(config.hydra.launcher, cores())

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note how the job ended, and call it completed: Hydra would raise its error and not launch the next batch."""
        folder = Path(config.hydra.runtime.output_dir)
        if self._ledger is None:
            if job_return.status == JobStatus.FAILED and folder.is_dir():
                clear(folder, self._found, isinstance(job_return._return_value, CompactHydraException))
            return
        note: dict[str, Any] = {"folder": str(folder), "words": list(config.hydra.overrides.task)}
        note |= {"error": None, "ran": not older(folder, self._began)}
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            in_words = isinstance(error, CompactHydraException)
            log.error("%s", error if in_words else "".join(traceback.format_exception(error)))
            note |= {"error": f"{type(error).__name__}: {error}".split("\n")[0], "ran": False}
        with open(self._ledger, "a") as file:
            file.write(f"\n{json.dumps(note)}\n")  # a line of its own, even if a full disk has cut the one before
        if note["error"]:  # only now: a failure that could not be noted stays one, and Hydra tells it
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        log.info("%s", standing(read_ledger(self._ledger), self._jobs, time.time() - self._began))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """List the failures and exit with 1; silent if there are none."""
        if self._ledger is None or not self._ledger.exists():
            return
        failures = [note for note in read_ledger(self._ledger) if note["error"]]
        self._ledger.unlink()
        if not failures:
            return
        lines = [f"  {failure['folder']}: {failure['error']}" for failure in failures]
        number = "1 job" if len(failures) == 1 else f"{len(failures)} jobs"
        print("\n".join([f"{number} failed; the same command runs what is missing:", *lines]), file=sys.stderr)
        sys.exit(1)


def jobs(config: DictConfig, words: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, in order: the recipe's `hydra.sweeper.params`, then the command line's.

    Raises:
        CompactHydraException: one of them, a pattern, matches nothing, so that there is no job.
    """
    swept = [f"{key}={values}" for key, values in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = parsed([*swept, *words])
    for word in overrides:
        if word.is_sweep_override() and not any(True for _ in word.sweep_string_iterator()):
            raise CompactHydraException(f"{word.input_line} matches no option: see `ls conf/{word.key_or_group}`")
    return list(chain.from_iterable(BasicSweeper.split_arguments(overrides, None)))


def parsed(words: Sequence[str]) -> list[Override]:
    """The overrides of a command line; `glob(...)` asks Hydra, where it has started, what options there are."""
    hydra = GlobalHydra.instance()
    return OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None).parse_overrides([*words])


def standing(notes: Sequence[Mapping[str, Any]], jobs: int, seconds: float) -> str:
    """How far a sweep is after `seconds`. What is left is forecast from the jobs that ran from start to end.

    Jobs that ran at once count as many, so that this holds for every launcher; those that had been finished before are
    skipped in no time, and come first when a command is given again.
    """
    text = f"sweep: {len(notes)} of {jobs} runs, {duration(seconds)} elapsed"
    ran = sum(note["ran"] for note in notes)
    return f"{text}, about {duration(seconds / ran * (jobs - len(notes)))} left" if ran else text


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """A note for each job that has ended; one that was cut off counts as a failure."""
    return [noted(line) for line in path.read_text().splitlines() if line]


def noted(line: str) -> dict[str, Any]:
    """The note in a line."""
    try:
        note: dict[str, Any] = json.loads(line)
    except ValueError:
        note = {"folder": "?", "words": [], "error": "how it ended is not known, its note was cut off", "ran": False}
    return note


def older(folder: Path, moment: float) -> bool:
    """Whether the run was finished before `moment`, in seconds since the epoch."""
    from flame.run.trackers.files import SUMMARY  # brings torch, as the job that has ended did

    path = folder / SUMMARY
    return path.exists() and path.stat().st_mtime < moment


def clear(folder: Path, before: Set[str] | None, in_words: bool) -> None:
    """Remove what a single run left that wrote nothing but, maybe, its log: nothing of `before`, what was there.

    The log of a run that was not refused `in_words` stays; a sweep's jobs keep theirs, which say why they failed.
    """
    from flame.run.folder import LOG  # as in `older`

    if in_words and {path.name for path in folder.iterdir()} - (before or set()) == {LOG}:
        (folder / LOG).unlink()
    if before is None and not any(folder.iterdir()):
        folder.rmdir()


def must_be_writable(folder: Path) -> None:
    """Exit with a sentence unless files can be made there; Hydra would end with a traceback."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        sys.exit(f"{folder} cannot be written ({error.strerror}): set paths.runs, or FLAME_RUNS, to a folder of yours")
