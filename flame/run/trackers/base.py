"""What a view of a run is. The run folder's files are the record; a view may fail or be absent."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flame.federation import Round

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What identifies a run to people and dashboards."""

    name: str  # the run folder's name
    folder: Path
    identity: str
    config: Mapping[str, Any]  # resolved
    choices: Mapping[str, str]  # config group -> option, e.g. defense -> flame_all_state
    sweep: str  # what the jobs of one command share; the run's own name for a single run
    code: str = ""  # hash of all code that runs; of each, joined by +, where the run went on under another


class Tracker(Protocol):
    """Opened once per run, then called in this order."""

    def start(self, info: RunInfo, first_round: int) -> None:
        """Before the first round; `first_round` > 0 when a run is resumed."""

    def log(self, record: Round) -> None:
        """After each round."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """After the last round, when all files are written."""

    def close(self, exit_code: int) -> None:
        """At the end of the process' interest in the run, however it ended."""


class NoView:
    """No view beside the files."""

    def start(self, info: RunInfo, first_round: int) -> None:
        """Nothing."""

    def log(self, record: Round) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self, exit_code: int) -> None:
        """Nothing."""


@contextmanager
def dispensable(what: str) -> Iterator[None]:
    """What fails in here is one warning.

    Only for what is made from a complete record, or closed after it. That may fail in any way that matplotlib, fonts, a
    service or somebody's own view can, so the catch is broad: a finished run is worth more than any of them.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        log.warning(
            "%s failed (%s: %.300s); the record of the run is complete without it", what, type(error).__name__, text
        )
