"""What a recipe's sweep consists of, so that a table can say what of it was not run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml  # type: ignore[import-untyped]

CONF = Path(__file__).resolve().parents[2] / "conf"
Plan = Mapping[str, tuple[str, ...]]  # field of a record -> the values that are swept, in the recipe's order


def plan(recipe: str) -> Plan:
    """The sweep inside conf/<recipe>.yaml; `model.norm` is the field `norm`."""
    swept = yaml.safe_load((CONF / f"{recipe}.yaml").read_text())["hydra"]["sweeper"]["params"]
    return {key.rpartition(".")[2]: tuple(map(str.strip, str(values).split(","))) for key, values in swept.items()}
