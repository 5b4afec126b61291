"""What a recipe's sweep consists of, so that a table can tell its runs from others and say what of it was not run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from flame.build import composed
from flame.config import NAMED, identity

CONF = Path(__file__).resolve().parents[2] / "conf"
Plan = Mapping[str, tuple[str, ...]]  # field of a record -> the values that are swept, in the recipe's order


def plan(recipe: str) -> Plan:
    """The sweep inside conf/<recipe>.yaml; `model.norm` is the field `norm`."""
    swept = _written(recipe)["hydra"]["sweeper"]["params"]
    return {key.rpartition(".")[2]: tuple(map(str.strip, str(values).split(","))) for key, values in swept.items()}


def options(recipe: str) -> Mapping[str, str]:
    """Config group -> the option that all runs of a recipe have, its own or the default, of those in a folder's name.

    They keep other recipes' runs in the same folder apart. Settings are not compared, so that a recipe can be tried in
    fewer rounds: where they alone tell two runs of one cell apart, `own_identity` does.
    """
    chosen: dict[str, str] = {}
    for entries in (_written("config")["defaults"], _written(recipe)["defaults"]):
        named = [entry for entry in entries if isinstance(entry, dict)]
        chosen |= {key.removeprefix("override "): option for entry in named for key, option in entry.items()}
    return {group: option for group, option in chosen.items() if group in NAMED and group not in plan(recipe)}


def own_identity(recipe: str, record: object) -> str:
    """Identity that the recipe's own run of a record's cell has, with all settings as conf/<recipe>.yaml has them."""
    keys = _written(recipe)["hydra"]["sweeper"]["params"]
    chosen = {key: str(getattr(record, key.rpartition(".")[2])).split()[0] for key in keys}  # without labels
    return identity(composed([f"{key}={option}" for key, option in chosen.items()], recipe))


def _written(recipe: str) -> dict[str, Any]:
    """The file's content, over that of the recipe that it starts from, if it does; both lists of defaults in turn."""
    content: dict[str, Any] = yaml.safe_load((CONF / f"{recipe}.yaml").read_text())
    names = [name for name in content["defaults"] if isinstance(name, str)]
    bases = [_written(name) for name in names if name not in ("schema", "config", "_self_")]
    defaults = [entry for one in (*bases, content) for entry in one["defaults"]]
    return {key: value for one in (*bases, content) for key, value in one.items()} | {"defaults": defaults}
