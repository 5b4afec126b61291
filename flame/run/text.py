"""Seconds, shares and tables in words that a person reads."""

from __future__ import annotations

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`: two figures or so, which is all that a forecast can promise."""
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def one_digit(value: float) -> str:
    """`71.2` for 71.25, and for what differs from it by less than a rounding error: ties go to the even digit.

    The report's page does the same, so that a number is the same in a table, in a figure and there.
    """
    return f"{round(value, 9):.1f}"


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of text under a header row; the first `left` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])
