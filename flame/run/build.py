"""From a composed config to the parts of a run: the only caller of `hydra.utils.instantiate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attacks.base import Attack
from flame.data.check import checked
from flame.data.datasets import subset
from flame.data.reading import noise, reader
from flame.data.samples import Dataset, Samples, Shards
from flame.defenses.base import Defense
from flame.engine.base import Engine
from flame.engine.exams import Exams
from flame.engine.laboratory import Laboratory
from flame.engine.memo import Memo
from flame.engine.spill import Spill
from flame.engine.workbench import Task, prepare_process
from flame.federation import Federation
from flame.geometry.layout import SCOPES, StateLayout
from flame.partition.deal import deal
from flame.round.code import code, short
from flame.round.cohort import EvaluatedRounds, Population, Schedule
from flame.round.device import check_device, check_precision
from flame.round.seeding import addressed, generator
from flame.round.server import Server
from flame.round.types import ServerState
from flame.run.base import Start
from flame.run.compose import PROJECT, Conf, ConfigError, composed
from flame.run.config import filled, plain_node
from flame.run.cores import engine_workers
from flame.run.engines import check_engine
from flame.run.fit import check_defense, check_fit, check_memo, check_repeatable, fitting, judged_by, prepared
from flame.run.overrides import nested, placed
from flame.run.signature import check_signature, type_error
from flame.run.trial import check_module

BENIGN = ("model", "client", "augment")  # groups whose parts train benign clients, on what the others have made


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of; the engine has not been started."""

    dataset: Dataset  # without what the attack took for itself
    data: str  # digest of the whole
    task: Task
    population: Population
    attack: Attack
    defense: Defense
    server: Server
    start: Start
    start_engine: Callable[[Task], Engine]
    initial: ServerState  # before the clean rounds of a start that has some
    shadow: Sequence[str]
    evaluate_at: EvaluatedRounds
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
            exams=self.exams,
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
    training = make(cfg, "client")  # before the attack, whose own recipe inherits what is wrong there
    defense, attack, server = make(cfg, "defense"), make(cfg, "attack"), make(cfg, "server")
    population, given = _population(cfg, attack), load(cfg)
    attack, dataset = prepared(attack, given, generator(cfg.seed, "prepare"))
    root_samples = getattr(defense, "root_samples", 0)
    train, shards = dealt(cfg, dataset, root_samples)
    start, model = make(cfg, "start"), initial_model(cfg)
    check_fit(model, dataset, training.smallest_batch(shards.sizes[: cfg.clients + (root_samples > 0)]))
    initial = server.prepared(ServerState.of(layout := StateLayout.of(model), model), layout, cfg.clients)
    asked = Exams.of(cfg.evaluate.per_class, cfg.evaluate.clients, attack, dataset, train, shards, population)
    task = Task(
        model=model,
        layout=layout,
        train=train,
        shards=shards,
        eval_sets=judged_by(defense, dataset, asked.sets),
        truth=asked.truth,
        normalise=reader(dataset),
        noise=noise(dataset),
        training=training,
        attack=attack,
        seed=cfg.seed,
        spill=Spill(**cfg.spill),
        device=cfg.device,
        precision=cfg.precision,
        smoothing=getattr(defense, "randomized_smoothing", None),
        augment=fitting(make(cfg, "augment"), dataset),
    )
    check_repeatable(task, initial)
    check_defense(defense, cfg.clients_per_round, initial, task)
    check_memo(cfg.memo.dir, server, "at_once" in cfg.engine)
    engine = Memo(**cfg.memo).around(make(cfg, "engine", **engine_workers(cfg)), benign_code(cfg))
    rest, data = (initial, list(cfg.shadow), evaluated_rounds(cfg), asked), data_digest(cfg, given.digest())
    return Parts(dataset, data, task, population, attack, defense, server, start, engine, *rest)


def benign_code(cfg: DictConfig) -> str:
    """Hash of the code and settings of what trains benign clients, but for the schedule, which its rates say all of."""
    nodes = [plain_node(cfg[group]) for group in BENIGN]
    benign = [{key: value for key, value in node.items() if key != "schedule"} for node in nodes]
    return short(code(benign), repr(benign))


def _population(cfg: DictConfig, attack: Attack) -> Population:
    """The clients, and when enough of them attack to do something."""
    start, stop = cfg.attack_rounds.start, cfg.attack_rounds.stop
    last = f"rounds={cfg.rounds} end" if stop is None or stop > cfg.rounds else f"attack_rounds.stop={stop} comes"
    if attack.hostile and start >= min(cfg.rounds, cfg.rounds if stop is None else stop):
        raise ValueError(
            f"attack_rounds.start={start} is out of range: {last} before the attack begins; lower it or say attack=none"
        )
    population = Population(
        clients=cfg.clients,
        per_round=cfg.clients_per_round,
        poisoned_model_rate=cfg.poisoned_model_rate,
        rule=cfg.attackers,
        schedule=Schedule(**cfg.attack_rounds),
        hostile=attack.hostile,
        seed=cfg.seed,
    )
    if colluders := population.colluders:
        attack.check_round(population.per_round, colluders)
    return population


