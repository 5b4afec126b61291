"""A line per run of the arena, in a file for each defense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from flame.report.measures import mean
from flame.report.records import setting
from flame.run.record import RunRecord

VERSION = 1  # of the contest: all that conf/recipe/arena/row.yaml fixes
PLACE = ["defense", "attack", "partition", "seed"]  # no two lines share it
NUMBERS = ["ma", "ba", "benign_recall", "malicious_recall", "server_seconds", "run_seconds"]
COLUMNS = ["version", *PLACE, *NUMBERS, "commit", "code", "processor", "state_sha256", "identity"]
LINES = Path(__file__).resolve().parents[2] / "results" / "arena"
CONTROL = "control"  # stands for a defense in lines of conf/recipe/arena/control.yaml, where nobody poisons
TIMES = ("time/train", "time/aggregate", "time/shadow", "time/evaluate")


def line_of(run: RunRecord, keys: Sequence[str] = ()) -> dict[str, Any]:
    """A finished run's values of `COLUMNS`; the defense's name is followed by its settings of `keys`, as in `krum f=3`.

    Where nobody poisons, the defense is the control.

    Shares in [0, 1]: of the last rounds `ma` and `ba`, NaN where the attack has none; of all rounds the recalls.
    Seconds: of the server in a round, mean; and of the run's rounds in all.
    """
    settings = [f"{key}={setting(run, f'defense.{key}')}" for key in keys]
    unpoisoned = run.config["attack"].get("poisoned_data_rate") == 0
    return {
        "version": VERSION,
        "defense": CONTROL if unpoisoned else " ".join([run.choices["defense"], *settings]),
        **{key: run.choices[key] for key in ("attack", "partition")},
        "seed": run.config["seed"],
        "ma": run.reported("eval/ma"),
        "ba": run.reported("eval/ba"),
        **{name: mean(run.metric(f"filter/{name}")) for name in ("benign_recall", "malicious_recall")},
        "server_seconds": mean(run.metric("time/aggregate")),
        "run_seconds": sum(mean(run.metric(name)) * run.rounds for name in TIMES if name in run.metrics),
        "commit": run.commit,
        "code": run.environment.get("code") or "",
        "processor": run.environment.get("processor", ""),
        "state_sha256": (run.summary or {}).get("state_sha256", ""),
        "identity": run.identity,
    }


def csv_of(lines: pd.DataFrame) -> str:
    """A line per run, sorted, six significant digits."""
    text: str = lines.sort_values(PLACE, kind="stable").to_csv(
        index=False, columns=COLUMNS, float_format="%.6g", lineterminator="\n"
    )
    return text


def read(paths: Iterable[Path]) -> pd.DataFrame:
    """The lines of all files.

    Raises:
        ValueError: a file has other columns or is of another version of the contest, or two lines have one place.
    """
    texts = dict.fromkeys(set(COLUMNS) - {"version", "seed", *NUMBERS}, str)
    found = [pd.DataFrame(columns=COLUMNS)]
    for path in paths:
        lines = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
        if list(lines.columns) != COLUMNS:
            raise ValueError(f"{path}: its columns are not {', '.join(COLUMNS)}")
        if strange := set(lines["version"]) - {VERSION}:
            raise ValueError(f"{path} is of version {min(strange)} of the arena, and this is {VERSION}: run it again")
        found.append(lines)
    whole = pd.concat(found[1:] or found, ignore_index=True)
    twice = whole[whole.duplicated(PLACE)]
    if len(twice):
        raise ValueError(f"two lines of {' '.join(map(str, twice.iloc[0][PLACE]))}: leave one of them out")
    return whole


def lacking(lines: pd.DataFrame, plan: Mapping[str, Sequence[str]]) -> list[str]:
    """The runs, as overrides, that the lines of one defense lack of all attacks, partitions and seeds of `plan`."""
    there = set(zip(lines["attack"], lines["partition"], lines["seed"].astype(str), strict=True))
    wanted = ((a, p, s) for s in plan["seed"] for p in plan["partition"] for a in plan["attack"])
    return [f"attack={a} partition={p} seed={s}" for a, p, s in wanted if (a, p, s) not in there]
