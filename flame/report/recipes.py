"""What a recipe's sweep consists of, so that a table can tell its runs from others and say what of it was not run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from json import dumps
from typing import Any

import yaml  # type: ignore[import-untyped]

from flame.run.compose import CONF, composed
from flame.run.config import INCIDENTAL, NAMED, identity, plain
from flame.run.record import PLACES, flatten

# What two runs of a cell may differ in: the seed, what no result depends on, and the length, so that a recipe can be
# tried in fewer rounds.
FREE = {*INCIDENTAL, "seed", "rounds", "evaluate_every", "report_last"}
Plan = Mapping[str, tuple[str, ...]]  # field of a record -> the values that are swept, in the recipe's order


def field_of(key: str) -> str:
    """The field of a record, and of a plan, that holds a key of the config: `norm` holds `model.norm`."""
    return key.rpartition(".")[2]


def plan(recipe: str) -> Plan:
    """The sweep inside conf/<recipe>.yaml."""
    swept = _written(recipe)["hydra"]["sweeper"]["params"]
    return {field_of(key): tuple(map(str.strip, str(values).split(","))) for key, values in swept.items()}


def options(recipe: str) -> Mapping[str, str]:
    """Config group -> the option that all runs of a recipe have, its own or the default, of those in a folder's name.

    They keep other recipes' runs in the same folder apart, and `other_settings` those of the same options. Where two
    runs of a cell have both, `own_identity` tells the recipe's own from a trial in fewer rounds.
    """
    chosen: dict[str, str] = {}
    for entries in (_written("config")["defaults"], _written(recipe)["defaults"]):
        named = [entry for entry in entries if isinstance(entry, dict)]
        chosen |= {key.removeprefix("override "): option for entry in named for key, option in entry.items()}
    return {group: option for group, option in chosen.items() if group in NAMED and group not in plan(recipe)}


def own_identity(recipe: str, record: Any) -> str:
    """Identity that the recipe's own run of a record's cell has, with all settings as conf/<recipe>.yaml has them."""
    return identity(composed([*_cell(recipe, record), f"seed={record.seed}"], recipe))


def other_settings(recipe: str, record: Any, config: Mapping[str, Any]) -> list[str]:
    """In words, how a run's settings differ from those of its recipe in its cell.

    Not compared: what only one of the two knows, as another version may, and what is `FREE`.
    """
    ours, theirs = _own(recipe, *_cell(recipe, record)), _compared(config)
    differing = sorted(key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key])
    return [f"{key} is {dumps(theirs[key])}, and {dumps(ours[key])} in conf/{recipe}.yaml" for key in differing]


def _cell(recipe: str, record: Any) -> list[str]:
    """The overrides that make a record's cell of the recipe's sweep, but the seed."""
    keys = _written(recipe)["hydra"]["sweeper"]["params"].keys() - {"seed"}
    return [f"{key}={getattr(record, field_of(key))}" for key in sorted(keys)]


@cache
def _own(recipe: str, *overrides: str) -> Mapping[str, Any]:
    """The settings of a recipe's cell, by dotted key; composed once for all seeds."""
    return _compared(plain(composed(overrides, recipe)))


def _compared(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `other_settings` looks at, by dotted key."""
    flat = flatten({key: value for key, value in config.items() if key not in FREE})
    return {key: value for key, value in flat.items() if key not in PLACES}


def _written(recipe: str) -> dict[str, Any]:
    """The file's content, over that of the recipe that it starts from, if it does; both lists of defaults in turn."""
    content: dict[str, Any] = yaml.safe_load((CONF / f"{recipe}.yaml").read_text())
    names = [name for name in content["defaults"] if isinstance(name, str)]
    bases = [_written(name) for name in names if name not in ("schema", "config", "_self_")]
    defaults = [entry for one in (*bases, content) for entry in one["defaults"]]
    return {key: value for one in (*bases, content) for key, value in one.items()} | {"defaults": defaults}
