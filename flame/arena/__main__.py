"""`python -m flame.arena`: the board on the terminal, and anew in the documents.

    python -m flame.arena            from results/arena/: the board, and the documents' tables and figure
    python -m flame.arena --check    are they those of results/arena?

A row is added by copying its file there. `python train.py --config-name recipe/arena/row defense=NAME` writes it, and
says where it goes; so do the other parts of the arena, recipe/arena/tune and recipe/arena/fashion.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from flame.arena.board import VECTORS, board, heat, printed, shown, tuned, vectors
from flame.arena.contest import PARTS, published
from flame.arena.figure import draw_heat, drawn, source
from flame.arena.lines import CONTROL, LINES, REFERENCE, VERSION
from flame.report.contrasts import MIXED
from flame.report.markup import markdown
from flame.round.checkpoint import write_atomically

ROOT = LINES.parents[1]
FIGURE = Path("docs", "figures", "arena.png")
TABLES = {  # mark -> the page where it stands, the part of the arena whose lines it is made of, and how
    "board": (Path("docs", "leaderboard.md"), "row", lambda lines: shown(board(lines))),
    "vectors": (Path("docs", "evidence", "later_attacks.md"), "row", vectors),
    "fashion": (Path("docs", "leaderboard.md"), "fashion", lambda lines: shown(board(lines))),
    "tuned": (Path("docs", "evidence", "tuned_defenses.md"), "tune", tuned),
}
SHOWN = {"vectors": {REFERENCE, CONTROL, *VECTORS}}  # whose lines, where not all


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 1 where the page is not of the lines, or a file of lines is wrong, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m flame.arena", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is not of the lines")
    given = parser.parse_args(arguments)
    try:
        of = {part: published(root / "results" / "arena", part) for part in PARTS}
        if of["row"].empty:
            raise ValueError("results/arena holds no row: python train.py --config-name recipe/arena/row")
        pages = renewed(root, of)
        table = heat(of["row"])
        if given.check:
            return check(root, pages, source(table))
        for page, text in pages.items():
            write_atomically(root / page, text.encode())
        draw_heat(table, root / FIGURE)
        print(printed(board(of["row"])))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def check(root: Path, pages: Mapping[Path, str], figure: str) -> int:
    """Whether the pages' texts and what the figure draws (`source`) are those there; in words, and as an exit code."""
    left = [page for page, text in pages.items() if (root / page).read_text() != text]
    left += [FIGURE] * (drawn(root / FIGURE) != figure)
    print(f"not of results/arena: {', '.join(map(str, left))}" if left else "pages and figure are of results/arena")
    return int(bool(left))


def renewed(root: Path, of: Mapping[str, pd.DataFrame]) -> dict[Path, str]:
    """Page -> its text with the tables of each part's lines; a ValueError if a table has no place there, or two."""
    pages = {page: (root / page).read_text() for page, _, _ in TABLES.values()}
    for mark, (page, part, _) in TABLES.items():
        pages[page], places = filled(pages[page], mark, section(mark, of[part]))
        if places != 1:
            ends = f"<!-- {mark} --> and <!-- end: {mark} -->"
            raise ValueError(f"{page} has {places} such places; it must have the lines {ends} once")
    return pages


def filled(text: str, mark: str, table: str) -> tuple[str, int]:
    """`text` with `table` between the marks, and how often they are there."""
    place = re.compile(rf"(?<=^<!-- {mark} -->\n).*?(?=^<!-- end: {mark} -->$)", re.DOTALL | re.MULTILINE)
    return place.subn(lambda _: table, text)


def section(mark: str, lines: pd.DataFrame) -> str:
    """What stands between a page's marks: the table, and whose runs it is of."""
    if lines.empty:
        return "Not run yet.\n"
    lines = lines[lines["defense"].isin(SHOWN.get(mark, lines["defense"]))]
    commits = ", ".join(sorted({commit[:7] + "+" * commit.endswith("+") for commit in lines["commit"]}))
    seeds = ", ".join(map(str, sorted(set(lines["seed"]))))
    text = markdown(TABLES[mark][2](lines))
    mixed = f" {MIXED.strip()}: of other code or processors than what it is compared with." * (MIXED in text)
    return f"{text}\nArena {VERSION}; {len(lines):,} runs; seed {seeds}; commit {commits}.{mixed}\n"


if __name__ == "__main__":
    sys.exit(main())
