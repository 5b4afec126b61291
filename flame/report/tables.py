"""Tables of cells: means of the last rounds, in per cent, with 95 % intervals over the seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flame.report.statistics import half_width
from flame.run.record import Array, Cell, RunRecord
from flame.run.text import aligned, one_digit

SHARES = {
    "MA %": "eval/ma",
    "BA %": "eval/ba",
    "benign kept %": "filter/benign_recall",
    "attackers rejected %": "filter/malicious_recall",
}  # column -> metric


def comparison(cells: Sequence[Cell]) -> str:
    """One row per cell, the notes that the numbers need, and the runs that have not finished."""
    header = [*cells[0].labels, "seeds", *SHARES, "accepted"]
    left = len(cells[0].labels)
    table = aligned([header, *(row(cell) for cell in cells)], left)
    pending = [
        f"unfinished: {run.folder.name} ({progress(run)})" for cell in cells for run in cell.runs if not run.summary
    ]
    return "\n".join([table, "", *notes(cells), *pending])


def row(cell: Cell) -> list[str]:
    """The text of one row; a value that no seed has is a dash."""
    done = cell.finished
    seeds = str(len(done)) if len(done) == len(cell.runs) else f"{len(done)} of {len(cell.runs)}"
    shares = [estimate(100 * values(done, metric)) for metric in SHARES.values()]
    accepted = estimate(values(done, "filter/accepted"))
    present = f"{accepted} of {cell.runs[0].config['clients_per_round']}" if done else "-"
    return [*cell.labels.values(), seeds, *shares, present]


def values(runs: Sequence[RunRecord], metric: str) -> Array:
    """[runs] of what summary.json reports, NaN where it is undefined."""
    return np.array([run.reported(metric) for run in runs], dtype=np.float64)


def estimate(sample: Array) -> str:
    """Mean and, of several values, half the width of its 95 % interval; how many count, if some are undefined."""
    known = sample[~np.isnan(sample)]
    if not len(known):
        return "-"
    text = one_digit(float(known.mean()))
    if len(known) > 1:
        text += f" ± {one_digit(half_width(known))}"
    return text if len(known) == len(sample) else f"{text} ({len(known)} of {len(sample)} seeds)"


def notes(cells: Sequence[Cell]) -> list[str]:
    """What the numbers are means of, what the intervals are, and the bound that benign recall must be read against."""
    done = [run for cell in cells for run in cell.finished]
    if not done:
        return []
    last = span(np.array([run.summary["mean_of_last"] for run in done if run.summary]), "")
    ceiling = span(100 * (1 - values(done, "filter/floor")), ".1f")
    text = [f"Mean of the last {last} rounds of each run."]
    if any(len(cell.finished) > 1 for cell in cells):
        text.append("± is half the width of Student's 95 % interval over the seeds.")
    if "nan" not in ceiling:
        text.append(f"A set of n//2 + 1 clients, FLAME's most frequent, holds at most {ceiling} % of the benign ones.")
    return text


def progress(run: RunRecord) -> str:
    """How far an unfinished run came."""
    return f"{run.rounds} of {run.config['rounds']} rounds"


def span(numbers: Array, form: str) -> str:
    """The range of some numbers, or the one that they all are."""
    low, high = format(numbers.min(), form), format(numbers.max(), form)
    return low if low == high else f"{low} to {high}"
