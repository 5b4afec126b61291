"""`python -m flame.report RUNS...`: compare recorded runs in one table and one figure.

`--table NAME` puts them into results/NAME.csv and the tables made from it, `--add` beside the runs that are there;
`--check` compares those with the documents.

    python -m flame.report html RUNS...      one page to look through every round of them
    python -m flame.report figures RUNS...   the figures that the question is answered with
    python -m flame.report dashboard ...     a saved W&B workspace
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from flame.report.catalogue import TABLES
from flame.report.figures import draw_comparison
from flame.report.published import outdated, publish
from flame.report.tables import comparison
from flame.run.build import ConfigError
from flame.run.figure import FIGURE
from flame.run.record import read_cells

COMPARISON = "comparison.png"
COMMANDS = {  # first word -> module with a main
    "html": "flame.report.page",
    "figures": "flame.report.evidence",
    "dashboard": "flame.report.dashboard",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the paths; the exit code: 1 where no run is found or one cannot be read, else 0."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        return int(import_module(COMMANDS[words[0]]).main(words[1:]))
    given = parse(words)
    try:
        if given.check:
            stale = outdated()
            print(*stale, sep="\n", end="\n" if stale else "")
            return 1 if stale else 0
        cells, damaged = read_cells(given.runs)
        left_out = publish(given.table, cells, with_latex=given.latex, add=given.add) if given.table else []
        figure = given.figure or Path(
            os.path.commonpath([run.folder.absolute().parent for cell in cells for run in cell.runs]), COMPARISON
        )
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw_comparison(cells, figure)
    except (OSError, ValueError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    print(comparison(cells))
    print("", f"figure  {figure}", *(run_line(run.folder) for cell in cells for run in cell.runs), sep="\n")
    print(*left_out, *damaged, sep="\n", end="\n" if left_out or damaged else "", file=sys.stderr)
    return 1 if damaged else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flame.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="run folders, or folders that contain some")
    parser.add_argument("--figure", type=Path, metavar="FILE", help=f"default: {COMPARISON} beside the runs")
    parser.add_argument("--table", choices=TABLES, help="also write results/TABLE.csv and the tables made from it")
    parser.add_argument("--add", action="store_true", help="with --table: keep its lines of runs that are not in RUNS")
    parser.add_argument("--latex", action="store_true", help="with --table: those tables in LaTeX, too")
    parser.add_argument("--check", action="store_true", help="only compare the tables in the documents with results/")
    given = parser.parse_args(arguments)
    if bool(given.runs) == given.check:
        parser.error("give RUNS, or --check alone")
    if given.table is None and (given.add or given.latex):
        parser.error("--add and --latex go with --table")
    if given.check and (given.table or given.figure):
        parser.error("--check looks at all tables, and goes with no other option")
    return given


def run_line(folder: Path) -> str:
    """Where a run is, and whether its own figure is there."""
    return f"run     {folder}" + (f" ({FIGURE})" if (folder / FIGURE).exists() else "")


if __name__ == "__main__":
    sys.exit(main())
