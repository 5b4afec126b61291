"""One run from config to summary: load, loop, checkpoint, record."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flame.engine.base import Engine, WorkerError
from flame.federation import Federation, rounds
from flame.round.checkpoint import RunFolderError, latest_checkpoint, write_atomically, write_checkpoint
from flame.round.code import LENGTH, code, targets
from flame.round.cohort import Population
from flame.round.types import ServerState, digest
from flame.run.again import ORIGINAL
from flame.run.build import ConfigError, Parts, build, make
from flame.run.clean import begun
from flame.run.config import identity
from flame.run.cores import engine_workers
from flame.run.engines import own_bits
from flame.run.figure import FIGURE, draw_run
from flame.run.folder import CHECKPOINTS, claimed, explain, finished
from flame.run.progress import Progress, headline
from flame.run.provenance import SAME_BITS, environment, going_on, initial_digest, repetition
from flame.run.recording import Recorder
from flame.run.revisit import checked, recorded, revisit, show, skip
from flame.run.stop import Stop, stop_on_signals
from flame.run.sweep import SWEEP
from flame.run.trackers.base import RunInfo, Tracker, dispensable
from flame.run.trackers.files import CHOICES, CONFIG, ENVIRONMENT, SUMMARY, RunFiles, write_json
from flame.run.weights import MODEL, export

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Run, resume or skip what `cfg` describes; the run folder is Hydra's output directory."""
    if cfg.resume not in (True, False, "force"):
        raise ConfigError(f"resume={cfg.resume} is unknown: must be true, false or force")
    info = describe(cfg)
    with stop_on_signals() as stop, in_words(info.folder), claimed(info.folder, info.identity):
        if finished(info.folder):
            tracker = checked(cfg)
            skip(info)
            revisit(info.folder)
            show(tracker, info)
        else:
            execute(cfg, info, stop)
            if (original := os.environ.get(ORIGINAL)) and (said := repetition(Path(original), info.folder)):
                log.info("%s", said)


def execute(cfg: DictConfig, info: RunInfo, stop: Stop) -> None:
    """All of a run, or what is left of it."""
    parts = build(cfg)
    tracker: Tracker = make(cfg, "tracker")
    checkpoint = latest_checkpoint(info.folder / CHECKPOINTS, parts.task.layout, info.identity)
    if why := unattacked(parts.population, cfg):
        log.warning("%s: this is a run without an attack", why)
    origin = {"code": info.code, "data": parts.data[:LENGTH], "initial": initial_digest(parts.initial)}
    if checkpoint:
        origin = going_on(info.folder, recorded(info.folder), origin, cfg.resume)
    info = replace(info, code=origin["code"])
    state = checkpoint or begun(cfg, parts, partial(loop, stop=stop))
    with started(parts) as engine:  # before anything is written: it may refuse
        files = RunFiles(info.folder, state.round, parts.task.shards.names)
        record_start(cfg, info, {**origin, "start": started_from(info.folder, state)}, state.round)
        with opened(tracker, info, state.round):
            last = loop(cfg, info, parts.federation(engine), state, files, tracker, stop)
            summary = files.summary(
                cfg.report_last, digest(last), {"identity": info.identity, "code": info.code, **info.choices}
            )
            with dispensable(MODEL):  # before the view's end, which may show it
                export(info.folder)
            conclude(info.folder, summary, tracker)
    if said := parts.population.unattacked(cfg.rounds, last.memory, files.best("eval/ma")):
        log.warning("%s", said)
    log.info("mean of the last %d rounds: %s", summary["mean_of_last"], headline(summary["metrics"]))
    log.info("record: %s", info.folder)


def unattacked(population: Population, cfg: DictConfig) -> str | None:
    """Why nobody attacks in any round, if so, although there is to be an attack."""
    if population.hostile and not population.colluders:
        return f"poisoned_model_rate={cfg.poisoned_model_rate} leaves the attack without an attacker"
    if population.hostile and not population.attacked(cfg.rounds):
        return f"attackers={cfg.attackers} draws no attacker in any round"
    return None


def record_start(cfg: DictConfig, info: RunInfo, origin: Mapping[str, str], first_round: int) -> None:
    """What is known of a run before its first round, on disk."""
    workers = engine_workers(cfg).get("workers", cfg.engine.get("workers", 1))
    now = {**origin, **environment(cfg.threads, workers, cfg.device, targets(info.config), own_bits(cfg.engine))}
    record_environment(info.folder, now, resumed=first_round > 0)
    write_atomically(info.folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(info.config))).encode())
    write_json(info.folder / CHOICES, info.choices)
    if first_round:
        log.info("resumed: %d of %d rounds were done", first_round, cfg.rounds)


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
            log.info("stopped: %d of %d rounds are done; the same command goes on from there", state.round, cfg.rounds)
            raise
        finally:
            if state.round > saved:
                files.sync()
                write_checkpoint(folder, state, info.identity)
    return state


def conclude(folder: Path, summary: Mapping[str, Any], tracker: Tracker) -> None:
    """The summary, which says that the run is finished; then what is made of the record, and may fail."""
    write_json(folder / SUMMARY, summary)
    with dispensable(FIGURE):
        draw_run(folder)
    with dispensable("the end of the tracker's view"):
        tracker.finish(summary)


@contextmanager
def started(parts: Parts) -> Iterator[Engine]:
    """The engine, closed whatever happens."""
    engine = parts.start_engine(parts.task)
    try:
        yield engine
    finally:
        with dispensable("closing the engine"):
            engine.close()


def describe(cfg: DictConfig) -> RunInfo:
    """Who this run is."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    filled = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(filled, dict)
    config = {str(k): v for k, v in filled.items()}
    config["recipe"] = None  # what is made of many runs; long, and nothing of this one
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    sweep = os.environ.get(SWEEP, folder.name)
    runs = code({group: node for group, node in config.items() if group != "tracker"})
    return RunInfo(folder.name, folder, identity(cfg), config, choices, sweep, runs)


def record_environment(folder: Path, now: Mapping[str, Any], resumed: bool) -> None:
    """environment.json; a warning when a run goes on under other software, which may give other bits."""
    before = (recorded(folder) if resumed else {}) or now
    if changed := sorted(key for key in now.keys() - {*SAME_BITS} if before.get(key) != now[key]):
        log.warning("since the run was interrupted, %s changed: the bits may not be those of one run", changed)
    write_json(folder / ENVIRONMENT, now)


def started_from(folder: Path, state: ServerState) -> str:
    """Hash of the model that round 0 starts from: the one at hand, or as the record of a run that goes on has it."""
    return digest(state)[:LENGTH] if state.round == 0 else str(recorded(folder).get("start", "?"))


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
        with dispensable("closing the tracker's view"):
            tracker.close(exit_code)
