"""`python -m flame.arena`: the board on the terminal, and anew in docs/leaderboard.md.

    python -m flame.arena            from results/arena/*.csv: the board, docs/leaderboard.md and its figure
    python -m flame.arena --check    are they those of results/arena?

A row is added by copying its file, which `python train.py --config-name recipe/arena/row defense=NAME` writes, there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from flame.arena.board import board, heat, printed, shown
from flame.arena.contest import published
from flame.arena.figure import draw_heat, drawn, source
from flame.arena.lines import LINES, VERSION
from flame.report.contrasts import MIXED
from flame.report.markup import markdown
from flame.round.checkpoint import write_atomically

ROOT = LINES.parents[1]
PAGE, FIGURE = Path("docs", "leaderboard.md"), Path("docs", "figures", "arena.png")
ENDS = "<!-- board -->", "<!-- end: board -->"
MARKS = re.compile(rf"(?<=^{ENDS[0]}\n).*?(?=^{ENDS[1]}$)", re.DOTALL | re.MULTILINE)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 1 where the page is not of the lines, or a file of lines is wrong, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m flame.arena", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is not of the lines")
    given = parser.parse_args(arguments)
    try:
        lines = published(root / "results" / "arena")
        if lines.empty:
            raise ValueError("results/arena holds no row: python train.py --config-name recipe/arena/row")
        page, table = renewed((root / PAGE).read_text(), lines), heat(lines)
        if given.check:
            return check(root, page, source(table))
        write_atomically(root / PAGE, page.encode())
        draw_heat(table, root / FIGURE)
        print(printed(board(lines)))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def check(root: Path, page: str, figure: str) -> int:
    """Whether the page's text and what its figure draws (`source`) are those there; in words, and as an exit code."""
    left = [PAGE] * ((root / PAGE).read_text() != page) + [FIGURE] * (drawn(root / FIGURE) != figure)
    print(f"not of results/arena: {', '.join(map(str, left))}" if left else "page and figure are of results/arena")
    return int(bool(left))


def renewed(page: str, lines: pd.DataFrame) -> str:
    """The page with the board of `lines` between its marks; a ValueError if it has no such place, or two."""
    text, places = MARKS.subn(lambda _: section(lines), page)
    if places != 1:
        raise ValueError(f"{PAGE} has {places} boards; it must have the lines {' and '.join(ENDS)} once")
    return text


def section(lines: pd.DataFrame) -> str:
    """What stands between the page's marks: the board, and whose runs it is of."""
    commits = ", ".join(sorted({commit[:7] + "+" * commit.endswith("+") for commit in lines["commit"]}))
    seeds = ", ".join(map(str, sorted(set(lines["seed"]))))
    text = markdown(shown(board(lines)))
    mixed = f" {MIXED.strip()}: of other code or processors than what it is compared with." * (MIXED in text)
    return f"{text}\nArena {VERSION}; {len(lines):,} runs; seed {seeds}; commit {commits}.{mixed}\n"


if __name__ == "__main__":
    sys.exit(main())
