"""Runs as they were recorded: the files of a run folder read back, and gathered into cells that only a seed divides."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from flame.run.config import NAMED, telling, without_seed
from flame.run.folder import IDENTITY, read_json
from flame.run.older import modern
from flame.run.trackers.files import ACCEPTANCE, CHOICES, CONFIG, ENVIRONMENT, METRICS, SUMMARY, read_metrics

Array = NDArray[np.float64]
PLACES = ("dataset.root", "dataset.download")  # where something lies on this machine or comes from, not what it is
LEAST = ("seed", "rounds", "clients_per_round", *NAMED)  # of config.yaml, with what the folder's name is made of
REPORTED = ("mean_of_last", "metrics")  # of summary.json
NO_ROUNDS = np.zeros(0, [(name, np.int64) for name in ("round", "client", "compromised", "accepted")])


@dataclass(frozen=True)
class RunRecord:
    """One run folder."""

    folder: Path
    identity: str
    choices: Mapping[str, str]  # config group -> option
    config: Mapping[str, Any]  # resolved
    environment: Mapping[str, Any]  # commit, versions and machine
    metrics: Mapping[str, Array]  # name -> [rounds], NaN where undefined or not measured; "round" is one of them
    acceptance: NDArray[np.void]  # the columns of acceptance.csv by name, an entry per client and round
    summary: Mapping[str, Any] | None  # summary.json; None if the run has not finished

    @property
    def rounds(self) -> int:
        """Rounds on record."""
        return len(self.metrics["round"])

    @property
    def shadows(self) -> list[str]:
        """Scopes whose verdict on the same updates was recorded."""
        return [
            name.removeprefix("shadow_") for name in self.acceptance.dtype.names or () if name.startswith("shadow_")
        ]

    @property
    def commit(self) -> str:
        """Of the code, `?` where there was no repository; a + for what was not committed."""
        return f"{self.environment['commit'] or '?'}{'+' if self.environment['dirty'] else ''}"

    def metric(self, name: str) -> Array:
        """[rounds], all NaN if the run has no such metric."""
        return self.metrics.get(name, np.full(self.rounds, np.nan))

    def reported(self, name: str) -> float:
        """Mean over the last rounds, as in summary.json; NaN if undefined or not finished."""
        value = self.summary["metrics"].get(name) if self.summary else None
        return np.nan if value is None else float(value)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted key -> value of all that can change a result, but the seed."""
        return {k: v for k, v in flatten(telling(self.config)).items() if k not in (*PLACES, "seed")}


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed, one for each."""

    labels: Mapping[str, str]  # what tells it from the other cells of the report, `defense` in any case
    runs: tuple[RunRecord, ...]  # by seed
    rivals: tuple[tuple[RunRecord, RunRecord], ...] = ()  # runs of equal config that do not count, and which does

    @property
    def name(self) -> str:
        """The labels in a line: options as they are, single settings with their key."""
        return " ".join(value if key in NAMED else f"{key}={value}" for key, value in self.labels.items())

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that a mean may be taken of."""
        return tuple(run for run in self.runs if run.summary)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders among and below `paths`, links followed, sorted, each once however many ways lead to it.

    Raises:
        FileNotFoundError: one of `paths` is missing or holds no run.
    """
    found: dict[Path, Path] = {}  # where it is -> how it was reached
    for path in paths:
        below = [folder for folder in walked(path) if (folder / CHOICES).exists()]
        if not below:
            reason = f"holds no run (a folder with {CHOICES})" if path.exists() else "does not exist"
            raise FileNotFoundError(f"{path} {reason}: give run folders, or a folder that contains some")
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return sorted(found.values())


def walked(top: Path) -> Iterator[Path]:
    """A folder and all below it, through links; each once, on the first way that leads to it."""
    seen = {top.resolve()}
    for place, names, _ in os.walk(top, followlinks=True):
        there = {Path(place, name).resolve(): name for name in sorted(names, reverse=True)}
        names[:], seen = sorted(there[folder] for folder in there.keys() - seen), seen | there.keys()
        yield Path(place)


def read_cells(paths: Iterable[Path]) -> tuple[list[Cell], list[str]]:
    """The runs among and below `paths`, gathered, and a sentence about each folder that cannot be read.

    Raises:
        FileNotFoundError: one of `paths` is missing, or nothing can be read.
    """
    runs, damaged = [], []
    for folder in find_runs(paths):
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            damaged.append(str(error))
    if not runs:
        raise FileNotFoundError("\n".join(damaged))
    return gather(runs), damaged


def read_run(folder: Path) -> RunRecord:
    """What a run folder says, finished or not.

    Raises:
        ValueError: a file is missing, or not what a run writes.
    """
    try:
        summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
        run = RunRecord(
            folder=folder,
            identity=read_json(folder / IDENTITY)["identity"],
            choices=having(NAMED, read_json(folder / CHOICES), CHOICES),
            config=having(LEAST, read_config(folder / CONFIG), CONFIG),
            environment={"commit": None, "dirty": None, **read_json(folder / ENVIRONMENT)},
            metrics=columns(read_metrics(folder)),
            acceptance=read_acceptance(folder / ACCEPTANCE),
            summary=having(REPORTED, summary, SUMMARY) if summary.get("finished") else None,
        )
        if run.summary:
            check_whole(run)
        return run
    except OSError as error:
        reason = f"{Path(error.filename or folder).name}: {error.strerror}"
    except (LookupError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
    raise ValueError(f"{folder} is not a complete run folder ({reason}): leave it out, or run it again")


def having(keys: Iterable[str], content: dict[str, Any], name: str) -> dict[str, Any]:
    """The content of a file; a ValueError if it lacks a key, as YAML that was cut off, which is YAML still."""
    if lacking := [key for key in keys if key not in content]:
        raise ValueError(f"{name} lacks {', '.join(lacking)}")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml; a ValueError if it is no mapping, as a file that was cut off at its start."""
    try:
        config = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} holds no settings")
    return modern(config)


