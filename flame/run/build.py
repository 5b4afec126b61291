"""From a composed config to the parts of a run: the only caller of `hydra.utils.instantiate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attacks.base import Attack
from flame.data.datasets import normalise, subset
from flame.data.samples import Dataset, LabelledImages, Shards
from flame.defenses.base import Defense
from flame.engine.base import Engine
from flame.engine.laboratory import Laboratory
from flame.engine.memo import Memo
from flame.engine.spill import Spill
from flame.engine.workbench import Task, prepare_process
from flame.federation import Federation
from flame.geometry.layout import SCOPES, StateLayout
from flame.partition.deal import deal
from flame.round.breakdown import Breakdown
from flame.round.cohort import Population, Schedule
from flame.round.device import check_device, check_precision
from flame.round.seeding import generator
from flame.round.server import Server
from flame.round.types import Cohort, ServerState, Updates
from flame.run.config import register
from flame.run.cores import cores, cores_per_job
from flame.run.exams import Exams, exams
from flame.run.fit import check_fit
from flame.run.overrides import explain_unknown_keys, nested, placed
from flame.run.signature import check_signature

CONF = Path(__file__).resolve().parents[2] / "conf"


class ConfigError(CompactHydraException):
    """A wrong setting; the command line prints the message without a traceback and exits with 1."""


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of; the engine has not been started."""

    dataset: Dataset
    task: Task
    population: Population
    attack: Attack
    defense: Defense
    server: Server
    start_engine: Callable[[Task], Engine]
    initial: ServerState
    shadow: Sequence[str]
    evaluate_at: frozenset[int]
    exams: Exams

    def federation(self, engine: Engine) -> Federation:
        """The parts that act in every round, around a started engine."""
        return Federation(
            population=self.population,
            attack=self.attack,
            defense=self.defense,
            server=self.server,
            engine=engine,
            shadow=self.shadow,
            seed=self.task.seed,
            evaluate_at=self.evaluate_at,
            groups=self.exams.groups,
            classes=self.exams.classes,
            lab=partial(Laboratory.of, self.task) if getattr(self.defense, "needs_lab", False) else None,
        )


def build(cfg: DictConfig) -> Parts:
    """Instantiate and check every part, on as many threads as the run has; ConfigError if any setting does not hold."""
    try:
        return _build(cfg)
    except (ValueError, OSError) as error:  # constructors check ranges; data sets check their files
        raise ConfigError(nested(str(error), cast(Mapping[str, Any], OmegaConf.to_container(cfg.attack)))) from error


def _build(cfg: DictConfig) -> Parts:
    _check_run_level(cfg)
    prepare_process(cfg.threads)
    defense, attack, server = make(cfg, "defense"), make(cfg, "attack"), make(cfg, "server")
    population = _population(cfg, attack.hostile)
    attack, dataset = attack.prepare(make(cfg, "dataset"), generator(cfg.seed, "prepare"))
    root_samples = getattr(defense, "root_samples", 0)
    train, shards = dealt(cfg, dataset, root_samples)
    model = initial_model(cfg)
    sgd, augment = make(cfg, "client"), make(cfg, "augment")
    augment.check(*train.x.shape[-2:])
    check_fit(model, dataset, sgd.smallest_batch(shards.sizes[: cfg.clients + (root_samples > 0)]))
    layout = StateLayout.of(model)
    row, counters = layout.zeros(1)
    layout.flatten(model.state_dict(), row[0], counters[0])
    asked = exams(Breakdown(**cfg.evaluate), attack, dataset, train, shards, population)
    task = Task(
        model=model,
        layout=layout,
        train=train,
        shards=shards,
        eval_sets=asked.sets,
        truth=asked.truth,
        normalise=partial(normalise, mean=dataset.mean, std=dataset.std),
        sgd=sgd,
        attack=attack,
        seed=cfg.seed,
        spill=Spill(**cfg.spill),
        device=cfg.device,
        precision=cfg.precision,
        smoothing=getattr(defense, "randomized_smoothing", None),
        augment=augment,
    )
    if cfg.memo.dir is not None and server.statistics == "local":
        raise ValueError(
            f"memo.dir={cfg.memo.dir} keeps what clients make of the global model, and with server.statistics=local"
            " they start from their own statistics: leave one of the two out"
        )
    start = Memo(**cfg.memo).around(make(cfg, "engine", **engine_workers(cfg)))
    initial = server.prepared(ServerState(row[0], counters[0]), layout, cfg.clients)
    check_defense(defense, initial, task)
    shadow, evaluate_at = list(cfg.shadow), evaluated_rounds(cfg)
    return Parts(dataset, task, population, attack, defense, server, start, initial, shadow, evaluate_at, asked)


