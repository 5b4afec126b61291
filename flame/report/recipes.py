"""`conf/recipe/<theme>/<name>.yaml`: a sweep, and under `recipe` what is made of its runs (`conf/recipe/README.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from json import dumps
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from flame.run import compose
from flame.run.config import INCIDENTAL, NAMED, identity, plain
from flame.run.record import PLACES, flatten

# What two runs of a cell may differ in: the seed, what no result depends on, and the length, so that a recipe can be
# tried in fewer rounds.
FREE = {*INCIDENTAL, "seed", "rounds", "evaluate_every", "report_last"}
KEYS = {"tables", "figures", "also", "older_code"}
Plan = Mapping[str, tuple[str, ...]]  # swept key -> its values, in the recipe's order


@dataclass(frozen=True)
class Recipe:
    """One of them."""

    name: str  # of its file, and of results/<name>.csv
    config: str  # for --config-name
    content: Mapping[str, Any]  # of the file, over that of the recipe that it starts from
    own: Mapping[str, Any]  # what stands under `recipe` in its own file

    @property
    def plan(self) -> Plan:
        """The sweep."""
        swept = self.content["hydra"]["sweeper"]["params"]
        return {key: tuple(map(str.strip, str(values).split(","))) for key, values in swept.items()}

    @property
    def options(self) -> Mapping[str, str]:
        """Config group -> the option that all runs have, its own or the default, of those in a folder's name."""
        chosen: dict[str, str] = {}
        for entry in (*_content((compose.CONF / "config.yaml").read_text())["defaults"], *self.content["defaults"]):
            if isinstance(entry, dict):
                chosen |= {key.removeprefix("override ").lstrip("/"): option for key, option in entry.items()}
        return {group: option for group, option in chosen.items() if group in NAMED and group not in self.plan}

    def own_identity(self, line: Mapping[str, Any]) -> str:
        """Identity that the recipe's own run of a line's cell has, with all settings as the file has them."""
        return identity(compose.composed([*cell(line, self.plan), f"seed={line['seed']}"], self.config))

    def other_settings(self, line: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
        """In words, how a run's settings differ from those of the recipe in its cell.

        Not compared: what only one of the two knows, as another version may, and what is `FREE`.
        """
        ours, theirs = _composed(self.config, *cell(line, self.plan)), _compared(config)
        differing = sorted(key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key])
        place = f"conf/{self.config}.yaml"
        return [f"{key} is {dumps(theirs[key])}, and {dumps(ours[key])} in {place}" for key in differing]


def recipes() -> dict[str, Recipe]:
    """All of them by name. A ValueError if two have one name or a table of one name, or a key of `recipe` is none."""
    paths = sorted(compose.CONF.glob("recipe/*/*.yaml"))
    found = [
        Recipe(p.stem, f"recipe/{p.parent.name}/{p.stem}", _merged(p), _content(p.read_text()).get("recipe") or {})
        for p in paths
    ]
    for recipe in found:
        if unknown := sorted(recipe.own.keys() - KEYS):
            raise ValueError(f"conf/{recipe.config}.yaml: recipe.{unknown[0]} is none of {', '.join(sorted(KEYS))}")
    for names in ([r.name for r in found], [table for r in found for table in r.own.get("tables", {})]):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"conf/recipe/ has {twice[0]} twice: give one of them another name")
    return {recipe.name: recipe for recipe in found}


def tables(known: Mapping[str, Recipe]) -> dict[str, tuple[Recipe, dict[str, Any]]]:
    """Every table's recipe and what it is, with all that it takes from another one."""
    written = {name: (r, table) for r in known.values() for name, table in r.own.get("tables", {}).items()}

    def whole(name: str) -> dict[str, Any]:
        table = written[name][1]
        return {**(whole(table["like"]) if "like" in table else {}), **table}

    return {name: (recipe, whole(name)) for name, (recipe, _) in written.items()}


def cell(line: Mapping[str, Any], plan: Plan) -> list[str]:
    """The overrides that make a line's cell of a sweep, but the seed."""
    return [*(f"{group}={line[group]}" for group in NAMED if group in plan), *str(line["settings"]).split()]


@cache
def _composed(config: str, *overrides: str) -> Mapping[str, Any]:
    """The settings of a recipe's cell, by dotted key; composed once for all seeds."""
    return _compared(plain(compose.composed(overrides, config)))


def _compared(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `other_settings` looks at, by dotted key."""
    flat = flatten({key: value for key, value in config.items() if key not in FREE})
    return {key: value for key, value in flat.items() if key not in PLACES and not key.endswith("schedule.rounds")}


@cache
def _content(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text))


def _merged(path: Path) -> dict[str, Any]:
    """A file's content over that of the recipe that it starts from, if it does; both lists of defaults in turn."""
    content = _content(path.read_text())
    names = [name for name in content["defaults"] if isinstance(name, str) and name.startswith("/recipe/")]
    parts = [*(_merged(compose.CONF / f"{name.lstrip('/')}.yaml") for name in names), content]
    return reduce(_over, parts) | {"defaults": [entry for one in parts for entry in one["defaults"]]}


def _over(base: Any, own: Any) -> Any:  # as Hydra puts one over another
    both = isinstance(base, dict) and isinstance(own, dict)
    return base | {key: _over(base.get(key), value) for key, value in own.items()} if both else own
