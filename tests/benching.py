"""What the benchmarks share: the command line, a summary after each case, and every measurement in a CSV file."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
Rows = list[tuple]


def run(
    doc: str | None,
    cases: Collection[str],
    columns: Sequence[str],
    measure: Callable[[str, int], Rows],
    summary: Callable[[Rows], str],
    out: str,
) -> None:
    """Measure the chosen `cases`, print a `summary` of each, write all rows to results/<out>."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases), metavar="CASE", help=", ".join(cases))
    parser.add_argument("--out", type=Path, default=RESULTS / out, metavar="FILE", help="default: %(default)s")
    chosen = parser.parse_args()
    rows: Rows = []
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for case in chosen.cases:
        found = measure(case, chosen.repeats)
        print(summary(found), flush=True)
        rows += found
        with open(chosen.out, "w", newline="") as file:  # after each case: a later one may be cut off
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
