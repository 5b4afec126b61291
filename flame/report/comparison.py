"""Any runs compared: a row per cell with its means, and two or more arms of one key set against each other by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from flame.report.contrasts import BOOTSTRAP, INFERENCE, UNITS, Contrast, Text, contrast_rows, lacking
from flame.report.measures import mean
from flame.report.published import ROOT, planned
from flame.report.recipes import recipes
from flame.report.records import REPORTED, place, read
from flame.report.tables import NAMES, framed, of_several
from flame.run.record import Array, Cell, RunRecord
from flame.run.text import aligned

SHARES = {
    "MA %": "eval/ma",
    "BA %": "eval/ba",
    "benign kept %": "filter/benign_recall",
    "attackers rejected %": "filter/malicious_recall",
}  # column -> metric
ADMITTED = "admitted"  # malicious updates that got in, of all attacked rounds
PARTS = ("recall", "precision", "floor", "_share", "eval/ma", "eval/ba")  # in the name of a share; not of a loss
Arms = dict[tuple[str, ...], dict[str, Cell]]  # what all arms of a comparison have in common -> arm -> its cell


def comparison(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per cell; a value that no seed has is a dash."""
    header = [*cells[0].labels, "seeds", *SHARES, "accepted"]
    return framed(header, [row(cell) for cell in cells])


def row(cell: Cell) -> list[str]:
    """The text of one row."""
    done = cell.finished
    seeds = str(len(done)) if len(done) == len(cell.runs) else f"{len(done)} of {len(cell.runs)}"
    shares = [UNITS["per_cent"].estimate(values(done, metric)) for metric in SHARES.values()]
    accepted = UNITS["clients"].estimate(values(done, "filter/accepted"))
    present = f"{accepted} of {cell.runs[0].config['clients_per_round']}" if done else "-"
    return [*cell.labels.values(), Text(seeds, mixed=of_several([lines(cell)])), *shares, present]


def values(runs: Sequence[RunRecord], metric: str) -> pd.Series:
    """Seed -> what summary.json reports, NaN where it is undefined."""
    return pd.Series({run.config["seed"]: run.reported(metric) for run in runs}, dtype=np.float64)


def notes(cells: Sequence[Cell]) -> list[str]:
    """What the numbers are means of, what the intervals are, the bound that benign recall must be read against, and
    which runs are not in them."""
    done, text = [run for cell in cells for run in cell.finished], []
    if done:
        last = span(np.array([run.summary["mean_of_last"] for run in done if run.summary]), "")
        most = span(np.array([100 * (1 - run.reported("filter/floor")) for run in done]), ".1f")
        several = any(len(cell.finished) > 1 for cell in cells)
        text += [f"Mean of the last {last} rounds of each run."]
        text += ["± is half the width of Student's 95 % interval over the seeds."] * several
        limit = f"A set of n//2 + 1 clients, FLAME's most frequent, holds at most {most} % of the benign ones."
        text += [limit] * ("nan" not in most)
    return text + [sentence for cell in cells for sentence in left_out(cell)]


def left_out(cell: Cell) -> list[str]:
    """The runs that no number is of, and why."""
    pending = [run for run in cell.runs if not run.summary]
    said = [f"unfinished: {run.folder.name} ({run.rounds} of {run.config['rounds']} rounds)" for run in pending]
    for run, taken in cell.rivals:
        hashes = {one.summary.get("state_sha256") for one in (run, taken) if one.summary}
        differ = ", and ends in another model" if len(hashes) > 1 else ""
        said.append(f"left out: {run.folder.name}: {taken.folder.name} is of the same config{differ}")
    return said


def span(numbers: Array, form: str) -> str:
    """The range of some numbers, or the one that they all are."""
    low, high = format(numbers.min(), form), format(numbers.max(), form)
    return low if low == high else f"{low} to {high}"


def printed(table: pd.DataFrame, left: int) -> str:
    """A table for a terminal; the first `left` columns flush left."""
    kept = table.drop(columns=BOOTSTRAP, errors="ignore").map(lambda cell: cell + getattr(cell, "mark", ""))
    return aligned([[*kept.columns], *kept.to_numpy().tolist()], left)


def compare(cells: Sequence[Cell], by: str, metrics: Sequence[str]) -> pd.DataFrame:
    """A row for each two values of the key `by`, metric and cell of what else divides the runs: the first minus the
    second, seed by seed. Holm's correction is over all rows. A ValueError if the runs do not differ in `by`, or none
    has such a metric.
    """
    measured = {name for cell in cells for run in cell.finished if run.summary for name in run.summary["metrics"]}
    if strange := [name for name in metrics if name != ADMITTED and REPORTED.get(name, name) not in measured]:
        known = ", ".join([*REPORTED, ADMITTED])
        raise ValueError(
            f"--metric {strange[0]} is in no finished run: must be of {known}, or of those in summary.json"
        )
    found, contrasts = arms(cells, by), []
    others = [key for key in cells[0].labels if key != by and not key.startswith(f"{by}.")]
    for common, of in found.items():
        for (first, one), (second, other) in combinations(of.items(), 2):
            for metric in metrics:
                contrasts.append(contrast((*common, f"{first} minus {second}"), metric, one, other))
    if not contrasts:
        ways = [key for key in cells[0].labels if len({cell.labels[key] for cell in cells}) > 1] or ["nothing"]
        raise ValueError(f"--by {by}: no two cells differ in it alone; these runs differ in {', '.join(ways)}")
    return framed([*others, by, "metric", "first", "second", *INFERENCE], contrast_rows(contrasts))


