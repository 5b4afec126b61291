"""The record of a run: metrics.jsonl, acceptance.csv, summary.json, environment.json, config.yaml in its folder."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flame.federation import Round
from flame.round.checkpoint import RunFolderError, write_atomically
from flame.run.classes import CLASSES, class_lines, cut_classes

METRICS, ACCEPTANCE, SUMMARY = "metrics.jsonl", "acceptance.csv", "summary.json"
CONFIG, CHOICES, ENVIRONMENT = "config.yaml", "choices.json", "environment.json"
SHARES, ACCURACIES = ("filter/", "shadow/", "auc/"), ("eval/ma", "eval/ba")  # may lack a denominator in a round


class RunFiles:
    """Appends a round at a time; a line is written whole and flushed, or not at all."""

    def __init__(self, folder: Path, first_round: int, names: Sequence[str] | None = None) -> None:
        """Open for appending; rounds from `first_round` on, left by an interrupted run, are cut off.

        `names` are the clients', where they have some.

        RunFolderError if the files lack a round before it, or are damaged.
        """
        self.folder, self._names = folder, names
        self._metrics, self._acceptance = folder / METRICS, folder / ACCEPTANCE
        _cut(self._metrics, 0, first_round, lambda line: json.loads(line)["round"])
        _cut(self._acceptance, 1, first_round, lambda line: int(line.split(",")[0]))
        self._classes = folder / CLASSES
        cut_classes(self._classes, first_round)

    def log(self, record: Round) -> None:
        """One line of metrics.jsonl, n lines of acceptance.csv and, where they were counted, answers by class."""
        rows = client_rows(record, self._names)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        if self._acceptance.stat().st_size == 0:
            writer.writeheader()
        writer.writerows(rows)
        _append(self._acceptance, text.getvalue())
        if record.classes:
            self._classes.touch()
            _append(self._classes, class_lines(record, header=self._classes.stat().st_size == 0))
        _append(self._metrics, json.dumps({"round": record.number, **finite_or_none(record.metrics)}) + "\n")

    def sync(self) -> None:
        """Flush to disk: a checkpoint must not survive a power failure that its rounds' lines do not."""
        for path in filter(Path.exists, (self._metrics, self._acceptance, self._classes)):
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def best(self, name: str) -> float:
        """The highest value of a metric so far; 0 if there is none."""
        return max((row[name] for row in read_metrics(self.folder) if row.get(name) is not None), default=0.0)

    def summary(self, last: int, state_sha256: str, extra: Mapping[str, Any]) -> dict[str, Any]:
        """What summary.json is to hold: the mean of the last k rounds of every metric, never a maximum.

        `rounds_counted` says of how many rounds a mean is, where that is fewer than k.
        """
        history = read_metrics(self.folder)
        means, counted = mean_of_last(history, last)
        return {
            "finished": True,
            "rounds": len(history),
            "mean_of_last": min(last, len(history)),
            "state_sha256": state_sha256,
            **extra,
            "metrics": finite_or_none(means),
            "rounds_counted": counted,
        }


def client_rows(record: Round, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """What acceptance.csv says of each client of a round, with the names of those that have some."""
    verdict, updates = record.verdict, record.updates
    norms = updates.geometry.norms("weights_only").tolist()
    factors = [1.0] * len(updates) if verdict.clip_factors is None else verdict.clip_factors.tolist()
    return [
        {
            "round": record.number,
            "client": int(record.cohort.ids[i]),
            "compromised": int(record.cohort.compromised[i]),
            "samples": int(updates.samples[i]),
            "accepted": int(verdict.accepted[i]),
            **{f"shadow_{scope}": int(shadow.accepted[i]) for scope, shadow in record.shadows.items()},
            "weight": f"{float(verdict.weights[i]):.6g}",
            "norm": f"{norms[i]:.9g}",
            "clip_factor": f"{factors[i]:.9g}",
            **({} if names is None else {"name": names[int(record.cohort.ids[i])]}),
        }
        for i in range(len(updates))
    ]


def mean_of_last(history: Sequence[Mapping[str, Any]], last: int) -> tuple[dict[str, float], dict[str, int]]:
    """Mean of each metric over those of the last k rounds that have it, and their number where it is below k.

    A round lacks a metric that it did not measure (eval/* between evaluations) or whose share has no denominator (a
    recall without attackers). Any other null was a NaN or an infinity, such as a diverged loss: the mean is NaN too.
    """
    tail = history[-last:]
    keys = dict.fromkeys(key for row in tail for key in row if key != "round")
    values = {key: [_number(row[key]) for row in tail if key in row and not _undefined(key, row[key])] for key in keys}
    means = {key: sum(found) / len(found) if found else math.nan for key, found in values.items()}
    return means, {key: len(found) for key, found in values.items() if len(found) < len(tail)}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a run; undefined metrics are None. RunFolderError names a damaged line."""
    history = []
    for number, line in enumerate(_lines(folder / METRICS)):
        try:
            history.append({"round": None, **json.loads(line)})
            if history[-1]["round"] != number:
                raise ValueError(f"it is not round {number}")
        except (ValueError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{folder / METRICS}, line {number + 1} is damaged: {error}") from error
    return history


def finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what is undefined becomes null."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _cut(path: Path, header: int, first_round: int, round_of: Callable[[str], int]) -> None:
    """Keep `header` lines and the rounds before `first_round`, which must all be there, in order."""
    lines = _lines(path) if first_round else []
    kept, seen = lines[:header], -1
    for number, line in enumerate(lines[header:], header + 1):
        try:
            found = round_of(line)
            if found not in (seen, seen + 1):
                raise ValueError(f"round {found} follows round {seen}")
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise RunFolderError(
                f"{path}, line {number} is damaged: {error}", "resume=false starts in a new folder"
            ) from error
        if found >= first_round:
            break
        kept.append(line)
        seen = found
    if seen != first_round - 1:
        raise RunFolderError(
            f"{path} ends at round {seen}, the checkpoint at {first_round - 1}", "resume=false starts in a new folder"
        )
    write_atomically(path, "".join(kept).encode())


def _append(path: Path, text: str) -> None:
    """Whole or not at all: a failed write (disk full, a signal) is cut back before the error goes on."""
    size = path.stat().st_size
    try:
        with open(path, "a") as file:
            file.write(text)
    except BaseException:
        os.truncate(path, size)
        raise


def _lines(path: Path) -> list[str]:
    """Complete lines, with their ends; the last is dropped if the process died while writing it."""
    if not path.exists():
        return []
    return [line.decode(errors="replace") + "\n" for line in path.read_bytes().split(b"\n")[:-1]]


def _undefined(key: str, value: float | None) -> bool:
    return value is None and (key.startswith(SHARES) or key in ACCURACIES)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
