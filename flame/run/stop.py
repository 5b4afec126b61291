"""A run that is asked to stop ends in order, and not amid what must be whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """What the first SIGTERM or SIGINT does: it ends the run with 128 + signal, but not amid what must be whole."""

    def __init__(self) -> None:
        self._holding, self._asked = False, 0

    def __call__(self, number: int, frame: object) -> None:
        """The handler."""
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not tear the checkpoint of the first
        self._asked = number
        if not self._holding:
            raise SystemExit(128 + number)

    @contextmanager
    def later(self) -> Iterator[None]:
        """A signal that arrives in here waits for the end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            raise SystemExit(128 + self._asked)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT end the run in order: after a checkpoint, and with the trackers closed."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread
        return
    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
