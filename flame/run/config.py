"""The schema of the run-level keys, and the name that a composed config gives its run folder.

The groups (dataset, defense, ...) are checked against the signatures of what they instantiate, in `flame/run/build.py`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

# What a run's result does not depend on, and so its identity neither.
INCIDENTAL = (
    "hydra",
    "paths",
    "tracker",
    "engine",
    "resume",
    "checkpoint",
    "record",
    "spill",
    "memo",
    "device",
    "recipe",
)
# Choices as they were before there was a choice: they say nothing, so that runs from then stay finished, and alike.
AS_EVER = {
    "precision": "float32",
    "augment": {"_target_": "flame.round.augment.NoAugment"},
    "evaluate": {"per_class": False, "clients": 0},
}
STARTED = datetime.now()
LONGEST_NAME = 255  # bytes, of most file systems
OWN = tuple(
    f"flame.data.{name}." for name in ("folder", "arrays", "leaf", "hub", "text", "reddit", "traffic")
)  # of the user's own files: others elsewhere are other data
SCRATCH = "flame.run.start.Scratch"
NAMED = ("dataset", "partition", "model", "attack", "defense")  # groups whose choice stands in the folder's name


@dataclass
class ScheduleConfig:
    after_ma: float | None = None  # the value is for runs from before there was a choice, given `--again`
    start: int = MISSING
    stop: int | None = MISSING
    every: int = MISSING


@dataclass
class CheckpointConfig:
    rounds: int = MISSING
    seconds: float = MISSING


@dataclass
class RecordConfig:
    rounds: list[int] = MISSING
    every: int = MISSING


@dataclass
class SpillConfig:
    share: float = MISSING
    dir: str = MISSING


@dataclass
class MemoConfig:
    dir: str | None = MISSING
    gb: float = MISSING


@dataclass
class EvaluateConfig:
    per_class: bool = MISSING
    clients: int = MISSING


@dataclass
class PathsConfig:
    runs: str = MISSING
    data: str = MISSING


@dataclass
class RunConfig:
    """Keys of conf/config.yaml; units and ranges stand there, beside the values."""

    dataset: Any = MISSING
    partition: Any = MISSING
    model: Any = MISSING
    start: Any = field(default_factory=lambda: {"_target_": SCRATCH})  # likewise
    client: Any = MISSING
    augment: Any = MISSING
    attack: Any = MISSING
    defense: Any = MISSING
    server: Any = MISSING
    engine: Any = MISSING
    tracker: Any = MISSING
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = MISSING
    rounds: int = MISSING
    clients: int = MISSING
    clients_per_round: int = MISSING
    train_samples: int | None = MISSING
    poisoned_model_rate: float = MISSING
    attackers: str = MISSING
    attack_rounds: ScheduleConfig = field(default_factory=ScheduleConfig)
    shadow: list[str] = MISSING
    evaluate_every: int = MISSING
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report_last: int = MISSING
    threads: int = MISSING
    resume: bool | str = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    device: str = MISSING
    precision: str = MISSING
    record: RecordConfig = field(default_factory=RecordConfig)
    spill: SpillConfig = field(default_factory=SpillConfig)
    memo: MemoConfig = field(default_factory=MemoConfig)
    recipe: Any = None


def register() -> None:
    """Make the schema and the resolvers known to Hydra; harmless when called again."""
    if "schema.yaml" not in ConfigStore.instance().repo:  # made anew, it takes as long as a YAML
        ConfigStore.instance().store(name="schema", node=RunConfig)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)  # ~/runs
    OmegaConf.register_new_resolver("times", lambda share, benign: share * benign, replace=True)
    OmegaConf.register_new_resolver("passes", _passes, replace=True)


def filled(cfg: Any) -> Any:
    """The config with every attack's `client` in full, a copy: what it does not name is the benign clients'.

    A part that is chosen anew, with a `_target_` of its own, replaces theirs. What a run has recorded stays as it is.
    """
    if not OmegaConf.is_dict(cfg) or "client" not in cfg:
        return cfg
    cfg, path = copy.deepcopy(cfg), "attack"
    while OmegaConf.is_dict(node := OmegaConf.select(cfg, path)):
        if OmegaConf.is_dict(node.get("client")):
            benign, own = (OmegaConf.to_container(part) for part in (cfg.client, node.client))
            if isinstance(benign, dict):
                benign.pop("hardening", None)  # of benign clients alone
            OmegaConf.update(cfg, f"{path}.client", _over(benign, own), merge=False, force_add=True)
        path += ".backdoor"
    return cfg


def identity(cfg: DictConfig) -> str:
    """Hash of everything in the composed config that can change a result; where data and runs lie cannot."""
    written = plain(cfg, resolve=False)
    kept = [key for key in written if key not in INCIDENTAL and not OmegaConf.is_missing(cfg, key)]
    filled = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v := cfg[k]) else v for k in kept}
    return fingerprint({key: _without_paths(written[key], filled[key]) for key in kept})


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The config in plain dicts and lists, interpolations filled in or as written."""
    contained = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(contained, dict)
    return {str(k): v for k, v in contained.items()}


