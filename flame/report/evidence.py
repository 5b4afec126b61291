"""`python -m flame.report figures RUNS... --out DIR`: a recipe's figures, those of the question among them.

| file                | shows                                                  | needs                             |
|---------------------|--------------------------------------------------------|-----------------------------------|
| `benign_recall.png` | benign clients that each vector accepts, and the bound | fedavg over alpha                 |
| `accuracy.png`      | MA and BA of each defense                              | the three defenses over alpha     |
| `xray.png`          | which block drives the distances                       | fedavg over alpha                 |
| `rejections.png`    | how often clients are rejected, by their label skew    | fedavg over alpha, and the data   |
| `phases.png`        | BA over alpha and poisoned data rate                   | runs over both, with a backdoor   |
| `setting.png`       | MA, BA and filter over PMR, PDR, q, lambda or n        | runs over one of them             |

A figure that the runs do not hold is left out, with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flame.report.question_figures import draw_accuracies, draw_benign_recall, draw_phases, draw_xray
from flame.report.setting_figure import draw_setting
from flame.report.skew_figure import draw_rejections
from flame.run.build import ConfigError
from flame.run.figure import own_settings
from flame.run.record import read_cells

FIGURES = {
    "benign_recall": draw_benign_recall,
    "accuracy": draw_accuracies,
    "xray": draw_xray,
    "rejections": draw_rejections,
    "phases": draw_phases,
    "setting": draw_setting,
}  # name of the file -> what draws it


def main(arguments: Sequence[str]) -> int:
    """Draw what can be drawn; the exit code: 1 where nothing can be or a run is damaged, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m flame.report figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that contain some")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        cells, damaged = read_cells(given.runs)
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    runs, drawn = [run for cell in cells for run in cell.runs], 0
    for name, draw in FIGURES.items():
        try:
            with own_settings():
                draw(runs).savefig(given.out / f"{name}.png")
        except (ValueError, ConfigError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        print(f"figure  {given.out / f'{name}.png'}")
        drawn += 1
    print(*damaged, sep="\n", end="\n" if damaged else "", file=sys.stderr)
    return 1 if damaged or not drawn else 0
