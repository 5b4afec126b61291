"""`results/<recipe>.csv`: a line per run, the same columns for every recipe (what they hold: `results/README.md`)."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flame.report.measures import BLOCKS, VECTORS, accepted_sets, agreements, backdoor, correlations, mean
from flame.run.config import NAMED
from flame.run.record import RunRecord

REPORTED = {
    "ma": "eval/ma",
    "ba": "eval/ba",
    "benign_recall": "filter/benign_recall",
    "malicious_recall": "filter/malicious_recall",
    "accepted": "filter/accepted",
}  # column -> metric of summary.json
OVER_ALL = (
    "filter/floor",
    "filter/malicious_recall",
    *(f"shadow/{v}/{share}" for v in VECTORS for share in ("benign_recall", "malicious_recall", "accepted")),
    *(f"xray/{block}/distance_share" for block in BLOCKS),
)
DERIVED = ("agreement", "agreement_by_chance", *(f"agreement_{v}" for v in VECTORS))
OF_CLIENTS = (*(f"{what}_{v}" for what in ("skew", "size") for v in VECTORS), "skew_size")
NUMBERS = (*REPORTED, "ba_attacked", "ba_after", *OVER_ALL, *DERIVED, *OF_CLIENTS)
WHOLE = ("seed", "rounds", "mean_of_last")
PROVENANCE = ("commit", "code", "processor", "state_sha256", "identity")
COLUMNS = (*NAMED, "settings", *WHOLE, *NUMBERS, "accepted_sets", *PROVENANCE)
RESULTS = Path(__file__).resolve().parents[2] / "results"
PLACE = [*NAMED, "settings", "seed"]  # no two lines of a file share it


def line(run: RunRecord, swept: Iterable[str], also: Collection[str] = ()) -> dict[str, Any]:
    """A run's values of `COLUMNS`; NaN for all that is measured if it has not finished.

    `also` names what few tables want: `clients` (label skew and size against rejections, which needs the data) and
    `accepted_sets` (a digit per client and round).
    """
    done = run.summary or {}
    measured: dict[str, Any] = dict.fromkeys(NUMBERS, np.nan)
    if run.summary:
        measured |= {column: run.reported(metric) for column, metric in REPORTED.items()}
        measured |= {name: mean(run.metric(name)) for name in OVER_ALL} | backdoor(run) | agreements(run)
        measured |= correlations(run) if "clients" in also else {}
    return {
        **place(run, swept),
        "rounds": run.config["rounds"],
        "mean_of_last": done.get("mean_of_last", 0),
        **measured,
        "accepted_sets": accepted_sets(run) if "accepted_sets" in also else "",
        "commit": run.commit,
        "code": run.environment.get("code") or "",
        "processor": run.environment.get("processor", ""),
        "state_sha256": done.get("state_sha256", ""),
        "identity": run.identity,
    }


def place(run: RunRecord, swept: Iterable[str]) -> dict[str, Any]:
    """A run's values of `PLACE`."""
    others = " ".join(f"{key}={setting(run, key)}" for key in swept if key not in (*NAMED, "seed"))
    return {**{group: run.choices[group] for group in NAMED}, "settings": others, "seed": run.config["seed"]}


def setting(run: RunRecord, key: str) -> str:
    """A swept key of a run as a recipe writes it; `-` where the run has no such key."""
    if key in run.choices:
        return run.choices[key]
    value: Any = run.config
    for part in key.split("."):
        value = value.get(part, "-") if isinstance(value, Mapping) else "-"
    return written(value)


def written(value: Any) -> str:
    """A value as a recipe writes it: 1 for 1.0, null for None."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def csv_of(lines: pd.DataFrame) -> str:
    """One CSV line per run, sorted, nine significant digits."""
    shown = lines.sort_values(PLACE, kind="stable") if len(lines) else lines
    text: str = shown.to_csv(index=False, columns=list(COLUMNS), float_format="%.9g", lineterminator="\n")
    return text


def frame(lines: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Lines with the digits that a file keeps, and a column for each of the keys in `settings`."""
    return parsed(csv_of(pd.DataFrame(list(lines), columns=list(COLUMNS))))


def parsed(text: str) -> pd.DataFrame:
    """What `csv_of` made a text of. A ValueError if the columns are others."""
    texts = {name: str for name in COLUMNS if name not in (*WHOLE, *NUMBERS)}
    numbers: dict[str, Any] = dict.fromkeys(NUMBERS, float) | dict.fromkeys(WHOLE, int)
    head = pd.read_csv(io.StringIO(text), nrows=0).columns
    if list(head) != list(COLUMNS):
        differing = ", ".join(sorted(set(head) ^ set(COLUMNS))) or "their order"
        raise ValueError(f"its columns are not those of every record: {differing}")
    missing = {name: [""] for name in NUMBERS}
    lines = pd.read_csv(io.StringIO(text), dtype=texts | numbers, na_values=missing, keep_default_na=False)
    swept = [dict(word.partition("=")[::2] for word in words.split()) for words in lines["settings"]]
    more = pd.DataFrame(swept, index=lines.index)
    return pd.concat([lines, more[[key for key in more if key not in COLUMNS]]], axis=1)


def read(path: Path) -> pd.DataFrame:
    """The lines of a file; none if it is not there, as before the first run."""
    try:
        return parsed(path.read_text()) if path.exists() else frame([])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
