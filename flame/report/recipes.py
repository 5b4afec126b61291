"""What a recipe's sweep consists of, so that a table can tell its runs from others and say what of it was not run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from flame.config import NAMED

CONF = Path(__file__).resolve().parents[2] / "conf"
Plan = Mapping[str, tuple[str, ...]]  # field of a record -> the values that are swept, in the recipe's order


def plan(recipe: str) -> Plan:
    """The sweep inside conf/<recipe>.yaml; `model.norm` is the field `norm`."""
    swept = _written(recipe)["hydra"]["sweeper"]["params"]
    return {key.rpartition(".")[2]: tuple(map(str.strip, str(values).split(","))) for key, values in swept.items()}


def options(recipe: str) -> Mapping[str, str]:
    """Config group -> the option that conf/<recipe>.yaml gives to all of its runs, of those in a run folder's name.

    They keep other recipes' runs in the same folder apart. Settings are not compared, so that a recipe can be tried in
    fewer rounds: where they alone tell recipes apart, each needs a folder (`publish` refuses two runs of one cell).
    """
    overridden = [entry for entry in _written(recipe)["defaults"] if isinstance(entry, dict)]
    chosen = {key.removeprefix("override "): option for entry in overridden for key, option in entry.items()}
    return {group: option for group, option in chosen.items() if group in NAMED}


def _written(recipe: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONF / f"{recipe}.yaml").read_text())
    return content
