"""What Hydra calls around the sweep of a row (conf/recipe/arena/): how long it takes, first; in the end, the board.

The jobs' processes share nothing but a file in the sweep's folder, as in `flame/run/sweep.py`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from flame.run.config import INCIDENTAL
from flame.run.cores import cores, jobs_at_once
from flame.run.sweep import jobs, parsed
from flame.run.text import duration

log = logging.getLogger(__name__)
SWEPT = ("seed", "partition", "attack", "defense")
MINE = "defense."  # keys of the defense may be given with it


class Row(Callback):
    """Hydra's hooks before a row's sweep, after each of its jobs and after the sweep."""

    def __init__(self) -> None:
        self._ledger: Path | None = None  # the folders of jobs that have ended, a line each; None: this is no row

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Say how long the row will take, or what makes this none."""
        words = config.hydra.overrides.task
        if changed := other_contest(words):
            log.warning("no row of the arena, as %s changes the contest: the runs are made, no board is shown", changed)
            return
        self._ledger = Path(config.hydra.sweep.dir).absolute() / f".arena-{os.getpid()}"
        self._ledger.unlink(missing_ok=True)  # of a sweep that failed, and whose process had this number
        log.info("%s", forecast(len(jobs(config, words)), jobs_at_once(config.hydra.launcher, cores())))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note the folder."""
        if self._ledger is not None:
            with open(self._ledger, "a") as file:
                file.write(f"{config.hydra.runtime.output_dir}\n")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write each whole row into a file, and print the board with it."""
        if self._ledger is None or not self._ledger.exists():
            return
        folders = sorted({Path(folder) for folder in self._ledger.read_text().splitlines()})
        self._ledger.unlink()
        keys = [word.key_or_group.removeprefix(MINE) for word in parsed(config.hydra.overrides.task) if own(word)]
        try:
            print(finish(folders, keys, Path(config.hydra.sweep.dir), fixed(config)))
        except (OSError, ValueError) as error:
            sys.exit(str(error))


def own(word: Any) -> bool:
    """Whether an override is of a key of the defense."""
    return str(word.key_or_group).startswith(MINE)


def other_contest(words: Iterable[str]) -> str | None:
    """The first override that changes results and is no defense, no key of one, and nothing that a row sweeps."""
    for word in parsed([*words]):
        head = re.split(r"[./@]", word.key_or_group)[0]
        if word.key_or_group not in SWEPT and head not in INCIDENTAL and not own(word):
            return str(word.input_line)
    return None


def fixed(config: DictConfig) -> dict[str, list[str]]:
    """What a whole row has: seeds, partitions and attacks, as the recipe sweeps them."""
    swept = config.hydra.sweeper.params
    return {key: [value.strip() for value in str(swept[key]).split(",")] for key in SWEPT[:3]}


def forecast(runs: int, at_once: int) -> str:
    """How long so many runs will take, from what those of the board took."""
    from flame.arena.lines import LINES, read

    known = read(sorted(LINES.glob("*.csv")))
    if known.empty:
        return f"{runs} runs, {at_once} at a time; no row is on the board yet: --estimate measures what they cost"
    each = known.groupby("attack")["run_seconds"].median().mean()  # of a run that was halted in between, too
    return f"{runs} runs, {at_once} at a time: about {duration(each * runs / at_once)} where the board was made"


def finish(folders: Sequence[Path], keys: Sequence[str], place: Path, plan: dict[str, list[str]]) -> str:
    """Files of the rows that are whole, in `place`, and in words the board with them.

    Raises:
        ValueError: a published line is of another version.
    """
    import pandas as pd

    from flame.arena.board import REFERENCE, board, printed
    from flame.arena.lines import COLUMNS, LINES, csv_of, lacking, line_of, read
    from flame.round.checkpoint import write_atomically
    from flame.run.record import read_run

    runs = [read_run(folder) for folder in folders]
    lines = pd.DataFrame([line_of(run, keys) for run in runs if run.summary], columns=COLUMNS)
    whole, said = [], list[str]()
    for defense, row in lines.groupby("defense", sort=False):
        if missing := lacking(row, plan):
            said.append(f"{defense}: no whole row, it lacks {len(missing)} runs, first {missing[0]}")
            continue
        file = place / f"{re.sub(r'[^A-Za-z0-9_=.-]', '_', str(defense))}.csv"
        write_atomically(file, csv_of(row).encode())
        whole.append(defense)
        said.append(f"{defense}: {file}; copied to results/arena it is on the board (python -m flame.arena)")
    known = read(sorted(LINES.glob("*.csv")))
    parts = known[~known["defense"].isin(whole)], lines[lines["defense"].isin(whole)]
    both = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)  # an empty one has no types
    if whole and REFERENCE in set(both["defense"]):
        said = [printed(board(both), whole), "", *said]
    elif whole:
        said.append(f"no board: MA is lost against {REFERENCE}, whose row is missing")
    return "\n".join(said)
