"""From the runs of a sweep to rows: a file for each that is whole, and the board with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pandas as pd

from flame.arena.board import board, printed
from flame.arena.contest import HOME, again, amiss, changed, own, published, recipe
from flame.arena.lines import COLUMNS, CONTROL, LINES, REFERENCE, csv_of, line_of, one_kind, read
from flame.round.checkpoint import write_atomically
from flame.run.compose import ConfigError
from flame.run.record import read_run
from flame.run.text import duration

Chosen = Callable[..., Mapping[str, Any]]  # overrides of the defense -> its node


def entries(notes: Iterable[Mapping[str, Any]], chosen: Chosen, part: str) -> tuple[pd.DataFrame, list[str]]:
    """A line for each run that ended well by a sweep's `notes`, and a sentence about each that is none of the arena."""
    lines, refused = [], list[str]()
    for folder, words in {note["folder"]: note["words"] for note in notes if not note["error"]}.items():
        keys = own(words)
        try:
            run = read_run(Path(folder))
            if not run.summary:
                raise ValueError(f"{folder} has not finished: the same command goes on")
            if differing := changed(run, chosen(f"defense={run.choices['defense']}", *keys.values()), part):
                raise ValueError(f"{folder} is no run of the arena: {differing}")
            lines.append(line_of(run, [*keys]))
        except (ValueError, ConfigError) as error:
            refused.append(str(error))
    return pd.DataFrame(lines, columns=COLUMNS), refused


def written(lines: pd.DataFrame, place: Path, part: str) -> tuple[dict[str, Path], list[str]]:
    """Defense -> file in `place`, of those whose row is whole; and a sentence about each defense."""
    files, said, home = dict[str, Path](), [], Path("results/arena") / HOME[part]
    for defense, row in lines.groupby("defense", sort=False):
        if wrong := amiss(row, recipe(str(defense), part).plan):
            said.append(f"{defense}: no whole row, {wrong}")
            continue
        files[str(defense)] = file = place / f"{quote_plus(str(defense), safe='=')}.csv"
        write_atomically(file, csv_of(row).encode())
        said.append(f"{defense}: {file}; copied to {home} it is on the board (python -m flame.arena)")
    return files, said


def beside(files: Mapping[str, Path], part: str) -> str:
    """The board with the rows of these files, in words; where a defense is tuned, they and averaging's alone.

    Raises:
        ValueError: a published file is not as `published` wants it.
    """
    known = published(LINES, part)
    if part == "tune":
        known = known[known["defense"].isin([REFERENCE, CONTROL])]
    both = pd.concat([known[~known["defense"].isin(files)], read(files.values())], ignore_index=True)
    if missing := {REFERENCE, CONTROL} - set(both["defense"]):
        return f"no board yet: nothing can be compared before the rows of {' and '.join(sorted(missing))} are there"
    return printed(board(one_kind(both, again(LINES))), files)


def forecast(runs: int, at_once: int, part: str) -> str:
    """How long so many runs will take, from what those of the board took."""
    known = read(sorted((LINES / HOME[part]).glob("*.csv")))
    if known.empty:
        return f"{runs} runs, {at_once} at a time; no row is on the board yet: --estimate measures what they cost"
    each = known.groupby("attack")["run_seconds"].median().mean()  # of a run that was halted in between, too
    return f"{runs} runs, {at_once} at a time: about {duration(each * runs / at_once)} where the board was made"
