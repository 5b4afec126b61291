"""`results/<table>.csv`: a line per run, with the commit that made it and the hash of its final model.

So any cell of a table can be made again and compared. Shares are in [0, 1] and empty where undefined or not finished.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from flame.run.record import RunRecord


@dataclass(frozen=True)
class Line:
    """What every table knows of a run; the means are those of summary.json, over the last rounds."""

    attack: str
    defense: str
    seed: int
    ma: float
    ba: float
    benign_recall: float
    malicious_recall: float
    accepted: float  # clients per round
    rounds: int
    mean_of_last: int
    commit: str
    processor: str  # empty: not recorded at the time
    state_sha256: str  # empty: the run has not finished
    identity: str

    @classmethod
    def of(cls, run: RunRecord) -> Self:
        """The line of a run."""
        return cls(**common(run))


Kind = TypeVar("Kind", bound=Line)


def common(run: RunRecord) -> dict[str, Any]:
    """The fields of `Line`."""
    summary = run.summary or {}
    return {
        "attack": run.choices["attack"],
        "defense": run.choices["defense"],
        "seed": run.config["seed"],
        "ma": run.reported("eval/ma"),
        "ba": run.reported("eval/ba"),
        "benign_recall": run.reported("filter/benign_recall"),
        "malicious_recall": run.reported("filter/malicious_recall"),
        "accepted": run.reported("filter/accepted"),
        "rounds": run.config["rounds"],
        "mean_of_last": summary.get("mean_of_last", 0),
        "commit": run.commit,
        "processor": run.environment.get("processor", ""),
        "state_sha256": summary.get("state_sha256", ""),
        "identity": run.identity,
    }


def csv_of(kind: type[Kind], records: Sequence[Kind]) -> str:
    """One CSV line per run, under the fields of `kind`; six significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    for record in records:
        writer.writerow("" if v != v else f"{v:.6g}" if isinstance(v, float) else v for v in astuple(record))
    return text.getvalue()


def records_of(text: str, kind: type[Kind]) -> list[Kind]:
    """What `csv_of` made a text of."""
    kinds: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": lambda text: float(text or "nan")}
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [kind(**{f.name: kinds[str(f.type)](row[f.name]) for f in fields(kind)}) for row in rows]


def read(path: Path, kind: type[Kind]) -> list[Kind]:
    """The lines of a file; none if it is not there, as before the first run."""
    return records_of(path.read_text(), kind) if path.exists() else []
