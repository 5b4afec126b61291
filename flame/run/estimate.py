"""`python train.py ... --estimate`: what the same command without the flag would cost on this machine.

Jobs are composed as the sweep would, and those that are finished are left out. The others fall into kinds, by all swept
values but seed, partition and defense, which hardly change the time of a round; defenses that try models (deepsight,
flshield, flare), train one (snowball, indicator) or answer by a vote (crfl) do, and want an estimate of their own. One
job of each kind is built and plays a few rounds; nothing is written.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter

import torch
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flame.engine import start_fork_server
from flame.federation import play
from flame.round.cohort import BEGAN
from flame.run.arguments import conf_of, parser
from flame.run.build import build, evaluated_rounds
from flame.run.compose import PROJECT, Conf, ConfigError, composed_here, sentence, started
from flame.run.config import fingerprint, plain
from flame.run.cores import cores, cores_per_job, jobs_at_once
from flame.run.experiment import in_words
from flame.run.folder import finished
from flame.run.sweep import jobs, parsed
from flame.run.text import aligned, duration

BUDGET = 45.0  # seconds after which no further kind is measured
ROUNDS = 2  # timed of each kind, after the first
BEHIND = (  # what clean rounds do not follow from: they come before
    *("attack", "defense", "server", "rounds", "attack_rounds", "poisoned_model_rate", "attackers", "shadow"),
    *("evaluate_every", "report_last"),
)
ALIKE = ("seed", "partition", "defense")  # swept keys that do not make a kind


@dataclass(frozen=True)
class Job:
    """One run of the command."""

    kind: str
    cfg: DictConfig  # with its `hydra` node, and some seed
    finished: bool


@dataclass(frozen=True)
class Cost:
    """Seconds, as measured."""

    start: float  # data, model, workers and the first round
    round: float  # each further one, without evaluation
    evaluation: float

    def run(self, cfg: DictConfig) -> float:
        """All of a run."""
        evaluations = len(evaluated_rounds(cfg)) if cfg.attack_rounds.after_ma is None else cfg.rounds  # at most
        return self.start + (cfg.rounds - 1) * self.round + evaluations * self.evaluation


def estimate(arguments: Sequence[str]) -> int:
    """Print the estimate for a command line of train.py; the exit code: 1 if it is wrong."""
    given = parser().parse_args(arguments)
    try:
        with in_words(Path()):
            found = list(planned(given.config_name or "config", given.overrides, given.multirun, conf_of(given)))
            waiting = [job for job in found if not job.finished]
            if found[0].cfg.engine._target_.endswith(".Pool"):
                start_fork_server()
            print(told(found, measured(waiting)))
    except (HydraException, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def planned(name: str, words: Sequence[str], multirun: bool, conf: Conf = PROJECT) -> Iterator[Job]:
    """The jobs of a command, in order; those that only the seed divides are composed once and share a config."""

    @cache
    def composed(*words: str) -> DictConfig:
        return composed_here(loader, words, name, hydra=True)

    with started(conf) as loader:
        whole = composed(*(word.input_line for word in parsed(words) if not word.is_sweep_override()))
        sweeps = multirun or whole.hydra.mode == RunMode.MULTIRUN
        workers = cores_per_job(whole.hydra.launcher if sweeps else {}, cores())
        if not sweeps:
            composed(*words)  # a list of seeds without -m is refused in Hydra's words
        each = jobs(whole, words) if sweeps else [list(words)]
        common = set(each[0]).intersection(*each)
        for job in each:
            cfg = composed(*(word for word in job if not word.startswith("seed=")))
            for seed in parsed([word for word in job if word.startswith("seed=")]):
                try:
                    cfg.seed = seed.value()
                except OmegaConfBaseException as error:
                    raise ConfigError(sentence(error, job, loader)) from error
            cfg.memo.dir = None  # what is measured is trained, and nothing is written
            if cfg.engine.get("workers") == "auto":
                cfg.engine.workers = workers
            kind = " ".join(word for word in job if word not in common and not word.startswith(ALIKE))
            yield Job(kind or "all", cfg, finished(Path(cfg.hydra.run.dir)))


def measured(waiting: Sequence[Job]) -> dict[str, Cost]:
    """Kind -> cost, the most frequent kinds first, as far as BUDGET reaches; at least one."""
    began = perf_counter()
    costs: dict[str, Cost] = {}
    for kind, _ in Counter(job.kind for job in waiting).most_common():
        if not costs or perf_counter() - began < BUDGET:
            costs[kind] = measure(next(job.cfg for job in waiting if job.kind == kind))
    return costs


def measure(cfg: DictConfig) -> Cost:
    """Build a run and play its first rounds, under attack if it ever is, and one evaluation."""
    times = [perf_counter()]
    parts = build(cfg)
    with closing(parts.start_engine(parts.task)) as engine:
        fed = replace(parts.federation(engine), evaluate_at=())
        memory = {**parts.initial.memory, BEGAN: torch.tensor(0)}
        state = replace(parts.initial, round=cfg.attack_rounds.start, memory=memory)
        for _ in range(1 + ROUNDS):
            state = play(fed, state).after
            times.append(perf_counter())
        engine.evaluate(state)
        times.append(perf_counter())
    return Cost(times[1] - times[0], (times[-2] - times[1]) / ROUNDS, times[-1] - times[-2])


def told(found: Sequence[Job], costs: Mapping[str, Cost]) -> str:
    """The estimate in words and a table."""
    cfg, waiting = found[0].cfg, [job for job in found if not job.finished]
    rounds = sum(job.cfg.rounds for job in waiting)
    head = (
        f"{len(found)} runs, {len(found) - len(waiting)} of them finished in {cfg.paths.runs}; {rounds:,} rounds to go"
    )
    if not waiting:
        return head
    known = [costs[job.kind].run(job.cfg) for job in waiting if job.kind in costs]
    at_once = jobs_at_once(cfg.hydra.launcher, cores())
    before = clean_rounds(waiting)
    seconds = sum(before) * sum(cost.round for cost in costs.values()) / len(costs) / max(1, min(at_once, len(before)))
    left = sum(known) / len(known) * len(waiting) / at_once + seconds
    workers = cfg.engine.get("workers", 1)
    others = f"; {len(waiting) - len(known)} runs of kinds that were not measured, as the others"
    first = f"{sum(before):,} clean rounds are played once, about {duration(seconds)}; those on disk are not.\n"
    return f"""{head}