def check_whole(run: RunRecord) -> None:
    """A ValueError unless acceptance.csv has the rounds of metrics.jsonl, each with as many clients, none twice."""
    rounds, clients = np.unique(run.acceptance["round"], return_counts=True)
    twice = len(np.unique(run.acceptance[["round", "client"]])) < len(run.acceptance)
    if not (run.folder / ACCEPTANCE).read_bytes().endswith(b"\n"):
        raise ValueError(f"{ACCEPTANCE} is cut off in its last line")
    if rounds.tolist() != run.metrics["round"].tolist() or len(set(clients.tolist())) > 1 or twice:
        raise ValueError(f"{ACCEPTANCE} lacks or repeats clients or rounds of the {run.rounds} in {METRICS}")


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Rows of metrics as a column each; a null or a missing value becomes NaN."""
    names = dict.fromkeys(["round", *(name for row in rows for name in row)])
    return {name: np.array([row.get(name) for row in rows], dtype=np.float64) for name in names}


def read_acceptance(path: Path) -> NDArray[np.void]:
    """acceptance.csv as a structured array, without a last line that is not whole. A ValueError if it is damaged."""
    try:
        if len(lines := path.read_text().split("\n")[:-1]) < 2:  # nothing under the header
            return NO_ROUNDS
        found = np.genfromtxt(lines, delimiter=",", names=True, dtype=None, ndmin=1, converters={"name": str})
    except ValueError as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error
    if lacking := set(NO_ROUNDS.dtype.names or ()) - set(found.dtype.names or ()):
        raise ValueError(f"{path.name} has no column {', '.join(sorted(lacking))}")
    return found


def gather(runs: Iterable[RunRecord]) -> list[Cell]:
    """Cells in the order of their labels. Of equal runs (`resume=false`) the one of most `weight` counts."""
    alike: dict[str, dict[int, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))  # by all but seed, by seed
    for run in sorted(runs, key=weight):
        key = " ".join([*(run.choices[name] for name in NAMED), without_seed(run.config)])
        alike[key][run.config["seed"]].append(run)
    groups = [tuple(group[seed][-1] for seed in sorted(group)) for group in alike.values()]
    rivals = [tuple((run, same[-1]) for same in group.values() for run in same[:-1]) for group in alike.values()]
    labels = distinguish([group[0] for group in groups])
    return sorted(map(Cell, labels, groups, rivals), key=lambda cell: cell.name)


def weight(run: RunRecord) -> tuple[bool, bool, int, str]:
    """What makes a run count before its equals: its record and its name, not its files' times, which a copy changes."""
    return run.summary is not None, not run.commit.endswith(("+", "?")), run.rounds, run.folder.name


def distinguish(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """What tells each of `runs` from the others: the choices that vary and, where those are equal, single settings."""
    groups = [name for name in NAMED if name == "defense" or len({run.choices[name] for run in runs}) > 1]
    labels = [{name: run.choices[name] for name in groups} for run in runs]
    twins = defaultdict(list)
    for run, label in zip(runs, labels, strict=True):
        twins[tuple(label.values())].append(run)
    keys = sorted({key for same in twins.values() for key in varying([run.settings for run in same])})
    return [label | {k: str(run.settings.get(k, "-")) for k in keys} for run, label in zip(runs, labels, strict=True)]


def varying(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys whose values are not all equal."""
    return {key for one in settings for key in one if any(other.get(key) != one[key] for other in settings)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
