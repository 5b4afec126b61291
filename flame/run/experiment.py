"""One run from config to summary: load, loop, checkpoint, record."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flame.engine.base import WorkerError
from flame.federation import Federation, rounds
from flame.round.checkpoint import RunFolderError, latest_checkpoint, write_atomically, write_checkpoint
from flame.round.types import ServerState, digest
from flame.run.build import ConfigError, build, check_incidental, check_part, engine_workers, make
from flame.run.config import identity
from flame.run.figure import draw_run
from flame.run.folder import CHECKPOINTS, claimed, explain, finished, read_json
from flame.run.progress import Progress, headline
from flame.run.recording import Recorder
from flame.run.sweep import SWEEP
from flame.run.trackers.base import RunInfo, Tracker
from flame.run.trackers.files import CHOICES, CONFIG, ENVIRONMENT, SUMMARY, RunFiles, environment, write_json

STOPPING = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Run, resume or skip what `cfg` describes; the run folder is Hydra's output directory."""
    info = describe(cfg)
    with stop_on_signals() as stop, in_words(info.folder), claimed(info.folder, info.identity):
        if finished(info.folder):
            checked(cfg)
            log.info("%s is finished; resume=false runs it again in a new folder", info.folder)
        else:
            execute(cfg, info, stop)


def checked(cfg: DictConfig) -> None:
    """ConfigError unless the settings hold that may differ from those of the finished run; the others are its own."""
    try:
        check_incidental(cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for group in ("engine", "tracker"):
        check_part(cfg, group)


def execute(cfg: DictConfig, info: RunInfo, stop: Stop) -> None:
    """All of a run, or what is left of it."""
    parts = build(cfg)
    tracker: Tracker = make(cfg, "tracker")
    checkpoint = latest_checkpoint(info.folder / CHECKPOINTS, parts.task.layout, info.identity)
    state = checkpoint or parts.initial
    with closing(parts.start_engine(parts.task)) as engine:  # before anything is written: it may refuse
        files = record_start(cfg, info, state.round)
        with opened(tracker, info, state.round):
            last = loop(cfg, info, parts.federation(engine), state, files, tracker, stop)
            summary = files.summary(cfg.report_last, digest(last), {"identity": info.identity, **info.choices})
            conclude(info.folder, summary, tracker)
    log.info("mean of the last %d rounds: %s", summary["mean_of_last"], headline(summary["metrics"]))
    log.info("record: %s", info.folder)


def record_start(cfg: DictConfig, info: RunInfo, first_round: int) -> RunFiles:
    """What is known of a run before its first round, on disk; the files for the rest."""
    files = RunFiles(info.folder, first_round)
    workers = engine_workers(cfg).get("workers", cfg.engine.get("workers", 1))
    record_environment(info.folder, environment(cfg.threads, workers, cfg.device), resumed=first_round > 0)
    write_atomically(info.folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(info.config))).encode())
    write_json(info.folder / CHOICES, info.choices)
    if first_round:
        log.info("resumed after round %d of %d", first_round, cfg.rounds)
    return files


def loop(
    cfg: DictConfig, info: RunInfo, fed: Federation, state: ServerState, files: RunFiles, tracker: Tracker, stop: Stop
) -> ServerState:
    """All rounds that are left; whatever ends them, the last whole round is on disk afterwards."""
    folder, saved, saved_at = info.folder / CHECKPOINTS, state.round, time.monotonic()
    recorder = Recorder(info.folder, list(cfg.record.rounds), cfg.record.every, cfg.seed)
    with Progress(cfg.rounds, state.round) as progress:
        try:
            for record in rounds(fed, state, cfg.rounds):
                with stop.later():  # a round is recorded everywhere or nowhere
                    recorder.log(record)
                    files.log(record)
                    state = record.after
                    tracker.log(record)
                    progress.show(record)
                if due(cfg.checkpoint, state.round - saved, time.monotonic() - saved_at):
                    files.sync()
                    write_checkpoint(folder, state, info.identity)
                    saved, saved_at = state.round, time.monotonic()
        except SystemExit:
            log.info("stopped after round %d of %d; the same command goes on from there", state.round, cfg.rounds)
            raise
        finally:
            if state.round > saved:
                files.sync()
                write_checkpoint(folder, state, info.identity)
    return state


def conclude(folder: Path, summary: Mapping[str, Any], tracker: Tracker) -> None:
    """Figure, view and summary: the last says that the run is finished, so none of them can get lost."""
    draw_run(folder, summary)
    tracker.finish(summary)
    write_json(folder / SUMMARY, summary)


def describe(cfg: DictConfig) -> RunInfo:
    """Who this run is."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    config["recipe"] = None  # what is made of many runs; long, and nothing of this one
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    sweep = os.environ.get(SWEEP, folder.name)
    return RunInfo(folder.name, folder, identity(cfg), {str(k): v for k, v in config.items()}, choices, sweep)


def record_environment(folder: Path, now: Mapping[str, Any], resumed: bool) -> None:
    """environment.json; a warning when a run goes on under other software, which may give other bits."""
    path = folder / ENVIRONMENT
    before = read_json(path) if resumed and path.exists() else now
    matter = now.keys() - {"engine_workers"}  # the bits are the same with any number of workers
    if changed := sorted(key for key in matter if before.get(key) != now[key]):
        log.warning("since the run was interrupted, %s changed: the bits may not be those of one run", changed)
    write_json(path, now)


@contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """Errors that the user can mend end the run with a sentence instead of a traceback."""
    try:
        yield
    except (RunFolderError, WorkerError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        if (sentence := explain(error, folder)) is None:
            raise
        raise ConfigError(sentence) from error


def due(every: DictConfig, rounds_since: int, seconds_since: float) -> bool:
    """Whether it is time for a checkpoint; 0 switches a criterion off."""
    return (every.rounds and rounds_since >= every.rounds) or (every.seconds and seconds_since >= every.seconds)


@contextmanager
def opened(tracker: Tracker, info: RunInfo, first_round: int) -> Iterator[None]:
    """A tracker, started and closed whatever happens."""
    tracker.start(info, first_round)
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        tracker.close(exit_code)


class Stop:
    """What the first SIGTERM or SIGINT does: it ends the run with 128 + signal, but not amid what must be whole."""

    def __init__(self) -> None:
        self._holding, self._asked = False, 0

    def __call__(self, number: int, frame: object) -> None:
        """The handler."""
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not tear the checkpoint of the first
        self._asked = number
        if not self._holding:
            raise SystemExit(128 + number)

    @contextmanager
    def later(self) -> Iterator[None]:
        """A signal that arrives in here waits for the end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            raise SystemExit(128 + self._asked)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT end the run in order: after a checkpoint, and with the trackers closed."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread
        return
    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
