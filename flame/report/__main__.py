"""`python -m flame.report RUNS...`: compare recorded runs in one table and one figure.

    python -m flame.report RUNS... --out FILE.md|.csv|.tex       the table into a file, too
    python -m flame.report compare RUNS... --by defense --metric ma,ba    arms set against each other, seed by seed
    python -m flame.report check RUN                             is its final model the published one?
    python -m flame.report html RUNS...                          one page to look through every round of them
    python -m flame.report figures RUNS...                       the figures that the question is answered with
    python -m flame.report dashboard ...                         a saved W&B workspace

For those who maintain the project:

    python -m flame.report check                 are the tables in the documents those of results/?
    python -m flame.report publish NAME RUNS...  put a recipe's runs into results/, and what is made of them everywhere
    python -m flame.report publish               make all of that anew from results/
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd

from flame.report import figures, page
from flame.report.comparison import against_published, compare, comparison, left_out, notes, printed
from flame.report.curves import draw_comparison
from flame.report.markup import write
from flame.report.published import outdated, publish, rewrite
from flame.round.checkpoint import write_atomically
from flame.run.build import ConfigError
from flame.run.figure import FIGURE
from flame.run.record import Cell, read_cells, read_run

COMPARISON = "comparison.png"
JOINED = (
    "‡ joins runs of different code (environment.json: `code`, or else `commit`).",
    "A part of your own is code, too: beside runs without it, runs with it have the mark.",
)
Parser = argparse.ArgumentParser
METRICS = "of summary.json, or ma, ba, benign_recall, malicious_recall, accepted, admitted; default: %(default)s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the first word says; the exit code: 1 where something is wrong with what was given or found, else 0."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = ["check"] if words == ["--check"] else words
    try:
        return VERBS[words[0]](words[1:]) if words and words[0] in VERBS else report(words)
    except (OSError, ValueError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1


def report(words: Sequence[str]) -> int:
    """The table first: whatever becomes of the figure, it stands."""
    parser = of_runs("", str(__doc__))
    parser.add_argument("--figure", type=Path, metavar="FILE", help=f"default: {COMPARISON} beside the runs")
    given = parser.parse_args(words)
    cells, damaged = read_cells(given.runs)
    put_out(comparison(cells), len(cells[0].labels), notes(cells), given.out)
    runs = [run.folder for cell in cells for run in cell.runs]
    figure = given.figure or Path(os.path.commonpath([folder.absolute().parent for folder in runs]), COMPARISON)
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw_comparison(cells, figure)
        say("", f"figure  {figure}")
    except Exception as error:  # whatever a drawing library, its fonts or its settings raise: the table is there
        print(f"the figure was not drawn: {type(error).__name__}: {error}", file=sys.stderr)
    say(*(f"run     {folder}{f' ({FIGURE})' if (folder / FIGURE).exists() else ''}" for folder in runs))
    return told(damaged)


def set_against(words: Sequence[str]) -> int:
    """`compare`."""
    parser = of_runs(" compare", "Two or more arms set against each other, seed by seed.")
    parser.add_argument("--by", required=True, metavar="KEY", help="what the arms differ in: defense, partition.q, ...")
    parser.add_argument("--metric", default="ma,ba", help=METRICS)
    given = parser.parse_args(words)
    cells, damaged = read_cells(given.runs)
    table = compare(cells, given.by, given.metric.split(","))
    notes = [
        "Differences and 95 % intervals (Student's) of runs that share a seed; p: exact sign-flip test, from 6 seeds",
        f"on; Holm: corrected for all {len(table)} rows.",
        *(sentence for cell in cells for sentence in left_out(cell)),
    ]
    put_out(table, list(table.columns).index("first"), notes, given.out)
    return told(damaged)


def put(words: Sequence[str]) -> int:
    """`publish`."""
    parser = Parser(prog="python -m flame.report publish", description="Put a recipe's runs into results/.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a recipe; without: make all tables anew")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="run folders, or folders that contain some")
    parser.add_argument("--drop", action="store_true", help="published lines whose run is not given go")
    parser.add_argument("--latex", action="store_true", help="the tables in LaTeX, too, from now on")
    given = parser.parse_args(words)
    if given.name and not given.runs:
        parser.error("give RUNS beside the name of the recipe")
    if not given.name:
        say(*rewrite())
        return 0
    cells, damaged = read_cells(given.runs)
    say(*publish(given.name, cells, drop=given.drop, tex=given.latex))
    return told(damaged, cells)


def check(words: Sequence[str]) -> int:
    """`check`."""
    parser = Parser(prog="python -m flame.report check", description="Compare with what is published.")
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run folder; without: all documents")
    given = parser.parse_args(words)
    said, good = against_published(read_run(given.run)) if given.run else (found := outdated(), not found)
    say(*said)
    return 0 if good else 1


def html(words: Sequence[str]) -> int:
    """`html`."""
    parser = of_runs(" html", str(page.__doc__), "default: report.html", Path("report.html"))
    given = parser.parse_args(words)
    cells, damaged = read_cells(given.runs)
    content = page.page(cells).encode()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, content)
    say(f"page    {given.out} ({len(content) / 1e6:.1f} MB)")
    return told(damaged, cells)


def drawn(words: Sequence[str]) -> int:
    """`figures`; the exit code is 1, too, where no figure can be drawn."""
    parser = of_runs(" figures", str(figures.__doc__), "a folder; default: figures", Path("figures"))
    parser.add_argument("--recipe", metavar="NAME", help="the figures that a recipe names; default: all of the above")
    given = parser.parse_args(words)
    cells, damaged = read_cells(given.runs)
    good = 1
    for figure, reason in figures.draw([run for cell in cells for run in cell.runs], given.out, given.recipe):
        print(reason or figure, file=sys.stderr if reason else sys.stdout)
        good = good if reason else 0
    return told(damaged, cells) or good


def of_runs(verb: str, text: str, out: str = "the table as .md, .csv or .tex, too", path: Path | None = None) -> Parser:
    """What reads runs and makes something."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"python -m flame.report{verb}", description=text, formatter_class=raw)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that contain some")
    parser.add_argument("--out", type=Path, default=path, metavar="PATH", help=out)
    return parser


def put_out(table: pd.DataFrame, left: int, notes: Sequence[str], path: Path | None) -> None:
    """A table, what it needs to be read, and the file that both are in."""
    mixed = any(getattr(cell, "mark", "") for cell in table.to_numpy().flat)
    notes = [*notes, *JOINED * mixed]
    say(printed(table, left), "", *notes)
    if path:
        write(table, path, notes)
        say(f"table   {path}")


def told(damaged: Sequence[str], cells: Sequence[Cell] = ()) -> int:
    """The exit code, once the damaged runs are named, and of `cells` what stands for nothing."""
    for sentence in (*(one for cell in cells for one in left_out(cell)), *damaged):
        print(sentence, file=sys.stderr)
    return 1 if damaged else 0


def say(*lines: str) -> None:
    """Print at once. What nobody reads, as behind `| head`, ends nothing."""
    try:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


VERBS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "compare": set_against,
    "publish": put,
    "check": check,
    "html": html,
    "figures": drawn,
    "dashboard": lambda words: int(import_module("flame.run.trackers.dashboard").main(words)),  # wants a package
}

if __name__ == "__main__":
    sys.exit(main())
