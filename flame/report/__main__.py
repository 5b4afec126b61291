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
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from flame.report.comparison import compare, comparison, left_out, notes, printed
from flame.report.curves import draw_comparison
from flame.report.markup import write
from flame.report.published import outdated, publish, rewrite
from flame.report.records import published
from flame.run.build import ConfigError
from flame.run.figure import FIGURE
from flame.run.record import read_cells, read_run

COMPARISON = "comparison.png"
COMMANDS = {  # first word -> module with a main
    "html": "flame.report.page",
    "figures": "flame.report.figures",
    "dashboard": "flame.run.trackers.dashboard",
}
Parser = argparse.ArgumentParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the first word says; the exit code: 1 where something is wrong with what was given or found, else 0."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        return int(import_module(COMMANDS[words[0]]).main(words[1:]))
    verbs: dict[str, Callable[[Sequence[str]], int]] = {"compare": set_against, "publish": put, "check": check}
    words = ["check"] if words == ["--check"] else words
    try:
        return verbs[words[0]](words[1:]) if words and words[0] in verbs else report(words)
    except (OSError, ValueError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1


def report(words: Sequence[str]) -> int:
    """The table first: whatever becomes of the figure, it stands."""
    parser = of_runs("python -m flame.report", str(__doc__))
    parser.add_argument("--figure", type=Path, metavar="FILE", help=f"default: {COMPARISON} beside the runs")
    given = parser.parse_args(words)
    cells, damaged = read_cells(given.runs)
    table = comparison(cells)
    say(printed(table, len(cells[0].labels)), "", *notes(cells))
    if given.out:
        write(table, given.out)
        say(f"table   {given.out}")
    runs = [run.folder for cell in cells for run in cell.runs]
    figure = given.figure or Path(os.path.commonpath([folder.absolute().parent for folder in runs]), COMPARISON)
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw_comparison(cells, figure)
        say("", f"figure  {figure}")
    except Exception as error:  # whatever a drawing library, its fonts or its settings raise: the table is there
        print(f"the figure was not drawn: {type(error).__name__}: {error}", file=sys.stderr)
    say(*(f"run     {folder}{f' ({FIGURE})' if (folder / FIGURE).exists() else ''}" for folder in runs))
    print(*damaged, sep="\n", end="\n" if damaged else "", file=sys.stderr)
    return 1 if damaged else 0


def set_against(words: Sequence[str]) -> int:
    """`compare`."""
    parser = of_runs("python -m flame.report compare", "Two or more arms set against each other, seed by seed.")
    parser.add_argument("--by", required=True, metavar="KEY", help="what the arms differ in: defense, partition.q, ...")
    parser.add_argument("--metric", default="ma,ba", help="of summary.json, or ma, ba, benign_recall, malicious_recall,"
                        " accepted, admitted; default: %(default)s")  # fmt: skip
    given = parser.parse_args(words)
    cells, damaged = read_cells(given.runs)
    table = compare(cells, given.by, given.metric.split(","))
    say(printed(table, len(table.columns) - 8), "")
    say(
        "Differences and 95 % intervals (Student's) of runs that share a seed; p: exact sign-flip test, from 6 seeds on;"
    )
    say(f"Holm: corrected for all {len(table)} rows.", *(text for cell in cells for text in left_out(cell)))
    if given.out:
        write(table, given.out)
        say(f"table   {given.out}")
    print(*damaged, sep="\n", end="\n" if damaged else "", file=sys.stderr)
    return 1 if damaged else 0


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
    say(*publish(given.name, cells, drop=given.drop, tex=given.latex), *damaged)
    return 1 if damaged else 0


def check(words: Sequence[str]) -> int:
    """`check`."""
    parser = Parser(prog="python -m flame.report check", description="Compare with what is published.")
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run folder; without: all documents")
    given = parser.parse_args(words)
    found, good = against_published(given.run) if given.run else (outdated(), False)
    say(*found)
    return 1 if found and not good else 0


def against_published(folder: Path) -> tuple[list[str], bool]:
    """Sentences about a run's final model beside each published one of the same config, and whether all are equal."""
    run = read_run(folder)
    ours = (run.summary or {}).get("state_sha256")
    if not ours:
        return [f"{folder} has not finished: nothing can be compared yet"], False
    lines = [(name, line) for name, line in published(run.identity) if line["state_sha256"]]
    said = []
    for name, line in lines:
        same = line["state_sha256"] == ours
        where = f"results/{name}.csv (commit {line['commit'][:7]}, {line['processor'] or 'processor not recorded'})"
        here = f"here commit {run.commit[:7]}, {run.environment.get('processor') or 'processor not recorded'}"
        said.append(f"{'equal to' if same else 'DIFFERS from'} {where}; {here}")
    none = [f"none published: no line of results/ has the identity {run.identity}"]
    return said or none, bool(lines) and all(line["state_sha256"] == ours for _, line in lines)


def of_runs(prog: str, text: str) -> Parser:
    """What reads runs and makes a table."""
    parser = Parser(prog=prog, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that contain some")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table as .md, .csv or .tex, too")
    return parser


def say(*lines: str) -> None:
    """Print at once. What nobody reads, as behind `| head`, ends nothing."""
    try:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
