"""What Hydra calls around a sweep of conf/recipe/arena/: how long it takes, first; in the end, the board."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from flame.run.compose import composed_here
from flame.run.config import plain
from flame.run.cores import cores, jobs_at_once
from flame.run.sweep import SweepReport, jobs, read_ledger

log = logging.getLogger(__name__)


class Row(SweepReport):
    """A sweep that reports rows, too; its jobs do without pandas, which is imported where the sweep starts and ends.

    `part` of the arena: `row`; `tune`, with fewer runs on a seed of its own; or `fashion`, on other data.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part
        self._row = False  # whether there is to be one

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Say how long the row will take, or what makes this none."""
        super().on_multirun_start(config)
        from flame.arena.contest import other_contest
        from flame.arena.entry import forecast

        words = dict.fromkeys(chain.from_iterable(jobs(config, config.hydra.overrides.task)))
        if changed := other_contest(words, self._part):
            log.warning("no row of the arena, as %s changes the contest: the runs are made, no board is shown", changed)
            return
        self._row = True
        log.info("%s", forecast(self._jobs, jobs_at_once(config.hydra.launcher, cores()), self._part))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write each whole row into a file and print the board with it; then list the failures, as in any sweep.

        Exits with 1 if a job failed, a run is not of the arena, or a published file is wrong.
        """
        well = True
        try:
            if self._row and self._ledger and self._ledger.exists():
                well = conclude(read_ledger(self._ledger), config, self._part)
        except Exception:  # a fault of ours: Hydra would make a warning of it, and exit with 0
            log.exception("no board, by a fault of this code: the runs are kept, and the same command tries again")
            well = False
        finally:
            super().on_multirun_end(config)
        if not well:
            sys.exit(1)


def conclude(notes: Sequence[Mapping[str, Any]], config: DictConfig, part: str) -> bool:
    """Files and board of a sweep's runs; whether none was refused and there is nothing against a board."""
    from flame.arena.entry import beside, entries, written

    lines, refused = entries(notes, chosen(config), part)
    try:
        files, said = written(lines, Path(config.hydra.sweep.dir), part)
        print("\n".join([*refused, *said]))
        if files:
            print(beside(files, part))
    except (OSError, ValueError) as error:
        log.error("no board: %s", error)
        return False
    return not refused


def chosen(config: DictConfig) -> Any:
    """`chosen("defense=krum", "defense.keep=3")`: the defense's node, as the command line's conf folders have it."""
    search = [word for word in config.hydra.overrides.hydra if word.lstrip("+").startswith("hydra.searchpath")]

    @cache
    def node(*words: str) -> Any:
        composition = composed_here(GlobalHydra.instance().config_loader(), [*search, *words], "recipe/arena/row")
        return plain(composition, resolve=False)["defense"]

    return node