def check_part(cfg: Mapping[str, Any], group: str) -> Any:
    """The node of a group; ConfigError unless it has the keys and types that its target takes."""
    node = (filled(cfg) if group == "attack" else cfg)[group]
    try:
        check_signature(group, node)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return node


def make(cfg: Mapping[str, Any], group: str, **fixed: Any) -> Any:
    """Instantiate one config group, composed or as a run recorded it; the signature of its target is its schema."""
    node = check_part(cfg, group)
    try:
        return instantiate(node, _convert_="all", **fixed)
    except InstantiationException as error:
        cause, (_, _, place) = error.__cause__, str(error).partition("full_key: ")
        if isinstance(cause, (ValueError, OSError)):
            raise ConfigError(placed(str(cause), place)) from error
        if isinstance(cause, TypeError):  # such as null for a list, where the signature does not say more
            raise ConfigError(type_error(place or group, str(node.get("_target_")), cause)) from error
        raise


def load(cfg: Mapping[str, Any]) -> Dataset:
    """The data set that a config names, as a run takes it; ValueError if that cannot be."""
    return checked(make(cfg, "dataset"), cfg["dataset"])


def compose_defense(overrides: Sequence[str], conf: Conf = PROJECT) -> Defense:
    """The defense that overrides such as `defense=flame_zhmzm defense.noise.factor=0` describe."""
    try:
        defense: Defense = make(composed(overrides, conf=conf), "defense")
        return defense
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error


def _check_run_level(cfg: DictConfig) -> None:
    check_incidental(cfg)
    for key in ("rounds", "evaluate_every", "report_last", "threads"):
        if cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]} is out of range: must be a whole number >= 1")
    if not -(2**63) <= cfg.seed < 2**63:
        raise ValueError(f"seed={cfg.seed} is out of range: must be a whole number of at most 64 bits")
    check_precision(cfg.precision)
    if unknown := [scope for scope in cfg.shadow if scope not in SCOPES]:
        raise ValueError(f"shadow={unknown} is unknown: must be a list of {', '.join(SCOPES)}")


def check_incidental(cfg: DictConfig) -> None:
    """ValueError for what no result depends on: asked of a finished run, too, which is not built again."""
    for key in ("rounds", "seconds"):
        if not cfg.checkpoint[key] >= 0:  # nan
            raise ValueError(f"checkpoint.{key}={cfg.checkpoint[key]} is out of range: must be >= 0 (0: never)")
    check_device(cfg.device)
    if cfg.record.every < 0:
        raise ValueError(f"record.every={cfg.record.every} is out of range: must be >= 0 (0: never)")
    if bad := [number for number in cfg.record.rounds if not 0 <= number < cfg.rounds]:
        raise ValueError(f"record.rounds={bad} is out of range: must be in [0, rounds - 1 = {cfg.rounds - 1}]")
    engine_workers(cfg)
    check_engine(cfg.engine, cfg.device)
    Spill(**cfg.spill)
    Memo(**cfg.memo)


def evaluated_rounds(cfg: DictConfig) -> EvaluatedRounds:
    """Every `evaluate_every`-th round, and all that summary.json is the mean of."""
    return EvaluatedRounds(cfg.rounds, cfg.evaluate_every, cfg.report_last)


def dealt(cfg: Mapping[str, Any], dataset: Dataset, root_samples: int) -> tuple[Samples, Shards]:
    """The training images of a run and who holds them; `cfg` composed, or as the run recorded it."""
    drawn = subset(dataset, cfg["train_samples"], generator(cfg["seed"], "subset"))
    return drawn.train, deal(drawn, make(cfg, "partition"), cfg["clients"], root_samples, cfg["seed"])


def data_digest(cfg: Mapping[str, Any], dataset: str) -> str:
    """Hash of the data: that of the data set, with the lists of a partition that reads them from a file."""
    lists = getattr(make(cfg, "partition"), "content", None)
    return dataset if lists is None else short(dataset, lists)


def initial_model(cfg: Mapping[str, Any]) -> torch.nn.Module:
    """The model at its initialisation for this seed, or as a file has it; the global generator is left as it was."""
    with addressed(cfg["seed"], "init"):
        model = check_module(make(cfg, "model"), cfg["model"].get("_target_"))
    make(cfg, "start").load(model, plain_node(cfg["dataset"]))
    return model
