"""The rounds of `start=trained`: clean averaging before the run's first round, computed once for all runs that need it.

They lie in `<paths.runs>/.starts/<identity>/`, recorded and sealed as a run is. The identity is a hash of exactly what
they follow from: the training images and who holds them, the initial weights, the client's recipe, the cohorts' size,
the number of rounds, threads, device, precision, software and code. Attack, defense, server, PMR, rounds, tracker and
engine are not in it, so a sweep over those shares a start. The first job that needs one computes it, others wait.

Nobody attacks yet and nothing is filtered: a cohort is drawn from all clients (`attackers=random`, whatever the run
has), the aggregate is the mean (`defense=fedavg server=plain`). The data are the run's own once the attack has taken
away its images (semantic, edge_case): runs with such an attack have a start of their own. A defense's `root_samples`
stay with the clients here, so that all defenses go on from one model. The client's rate is the full one throughout: its
schedule belongs to the run's own rounds, and begins with them.

Randomness: all streams of these rounds have a seed of their own, drawn at the address (seed, "start"). Partition and
initial weights are the run's. Memory is not carried over: server, defense and attack start with none.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig

from attacks.base import Attack
from flame.defenses.fedavg import FedAvg
from flame.engine.base import Engine
from flame.engine.memo import key
from flame.engine.workbench import Task
from flame.federation import Federation
from flame.round.checkpoint import RunFolderError, latest_checkpoint
from flame.round.cohort import Population, Schedule
from flame.round.rates import Constant
from flame.round.seeding import generator
from flame.round.server import Server
from flame.round.types import ServerState, digest
from flame.run.build import Parts, benign_code, dealt, make
from flame.run.cores import engine_workers
from flame.run.engines import own_bits
from flame.run.folder import CHECKPOINTS, waited
from flame.run.progress import headline
from flame.run.trackers.base import NoView, RunInfo, Tracker
from flame.run.trackers.files import METRICS, RunFiles, read_metrics

STORE = ".starts"  # under paths.runs
EVALUATED = 10  # MA is logged every so many rounds, and after the last
Finish = Callable[[DictConfig, RunInfo, Federation, ServerState, RunFiles, Tracker], ServerState]
log = logging.getLogger(__name__)


def begun(cfg: DictConfig, parts: Parts, finish: Finish) -> ServerState:
    """The state that the run's first round starts from; `finish` plays what is left of a federation's rounds.

    Raises:
        RunFolderError, OSError: the start on disk is damaged, or cannot be written.
    """
    if not parts.start.rounds:
        return parts.initial
    start = Clean(cfg, parts)
    start.folder.mkdir(parents=True, exist_ok=True)
    with waited(start.folder):
        try:
            state = start.finished(finish)
            played = read_metrics(start.folder)
            if len(played) < state.round:
                raise RunFolderError(f"{start.folder / METRICS} lacks rounds")
        except RunFolderError as error:  # what helps a run's own folder does not help: it is the same in a new run
            wrong = f"the start in {start.folder} is damaged: {error.args[0]}"
            raise RunFolderError(wrong, "delete that folder, and its rounds are played anew") from error
    ma = headline(played[state.round - 1]).split("  BA")[0]
    log.info("start: %d clean rounds in %s, %s", state.round, start.folder, ma)
    return parts.server.prepared(replace(state, round=0, memory={}), parts.task.layout, cfg.clients)


@dataclass(frozen=True)
class Clean:
    """The federation before the attack."""

    cfg: DictConfig
    parts: Parts

    @cached_property
    def task(self) -> Task:
        """The run's, without its attack and defense, and with streams of its own."""
        task, rooted = self.parts.task, getattr(self.parts.defense, "root_samples", 0)
        return replace(
            task,
            shards=dealt(self.cfg, self.parts.dataset, 0)[1] if rooted else task.shards,
            eval_sets={"clean": self.parts.dataset.test},  # judged plainly, as whoever shares it would have it
            truth={},
            attack=Attack(),
            training=replace(task.training, schedule=Constant(warmup=0, rounds=self.parts.start.rounds)),
            seed=generator(self.cfg.seed, "start").initial_seed(),
            smoothing=None,
        )

    @cached_property
    def identity(self) -> str:
        """Hash of all that the last of these rounds follows from."""
        cfg, first = self.cfg, digest(self.parts.initial)
        facts = (
            key(self.task, benign_code(cfg)),
            first,
            self.parts.start.rounds,
            cfg.clients,
            cfg.clients_per_round,
            cfg.threads,
            *filter(None, [own_bits(cfg.engine)]),
        )
        return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return Path(self.cfg.paths.runs).expanduser() / STORE / self.identity

    def federation(self, engine: Engine) -> Federation:
        """Clean averaging."""
        cfg, seed, rounds = self.cfg, self.task.seed, self.parts.start.rounds
        never = Schedule(start=0, stop=0, every=1)
        return Federation(
            population=Population(cfg.clients, cfg.clients_per_round, 0.0, "random", never, hostile=False, seed=seed),
            attack=self.task.attack,
            defense=FedAvg(weights="uniform"),
            server=Server(rule=None, lr=1.0, statistics="mean"),
            engine=engine,
            shadow=(),
            seed=seed,
            evaluate_at={rounds - 1, *range(EVALUATED - 1, rounds, EVALUATED)},
        )

    def finished(self, finish: Finish) -> ServerState:
        """The state after the last round; what is not on disk yet is played."""
        rounds, first = self.parts.start.rounds, self.parts.initial
        found = latest_checkpoint(self.folder / CHECKPOINTS, self.task.layout, self.identity)
        state = found or replace(first, memory={})
        if state.round == rounds:
            return state
        log.info("start: %d of %d clean rounds to play, in %s", rounds - state.round, rounds, self.folder)
        cfg = self.cfg.copy()
        cfg.rounds, cfg.record.rounds, cfg.record.every = rounds, [], 0
        info = RunInfo(self.identity, self.folder, self.identity, {}, {}, self.identity)
        with closing(make(cfg, "engine", **engine_workers(cfg))(self.task)) as engine:
            return finish(cfg, info, self.federation(engine), state, RunFiles(self.folder, state.round), NoView())