{table(waiting, costs)}

Measured just now, engine.workers={workers}: the start with the first round, {ROUNDS} more, one evaluation.
Seeds, partitions and defenses are taken to cost the same{others if len(known) < len(waiting) else ""}.
{first if before else ""}About {duration(left)} left, {at_once} at a time."""


def clean_rounds(waiting: Sequence[Job]) -> list[int]:
    """Those of `start=trained`, of each start that jobs share; an attack that takes images away shares none, unseen."""
    seeds = Counter(id(job.cfg) for job in waiting)  # jobs that only the seed divides share a config
    starts: dict[str, list[int]] = {}
    for cfg in (job.cfg for job in waiting if "rounds" in job.cfg.start):
        kept = {key: value for key, value in plain(cfg, resolve=False).items() if key not in BEHIND}
        starts[fingerprint(kept)] = max(starts.get(fingerprint(kept), []), [cfg.start.rounds] * seeds[id(cfg)])
    return [rounds for each in starts.values() for rounds in each]


def table(waiting: Sequence[Job], costs: Mapping[str, Cost]) -> str:
    """A row for each measured kind."""
    rows = [["kind", "runs to go", "start s", "round s", "evaluation s", "a run"]]
    for kind, cost in costs.items():
        of = [job.cfg for job in waiting if job.kind == kind]
        seconds = (f"{value:.2f}" for value in (cost.start, cost.round, cost.evaluation))
        rows.append([kind, str(len(of)), *seconds, duration(sum(map(cost.run, of)) / len(of))])
    return aligned(rows, 1)
