"""Standard output and error that end no run: what nobody reads any more (`| head`, `>&-`) is dropped."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

UNREAD = (errno.EPIPE, errno.EIO)  # the reader has gone; the terminal has


def keep_going() -> None:
    """Make both last as long as the process; harmless when called again."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed; the next file that is opened must not take its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        stream = getattr(sys, name)
        if stream is None or (isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Lasting)):
            setattr(sys, name, Lasting(number, stream))


class Lasting(io.TextIOWrapper):
    """A text stream on a descriptor whose end nobody notices."""

    def __init__(self, number: int, before: Any) -> None:
        if before is not None:
            before.flush()
        raw = _Raw(number, "w", closefd=False)
        lines = name_of(before, "line_buffering", False) or number == 2  # as Python has it
        super().__init__(
            io.BufferedWriter(raw),
            encoding=name_of(before, "encoding", "utf-8"),
            errors=name_of(before, "errors", "backslashreplace"),
            line_buffering=lines,
        )


class _Raw(io.FileIO):
    """A file that takes everything once it is broken."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in UNREAD:
                raise
            return len(content)


def name_of(stream: Any, attribute: str, otherwise: Any) -> Any:
    """An attribute of a stream that may be missing."""
    return otherwise if stream is None else getattr(stream, attribute)
