"""classes.csv: what the global model answers to the test images of each class, where a run was asked for it.

A line per evaluated round, set and class that the set shows. `correct` counts what the set calls right: for `backdoor`
the attacker's label, so that its accuracy is BA by the class of the image. The rest is the row of a confusion matrix.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flame.federation import Round
from flame.round.checkpoint import RunFolderError, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

CLASSES = "classes.csv"
SHORT = {"clean": "ma", "backdoor": "ba"}  # what the accuracy on a set is called
TITLES = {"clean": "Clean test set: MA by class", "backdoor": "Triggered test set: BA by the true class"}
NUMBERED = 12  # classes, up to which a cell of the confusion matrix has room for its number
WHITE_FROM = 0.5  # share from which a cell is so dark that its number is white


class Recorded(Protocol):
    """What is asked of a run folder that was read (`flame/run/record.py`)."""

    @property
    def folder(self) -> Path:
        """Where it is."""

    @property
    def rounds(self) -> int:
        """Rounds that were played."""

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """summary.json; None if the run has not finished."""


@dataclass(frozen=True)
class Confusion:
    """The answers to one set, all rounds of a mean together."""

    shown: list[int]  # [k] the classes that its images show
    accuracy: NDArray[np.float64]  # [k]
    shares: NDArray[np.float64]  # [k, classes], of the images of a class, by answer; a row adds up to 1


def class_lines(record: Round, header: bool) -> str:
    """The lines of a round, under the header if that is wanted."""
    rows = [{"round": record.number, **row} for row in record.classes]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def class_metric(name: str, label: int | str) -> str:
    """`class/ma/3`: what the accuracy on the images of a class of a set is called in a view."""
    return f"class/{SHORT.get(name, name)}/{label}"


def class_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The accuracies in the lines of a round, as metrics."""
    return {class_metric(row["set"], row["class"]): float(row["accuracy"]) for row in rows}


def read_class_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Round -> the same, of a run folder; nothing where there is no classes.csv."""
    rounds: dict[int, list[dict[str, str]]] = {}
    if (folder / CLASSES).exists():
        for row in csv.DictReader(io.StringIO((folder / CLASSES).read_text())):
            rounds.setdefault(int(row["round"]), []).append(row)
    return {number: class_metrics(rows) for number, rows in rounds.items()}


def cut_classes(path: Path, first_round: int) -> None:
    """Leave the lines of the rounds before `first_round`, and no file if it is 0; RunFolderError if damaged."""
    if not path.exists():
        return
    if first_round == 0:
        path.unlink()
        return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    header, *whole = [line for line in lines if line.endswith("\n")] or [""]  # the last may be torn, the header, too
    try:
        kept = [line for line in whole if int(line.split(",")[0]) < first_round]
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}", "resume=false starts in a new folder") from error
    write_atomically(path, "".join([header, *kept]).encode())


def read_confusions(run: Recorded) -> dict[str, Confusion]:
    """Set -> its answers in the rounds that summary.json is the mean of, the last round if the run has not finished.

    Nothing if the run was not asked for them.

    Raises:
        ValueError: the file is damaged.
    """
    path, last = run.folder / CLASSES, run.summary["mean_of_last"] if run.summary else 1
    if not path.exists():
        return {}
    try:
        rows = [row for row in csv.DictReader(io.StringIO(path.read_text())) if int(row["round"]) >= run.rounds - last]
        names = dict.fromkeys(row["set"] for row in rows)
        return {name: _confusion([row for row in rows if row["set"] == name]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): leave the run out, or run it again") from error


def _confusion(rows: list[dict[str, str]]) -> Confusion:
    answers = [name for name in rows[0] if name.startswith("answered_")]
    shown = sorted({int(row["class"]) for row in rows})
    counts, correct = np.zeros((len(shown), len(answers))), np.zeros(len(shown))
    for row in rows:
        place = shown.index(int(row["class"]))
        counts[place] += [int(row[name]) for name in answers]
        correct[place] += int(row["correct"])
    images = counts.sum(axis=1)
    return Confusion(shown, correct / images, counts / images[:, None])


def draw_classes(figure: Figure | SubFigure, confusions: Mapping[str, Confusion]) -> None:
    """For each set its confusion matrix; the accuracy of a class stands beside its row."""
    axes = np.atleast_1d(figure.subplots(1, len(confusions)))
    for ax, (name, found) in zip(axes, confusions.items(), strict=True):
        ax.imshow(found.shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(title=TITLES.get(name, name), xlabel="answered", ylabel="true class: accuracy")
        ax.set_xticks(range(found.shares.shape[1]) if found.shares.shape[1] <= NUMBERED else [])
        if len(found.shown) > NUMBERED:
            continue
        rows = [f"{label}: {100 * share:.1f} %" for label, share in zip(found.shown, found.accuracy, strict=True)]
        ax.set_yticks(range(len(rows)), rows)
        for row, column in np.argwhere(found.shares >= 0.005).tolist():
            share = found.shares[row, column]
            ink = "white" if share > WHITE_FROM else "black"
            ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize="small", color=ink)