def arms(cells: Sequence[Cell], by: str) -> Arms:
    """The cells by what they have in common. A setting inside `by`, as defense.noise.factor, belongs to the arm."""
    found: Arms = defaultdict(dict)
    for cell in cells:
        run = cell.runs[0]
        own = {key: value for key, value in cell.labels.items() if key.startswith(f"{by}.") and value != "-"}
        value = cell.labels.get(by, run.choices.get(by, str(run.settings.get(by, "-"))))
        common = tuple(text for key, text in cell.labels.items() if key != by and not key.startswith(f"{by}."))
        found[common][" ".join([value, *(f"{key}={text}" for key, text in own.items())])] = cell
    return found


def contrast(labels: tuple[str, ...], metric: str, one: Cell, other: Cell) -> Contrast:
    """Of two cells, over all seeds that either has."""
    unit = unit_of(metric)
    sides = [pd.Series({run.config["seed"]: value(run, metric) for run in cell.finished}) for cell in (one, other)]
    both = [lines(one), lines(other)]
    seeds = sorted({*both[0].index, *both[1].index})
    missing = lacking(both, seeds)
    mixed = [of_several(both[:1]), of_several(both[1:]), of_several(both)]
    name = NAMES.get(metric, metric) + " %" * (unit == "per_cent")
    found = Contrast((*labels, name), sides, missing, mixed, UNITS[unit])
    missing["undefined"] = len(seeds) - sum(missing.values()) - len(found.differences)
    return found


def value(run: RunRecord, metric: str) -> float:
    """What a run reports of a metric; NaN if it is undefined."""
    if metric == ADMITTED:
        return 1 - mean(run.metric("filter/malicious_recall"))
    return run.reported(REPORTED.get(metric, metric))


def unit_of(metric: str) -> str:
    """Per cent for a share, by its name."""
    name = REPORTED.get(metric, metric)
    share = name == ADMITTED or (not name.endswith("_loss") and any(part in name for part in PARTS))
    return "per_cent" if share else "clients" if name == REPORTED["accepted"] else "number"


def lines(cell: Cell) -> pd.DataFrame:
    """By seed, whether a run has finished and of what code."""
    found = [("yes" if run.summary else "", run.commit, run.environment.get("code") or "") for run in cell.runs]
    seeds = [run.config["seed"] for run in cell.runs]
    return pd.DataFrame(found, index=seeds, columns=["state_sha256", "commit", "code"])


def against_published(run: RunRecord, root: Path = ROOT) -> tuple[list[str], bool]:
    """Sentences about a run's final model beside each published one of the same config, and whether all are equal.

    Where no line has its identity, as of code with fewer settings, those of a recipe's cell that it fits into.
    """
    ours, found = (run.summary or {}).get("state_sha256"), []
    if not ours:
        return [f"{run.folder} has not finished: nothing can be compared yet"], False
    for path in sorted((root / "results").rglob("*.csv")):  # the arena's, too; tables and benchmarks have no identities
        lines = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        found += [(str(path.relative_to(root / "results")), o) for o in lines if o.get("identity") == run.identity]
    for recipe in recipes().values() if not found else ():
        at, file = place(run, recipe.plan), f"{recipe.name}.csv"
        if recipe.options.items() <= run.choices.items() and planned(recipe, at):
            cell = {**at, "rounds": run.config["rounds"]}.items() if not recipe.other_settings(at, run.config) else ()
            lines = read(root / "results" / file).to_dict("records") if cell else []
            found += [(file, one) for one in lines if all(str(one[key]) == str(value) for key, value in cell)]
    said, here = [], f"here commit {run.commit[:7]}, {run.environment.get('processor') or 'processor not recorded'}"
    for file, one in (pair for pair in found if pair[1]["state_sha256"]):
        same = "equal to" if one["state_sha256"] == ours else "DIFFERS from"
        old = "" if one["identity"] == run.identity else f" the same cell, then of identity {one['identity']}, in"
        origin = f"commit {one['commit'][:7]}, {one['processor'] or 'processor not recorded'}"
        said.append(f"{same}{old} results/{file} ({origin}); {here}")
    none = f"none published: no line of results/ is of this config (identity {run.identity})"
    return said or [none], bool(said) and not any(sentence.startswith("DIFFERS") for sentence in said)