def _population(cfg: DictConfig, hostile: bool) -> Population:
    """The clients, and when some of them attack."""
    if hostile and cfg.attack_rounds.start >= cfg.rounds:
        raise ValueError(
            f"attack_rounds.start={cfg.attack_rounds.start} is out of range: rounds={cfg.rounds} end before the attack"
            " begins; lower it, raise rounds, or say attack=none"
        )
    return Population(
        clients=cfg.clients,
        per_round=cfg.clients_per_round,
        poisoned_model_rate=cfg.poisoned_model_rate,
        rule=cfg.attackers,
        schedule=Schedule(**cfg.attack_rounds),
        hostile=hostile,
        seed=cfg.seed,
    )


def make(cfg: Mapping[str, Any], group: str, **fixed: Any) -> Any:
    """Instantiate one config group, composed or as a run recorded it; the signature of its target is its schema."""
    node = cfg[group]
    try:
        check_signature(group, node)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        return instantiate(node, _convert_="all", **fixed)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise ConfigError(placed(str(cause), str(error).rpartition("full_key: ")[2])) from error
        raise


def composed(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The config of `python train.py --config-name NAME OVERRIDES`, for tools that look at a run without running it."""
    register()
    explain_unknown_keys(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(in_full(error)) from error


def in_full(error: Exception) -> str:
    """What Hydra's command line prints of an error: OmegaConf's reason stands in its cause."""
    reason = error.__cause__
    return f"{error}\n{reason}" if isinstance(reason, OmegaConfBaseException) else str(error)


def compose_defense(overrides: Sequence[str]) -> Defense:
    """The defense that overrides such as `defense=flame_zhmzm defense.noise.factor=0` describe."""
    try:
        defense: Defense = make(composed(overrides), "defense")
        return defense
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error


def _check_run_level(cfg: DictConfig) -> None:
    for key in ("rounds", "evaluate_every", "report_last", "threads"):
        if cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]} is out of range: must be a whole number >= 1")
    if not -(2**63) <= cfg.seed < 2**63:
        raise ValueError(f"seed={cfg.seed} is out of range: must be a whole number of at most 64 bits")
    for key in ("rounds", "seconds"):
        if not cfg.checkpoint[key] >= 0:  # nan
            raise ValueError(f"checkpoint.{key}={cfg.checkpoint[key]} is out of range: must be >= 0 (0: never)")
    check_device(cfg.device)
    check_precision(cfg.precision)
    if unknown := [scope for scope in cfg.shadow if scope not in SCOPES]:
        raise ValueError(f"shadow={unknown} is unknown: must be a list of {', '.join(SCOPES)}")
    if min(cfg.record.every, *cfg.record.rounds, 0) < 0:
        raise ValueError(f"record={cfg.record} is out of range: rounds count from 0, every is 0 (never) or more")
    if late := [number for number in cfg.record.rounds if number >= cfg.rounds]:
        raise ValueError(f"record.rounds={late} is out of range: the last of rounds={cfg.rounds} is {cfg.rounds - 1}")


def evaluated_rounds(cfg: DictConfig) -> frozenset[int]:
    """Every `evaluate_every`-th round, and all that summary.json is the mean of."""
    regular = range(cfg.evaluate_every - 1, cfg.rounds, cfg.evaluate_every)
    return frozenset(regular) | frozenset(range(max(0, cfg.rounds - cfg.report_last), cfg.rounds))


def dealt(cfg: Mapping[str, Any], dataset: Dataset, root_samples: int) -> tuple[LabelledImages, Shards]:
    """The training images of a run and who holds them; `cfg` composed, or as the run recorded it."""
    train = subset(dataset.train, cfg["train_samples"], generator(cfg["seed"], "subset"))
    return train, deal(train, make(cfg, "partition"), cfg["clients"], root_samples, cfg["seed"])


def initial_model(cfg: DictConfig) -> torch.nn.Module:
    """The model at its initialisation for this seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(cfg.seed, "init").initial_seed())
        model: torch.nn.Module = make(cfg, "model")
    return model


def check_defense(defense: Defense, state: ServerState, task: Task) -> None:
    """ValueError unless the defense can read this model's updates: tried on one client that sends nothing."""
    rows, _ = task.layout.zeros(1)
    first, one, none = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), torch.zeros(1).double()
    silent = Updates(task.layout, state.row, state.counters, first, rows, state.counters[None], one, none, root=rows[0])
    if getattr(defense, "needs_lab", False):
        silent = replace(silent, lab=Laboratory.of(task, state, Cohort(first, torch.tensor([False]))))
    defense(state, silent, generator(0, "check"))


def engine_workers(cfg: DictConfig) -> dict[str, int]:
    """`engine.workers=auto` as a number: the cores of this job."""
    if (wanted := cfg.engine.get("workers", 1)) != "auto":
        if not isinstance(wanted, int) or wanted < 1:
            raise ValueError(f"engine.workers={wanted} is out of range: must be auto or a whole number >= 1")
        return {}
    sweeps = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return {"workers": cores_per_job(HydraConfig.get().launcher if sweeps else {}, cores())}
