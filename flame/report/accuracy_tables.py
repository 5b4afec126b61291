"""The README's tables: MA and BA of attacks and defenses, beside the paper's numbers.

`results/paper.csv` has those, each with its grade: S from a secondary source, M recalled and not verified.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flame.report.markup import Rows
from flame.report.recipes import Plan
from flame.report.records import Line
from flame.report.tables import estimate

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper.csv"
COMPARED = ("fedavg", "flame_weights_only", "flame_all_state")  # the columns of `attacks`


@dataclass(frozen=True)
class Paper:
    """What the paper says of one cell, in per cent; with each number's grade."""

    ma: str
    ba: str

    def __str__(self) -> str:
        return f"{self.ma} / {self.ba}"


def paper(table: str) -> dict[tuple[str, str], Paper]:
    """The paper's cells of one table, by (row, defense)."""
    with open(PAPER, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == table]

    def graded(row: Mapping[str, str], name: str) -> str:
        return f"{row[name]} [{row[f'{name}_grade']}]" if row[name] else "-"

    return {(row["row"], row["defense"]): Paper(graded(row, "ma"), graded(row, "ba")) for row in rows}


def attacks(records: Sequence[Line], _: Plan) -> Rows:
    """MA / BA of every attack under averaging and FLAME, and how many malicious clients the two vectors rejected."""
    header = [
        "attack",
        *(f"`{name}`" for name in COMPARED),
        "malicious rejected: weights / all",
        "paper: none",
        "FLAME",
    ]
    known, rows = paper("attacks"), []
    for name in dict.fromkeys(record.attack for record in records):
        of = {d: [r for r in records if r.attack == name and r.defense == d] for d in COMPARED}
        rejected = " / ".join(share(of[d], "malicious_recall") for d in COMPARED[1:])
        theirs = [str(known.get((name, defense), "-")) for defense in ("fedavg", "flame")]
        rows.append([f"`{name}`", *(accuracies(of[d]) for d in COMPARED), rejected, *theirs])
    return [header, *sorted(rows, key=lambda row: (row[0] != "`none`", row[1].endswith("-"), row[0]))]


def defenses(records: Sequence[Line], _: Plan) -> Rows:
    """MA / BA of every defense, and what became of benign and malicious clients."""
    header = ["defense", "MA / BA", "benign accepted", "malicious rejected", "paper: MA / BA"]
    known, rows = paper("defenses"), []
    for name in dict.fromkeys(record.defense for record in records):
        of = [r for r in records if r.defense == name]
        recalls = [share(of, "benign_recall"), share(of, "malicious_recall")]
        rows.append([f"`{name}`", accuracies(of), *recalls, str(known.get((name, ""), "-"))])
    return [header, *sorted(rows, key=lambda row: (row[0] not in map("`{}`".format, COMPARED), row[0]))]


def accuracies(records: Sequence[Line]) -> str:
    """`MA / BA` in per cent, over the seeds; how many runs are unfinished, if any."""
    if not records:
        return "not run"
    pending = sum(not record.state_sha256 for record in records)
    text = f"{share(records, 'ma')} / {share(records, 'ba')}"
    return f"{text} ({pending} of {len(records)} unfinished)" if pending else text


def share(records: Sequence[Line], name: str) -> str:
    """The mean of one share in per cent, with half the width of its 95 % interval if there are several seeds."""
    return estimate(100 * np.array([getattr(record, name) for record in records], dtype=np.float64))
