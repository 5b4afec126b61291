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
from flame.arena.figure import draw_heat
from flame.arena.lines import LINES, VERSION, read
from flame.report.contrasts import MIXED
from flame.report.markup import markdown
from flame.round.checkpoint import write_atomically

ROOT = LINES.parents[1]
PAGE, FIGURE = Path("docs", "leaderboard.md"), Path("docs", "figures", "arena.png")
MARKS = re.compile(r"(?<=^<!-- board -->\n).*?(?=^<!-- end: board -->$)", re.DOTALL | re.MULTILINE)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 1 where the page is not of the lines, or a file of lines is wrong, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m flame.arena", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is not of the lines")
    given = parser.parse_args(arguments)
    try:
        lines = read(sorted((root / "results" / "arena").glob("*.csv")))
        if lines.empty:
            raise ValueError("results/arena holds no row: python train.py --config-name recipe/arena/row")
        before = (root / PAGE).read_text()
        after = MARKS.sub(lambda _: section(lines), before)
        if given.check:
            print("the board is that of results/arena" if after == before else f"{PAGE} is not: python -m flame.arena")
            return int(after != before)
        write_atomically(root / PAGE, after.encode())
        draw_heat(heat(lines), root / FIGURE)
        print(printed(board(lines)))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def section(lines: pd.DataFrame) -> str:
    """What stands between the page's marks: the board, and whose runs it is of."""
    commits = ", ".join(sorted({commit[:7] + "+" * commit.endswith("+") for commit in lines["commit"]}))
    seeds = ", ".join(map(str, sorted(set(lines["seed"]))))
    text = markdown(shown(board(lines)))
    mixed = f" {MIXED.strip()}: of other code, or another kind of processor, than averaging's runs." * (MIXED in text)
    return f"{text}\nArena {VERSION}; {len(lines):,} runs; seed {seeds}; commit {commits}.{mixed}\n"


if __name__ == "__main__":
    sys.exit(main())
