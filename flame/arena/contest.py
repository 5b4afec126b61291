"""What the contest fixes: every setting of a run but its defense and seed, and the runs that make a whole row.

Both are those of conf/recipe/arena/, whatever the command line, a config of the user's or a file of lines says.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from flame.arena.lines import AGAIN, CONTROL, one_kind, read, unpoisoned
from flame.report.recipes import Recipe, recipes
from flame.run.compose import composed
from flame.run.config import INCIDENTAL, plain
from flame.run.record import RunRecord
from flame.run.sweep import parsed

SWEPT = ("attack", "partition", "seed")
# Recipe of a defense's lines -> that of the lines they count above.
PARTS = {"row": CONTROL, "tune": f"tune_{CONTROL}", "fashion": f"fashion_{CONTROL}"}
HOME = {"row": Path(), "tune": Path("tune"), "fashion": Path("fashion")}  # the folder of its lines in that of all


@cache
def recipe(defense: str = "", part: str = "row") -> Recipe:
    """That a defense's lines are run by, in a part of the arena: the control has one of its own."""
    return recipes()[PARTS[part] if defense == CONTROL else part]


@cache
def fixed(config: str, attack: str, partition: str) -> Any:
    """A recipe's config, interpolations as written."""
    return composed([f"attack={attack}", f"partition={partition}"], config)


def keyed(words: Iterable[str]) -> list[tuple[str, Any]]:
    """Overrides with their keys: `defense.keep`, or `defense@defense.rule` that chooses an option for that place."""
    return [(str(word.get_key_element()).lstrip("+~"), word) for word in parsed([*words])]


def own(words: Iterable[str]) -> dict[str, str]:
    """Key -> override, of those that set keys of the defense or choose its parts."""
    return {key: str(word.input_line) for key, word in keyed(words) if re.match(r"defense[.@]", key)}


def other_contest(words: Iterable[str], part: str) -> str | None:
    """The first override that changes results and is neither of the defense nor one of the part's own runs."""
    plan = recipe(part=part).plan
    for key, word in keyed(words):
        swept = key in SWEPT and word.get_value_element_as_str() in plan[key]
        if not swept and re.split(r"[./@]", key)[0] not in (*INCIDENTAL, "defense"):
            return str(word.input_line)
    return None


def changed(run: RunRecord, defense: Mapping[str, Any], part: str) -> str | None:
    """In words, the first setting in which a run is not of that part of the contest.

    `defense` is what its defense and the keys in its name make, interpolations as written.
    """
    ours, choices = recipe(CONTROL if unpoisoned(run) else "", part), {key: run.choices[key] for key in SWEPT[:2]}
    if strange := [key for key, choice in choices.items() if choice not in ours.plan[key]]:
        return f"{strange[0]} is {choices[strange[0]]}"
    config = copy.deepcopy(fixed(ours.config, **choices))
    config.defense, config.seed = defense, run.config["seed"]
    wanted, found = (one.settings for one in (replace(run, config=plain(config)), run))
    keys = sorted(wanted.keys() | found.keys(), key=lambda key: (key.count("."), key))  # what others follow from first
    pairs = ((key, found.get(key, "-"), wanted.get(key, "-")) for key in keys)
    return next((f"{key} is {one}, not {other}" for key, one, other in pairs if one != other), None)


def amiss(row: pd.DataFrame, plan: Mapping[str, Sequence[str]]) -> str:
    """What the lines of one defense lack of all attacks, partitions and seeds of `plan`, or have too much; or empty."""
    there = Counter(zip(row["attack"], row["partition"], row["seed"].astype(str), strict=True))
    wanted = Counter((a, p, s) for s in plan["seed"] for p in plan["partition"] for a in plan["attack"])
    found = {"it lacks {} runs": wanted - there, "it has {} runs too many": there - wanted}
    return ", and ".join(
        f"{words.format(runs.total())}, first " + "attack={} partition={} seed={}".format(*next(iter(runs)))
        for words, runs in found.items()
        if runs
    )


def published(folder: Path, part: str) -> pd.DataFrame:
    """All lines of a part of the arena in `folder`, processors that are shown to round alike under one name.

    Raises:
        ValueError: as in `read`; or a row is not whole.
    """
    lines = read(sorted((folder / HOME[part]).glob("*.csv")))
    for defense, row in lines.groupby("defense"):
        if wrong := amiss(row, recipe(str(defense), part).plan):
            raise ValueError(f"{defense} has no whole row in {folder / HOME[part]}: {wrong}")
    return one_kind(lines, again(folder))


def again(folder: Path) -> pd.DataFrame:
    """The lines of a folder's rows that were made again elsewhere."""
    return read(sorted((folder / AGAIN).glob("*.csv")))