def plain_node(node: Any) -> Any:
    """A group's node as a plain dict, composed or as a run recorded it."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def fingerprint(config: Mapping[str, Any]) -> str:
    """Hash of all of a plain config that says something of a result."""
    kept = telling(config)
    if "start" in kept and kept["start"].get("_target_") == SCRATCH:
        del kept["start"]  # as in runs from before there was a choice
    rounds = kept.get("attack_rounds", {})
    if "after_ma" in rounds and rounds["after_ma"] is None:
        kept["attack_rounds"] = {k: v for k, v in rounds.items() if k != "after_ma"}  # likewise
    kept["dataset"] = wherever(kept["dataset"])
    return hashlib.sha256(json.dumps(_alike(kept), sort_keys=True).encode()).hexdigest()[:12]


def wherever(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data set without where it lies, if it is one of ours that verify what they find there."""
    target = str(dataset.get("_target_"))
    where = () if target.startswith(OWN) else ("root", "download")
    places = (*where, "cache") if target.startswith("flame.data.") else ()
    return {key: value for key, value in dataset.items() if key not in places}


def telling(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config without what is incidental, and without choices that are as ever."""
    return {k: v for k, v in config.items() if k not in INCIDENTAL and not (k in AS_EVER and v == AS_EVER[k])}


def without_seed(config: Mapping[str, Any]) -> str:
    """What the seeds of one setting share."""
    return fingerprint({key: value for key, value in config.items() if key != "seed"})


def _without_paths(written: Any, filled: Any) -> Any:
    """The filled in values, but for those that follow `paths`."""
    if isinstance(written, dict) and isinstance(filled, dict):
        return {key: _without_paths(written[key], value) for key, value in filled.items()}
    if isinstance(written, list) and isinstance(filled, list):
        return [_without_paths(*pair) for pair in zip(written, filled, strict=True)]
    return written if isinstance(written, str) and "${paths." in written else filled


def _alike(value: Any) -> Any:
    """The same value with 1.0 written as 1, which the command line may give for either."""
    if isinstance(value, dict):
        return {key: _alike(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_alike(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _over(base: Any, own: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(own, dict) or "_target_" in own:
        return own
    return base | {key: _over(base.get(key), value) for key, value in own.items()}


def _passes(share: float, benign: int) -> float:
    """Epochs, `share` to 1 of what benign clients train: a whole number from 1 on, halves rounded up."""
    passes = share * benign
    return passes if passes < 1 else int(passes + 0.5)


def _run_name(*, _root_: DictConfig) -> str:
    """`<dataset>-...-<defense>-s<seed>-<identity>`: equal configs share a folder, so a run is resumed, not repeated.

    The choices are cut where the name would be longer than a file's may be; the identity tells such names apart.
    """
    choices = _root_.hydra.runtime.choices
    parts = "-".join(str(choices[group]).replace("/", "_") for group in NAMED)
    anew = "" if _root_.resume else f"-{STARTED:%Y%m%d-%H%M%S-%f}"  # to the microsecond: two may start in one second
    tail = f"-s{_root_.seed}-{identity(_root_)}{anew}"
    return os.fsencode(parts)[: LONGEST_NAME - len(tail)].decode(errors="ignore") + tail
