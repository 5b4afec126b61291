"""What a person watching a run sees: one aligned line per round, and a bar on a terminal.

A round has the number that it has in the files, from 0; what counts the rounds that are over says `done`.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flame.federation import Round
from flame.run.text import duration, one_digit

log = logging.getLogger(__name__)
WORTH_A_WARNING = {  # counts of a round, where they are above 0
    "guard/kept_model": "no usable update or a non-finite result: the global model stays as it was",
    "attack/idle": "{:.0f} attackers sent what an honest client could have, or trained on nothing poisoned; attack/idle"
    " counts them in every round",
}


class Progress:
    """A bar on standard error if that is a terminal; a log line per round in any case."""

    def __init__(self, total: int, done: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else what goes to a file would land on the terminal
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("rounds done", total=total, completed=done)
        self._total, self._first = total, done
        self._began = time.monotonic()
        self._warned: set[str] = set()
        self._moved: list[tuple[logging.StreamHandler[Any], TextIO]] = []  # handlers, and where they wrote before

    def __enter__(self) -> Progress:
        before = sys.stdout, sys.stderr
        self._bar.start()  # puts proxies in their place that print above the bar; handlers still hold the originals
        for old, new in zip(before, (sys.stdout, sys.stderr), strict=True):
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is old and new is not old:
                    self._moved.append((handler, old))
                    handler.setStream(new)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._moved:
            handler, stream = self._moved.pop()
            handler.setStream(stream)
        self._bar.stop()

    def show(self, record: Round) -> None:
        """One round done, with what is worth a warning the first time that it happens."""
        for key, sentence in WORTH_A_WARNING.items():
            if (count := record.metrics.get(key, 0)) > 0 and key not in self._warned:
                self._warned.add(key)
                log.warning("round %d: %s", record.number, sentence.format(count))
        seconds = sum(v for k, v in record.metrics.items() if k.startswith("time/"))
        done, width = record.number + 1, len(str(self._total))
        left = (time.monotonic() - self._began) / (done - self._first) * (self._total - done)
        log.info(
            "round %*d  %s  %5.1f s  %*d of %d done, %s left",
            *(width, record.number, headline(record.metrics), seconds, width, done, self._total, duration(left)),
        )
        self._bar.update(self._task, completed=done)


def headline(metrics: Mapping[str, float | None]) -> str:
    """MA, BA, what became of benign clients and of attackers, how many were accepted; a dash where one is undefined."""
    shares = {
        "MA": "eval/ma",
        "BA": "eval/ba",
        "benign kept": "filter/benign_recall",
        "attackers rejected": "filter/malicious_recall",
    }
    parts = [f"{name} {_percent(metrics.get(key))}" for name, key in shares.items()]
    accepted = metrics.get("filter/accepted")
    return "  ".join([*parts, f"clients accepted {accepted:4.1f}" if accepted is not None else "clients accepted    -"])


def _percent(share: float | None) -> str:
    return f"{'-':>5} %" if share is None or math.isnan(share) else f"{one_digit(100 * share):>5} %"
