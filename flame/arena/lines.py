"""A line per run of the arena, in a file for each defense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from flame.report.measures import mean
from flame.report.records import PROVENANCE, line, setting
from flame.run.record import RunRecord

VERSION = 2  # of the contest: all that conf/recipe/arena/row.yaml fixes
PLACE = ["defense", "attack", "partition", "seed"]  # no two lines share it
NUMBERS = ["ma", "ba", "benign_recall", "malicious_recall", "server_seconds", "run_seconds"]
COLUMNS = ["version", *PLACE, *NUMBERS, *PROVENANCE]
TYPES = dict.fromkeys(COLUMNS, str) | dict.fromkeys(NUMBERS, float) | {"version": int, "seed": int}
LINES = Path(__file__).resolve().parents[2] / "results" / "arena"
AGAIN = "again"  # the folder in it of lines that were made again, on another kind of processor
REFERENCE = "fedavg"  # the defense that MA is lost against
CONTROL = "control"  # stands for a defense in lines of conf/recipe/arena/control.yaml, where nobody poisons
TIMES = ("time/train", "time/aggregate", "time/shadow", "time/evaluate")


def line_of(run: RunRecord, keys: Sequence[str] = ()) -> dict[str, Any]:
    """A finished run's values of `COLUMNS`, `keys` as in `name_of`.

    Shares in [0, 1]: of the last rounds `ma` and `ba`, NaN where the attack has none; of all rounds the recalls.
    Seconds: of the server in a round, mean; and of the run's rounds in all.
    """
    known, device = line(run, ()), run.environment.get("device", "cpu")
    return {
        **{name: known[name] for name in ("attack", "partition", "seed", "ma", "ba", *PROVENANCE)},
        "version": VERSION,
        "defense": name_of(run, keys),
        **{name: mean(run.metric(f"filter/{name}")) for name in ("benign_recall", "malicious_recall")},
        "server_seconds": mean(run.metric("time/aggregate")),
        "run_seconds": sum(mean(run.metric(name)) * run.rounds for name in TIMES if name in run.metrics),
        "processor": known["processor"] + (device != "cpu") * f"; {device}",
    }


def name_of(run: RunRecord, keys: Sequence[str]) -> str:
    """The defense and its settings of `keys`, as in `krum f=3`; the control where nobody poisons.

    Raises:
        ValueError: nobody poisons and the defense is not averaging, or a defense has the control's name.
    """
    settings = [f"{key.replace('defense@', '').replace('defense.', '', 1)}={setting(run, key)}" for key in keys]
    name = " ".join([run.choices["defense"], *settings])
    if name == CONTROL:
        raise ValueError(
            f"defense={CONTROL}: the arena calls the runs so in which nobody poisons; give it another name"
        )
    if not unpoisoned(run):
        return name
    if name != REFERENCE:
        raise ValueError(f"{run.folder}: nobody poisons, and the defense is {name}; the control's is {REFERENCE}")
    return CONTROL


def unpoisoned(run: RunRecord) -> bool:
    """Whether there is an attack, and it has no poisoned samples, as in the control."""
    return bool(run.config["attack"].get("poisoned_data_rate") == 0)


def csv_of(lines: pd.DataFrame) -> str:
    """A line per run, sorted, six significant digits."""
    text: str = lines.sort_values(PLACE, kind="stable").to_csv(
        index=False, columns=COLUMNS, float_format="%.6g", lineterminator="\n"
    )
    return text


def read(paths: Iterable[Path]) -> pd.DataFrame:
    """The lines of all files.

    Raises:
        ValueError: a file is no table of these columns, or of another version of the contest; a line has no MA; or two
            lines have one place.
    """
    none = pd.DataFrame(columns=COLUMNS).astype(TYPES)
    whole = pd.concat([none, *(read_one(path) for path in paths)], ignore_index=True)
    if len(twice := whole[whole.duplicated(PLACE)]):
        raise ValueError(f"two lines of {place_of(twice)}: leave one of them out")
    return whole


def one_kind(lines: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """`lines`, with processors that are shown to round alike under one name.

    They are if each line of `again` that one of them made has the final model of the line that the other made of the
    same place with the same code, and there is such a line.
    """
    pairs = again.merge(lines, on=[*PLACE, "code"], suffixes=("", "_first"))
    equal = pairs["state_sha256"] == pairs["state_sha256_first"]
    kinds = equal.groupby([pairs["processor"], pairs["processor_first"]]).all()
    return lines.replace({"processor": dict(kinds.index[kinds])})


def read_one(path: Path) -> pd.DataFrame:
    """The lines of a file."""
    try:
        lines = pd.read_csv(path, dtype=TYPES, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if list(lines.columns) != COLUMNS:
        raise ValueError(f"{path}: its columns are not {', '.join(COLUMNS)}")
    if strange := set(lines["version"]) - {VERSION}:
        raise ValueError(f"{path} is of version {min(strange)} of the arena, and this is {VERSION}: run it again")
    if lines["ma"].isna().any():
        raise ValueError(f"{path} has no MA of {place_of(lines[lines['ma'].isna()])}: run it again")
    return lines


def place_of(lines: pd.DataFrame) -> str:
    """Of the first line, in words."""
    return " ".join(map(str, lines.iloc[0][PLACE]))
