"""`python -m flame.report html RUNS... --out report.html`: recorded runs as one page that needs nothing but a browser.

`page.html`, beside this file, is the page; here the runs become the JSON that it draws from. Plotly's JavaScript is
written into the page, 4.8 MB, and its content policy forbids every request. A run of 24 rounds with 10 clients adds
7 kB: 216 of them made a page of 6.4 MB.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flame.run.classes import read_confusions
from flame.run.panels import BLOCKS, LINES, VERDICTS
from flame.run.record import Array, Cell, RunRecord
from flame.run.trees import recorded_rounds

TEMPLATE = Path(__file__).with_name("page.html")
REPORTED = {
    "ma": "eval/ma",
    "ba": "eval/ba",
    "benign": "filter/benign_recall",
    "malicious": "filter/malicious_recall",
    "accepted": "filter/accepted",
    "floor": "filter/floor",
}  # name in the page -> metric
MOST_SEEDS = 100  # of a cell, for which the page knows Student's quantile
DIGITS = 4  # significant, of what is drawn; what is tabled is whole


def page(cells: Sequence[Cell]) -> str:
    """The whole document.

    Raises:
        ValueError: Plotly is not installed.
    """
    before, between, after = TEMPLATE.read_text().split("/* inserted by page.py */")
    data = json.dumps(content(cells), default=rounded, separators=(",", ":"), allow_nan=False)
    return "".join([before, plotly(), between, data.replace("<", "\\u003c"), after])  # no string can end the script


def plotly() -> str:
    """Plotly's JavaScript, minified."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ValueError("the page is drawn by Plotly, which is not installed: pip install 'plotly>=5'") from error
    source: str = get_plotlyjs()
    return source


def content(cells: Sequence[Cell]) -> dict[str, Any]:
    """All that the page shows, as JSON holds it."""
    from scipy.stats import t

    return {
        "labels": list(cells[0].labels),
        "cells": [{"name": cell.name, "labels": dict(cell.labels)} for cell in cells],
        "runs": [run_content(run, number) for number, cell in enumerate(cells) for run in cell.runs],
        "blocks": {block: {"color": color, "name": name} for block, (color, name) in BLOCKS.items()},
        "verdicts": [{"color": color, "name": name} for name, color in VERDICTS.items()],  # 2 * compromised + accepted
        "lines": LINES,
        "student": t.ppf(0.975, np.arange(1, MOST_SEEDS)).tolist(),  # by degrees of freedom - 1
    }


def run_content(run: RunRecord, cell: int) -> dict[str, Any]:
    """One run: what it is, what it reports, a list per metric over its rounds, a list per column over its clients."""
    reported = {name: run.reported(metric) for name, metric in REPORTED.items()}
    shares = {block: run.metrics.get(f"xray/{block}/distance_share") for block in BLOCKS}
    return {
        "cell": cell,
        "sweep": run.folder.absolute().parent.name,
        "folder": run.folder.name,
        "seed": run.config["seed"],
        "commit": run.commit,
        "planned": run.config["rounds"],
        "n": run.config["clients_per_round"],
        "last": run.summary["mean_of_last"] if run.summary else None,
        "reported": {name: value if np.isfinite(value) else None for name, value in reported.items()},
        "rounds": run.metrics["round"].astype(int).tolist(),
        "ma": run.metric("eval/ma"),
        "ba": run.metric("eval/ba"),
        "xray": {block: share for block, share in shares.items() if share is not None},
        "vectors": run.shadows,
        "clients": clients(run),
        "recorded": recorded_rounds(run.folder),
        "classes": {name: vars(found) for name, found in read_confusions(run).items()},
    }


def clients(run: RunRecord) -> dict[str, Any]:
    """The columns of acceptance.csv that the page shows, an entry per client and round; yes and no are 1 and 0."""
    shown = ["round", "client", "compromised", "samples", "accepted", *(f"shadow_{scope}" for scope in run.shadows)]
    known = run.acceptance.dtype.names or ()
    columns = {name: run.acceptance[name].tolist() for name in shown if name in known}
    return columns | ({"norm": run.acceptance["norm"]} if "norm" in known else {})


def rounded(values: Array) -> list[Any]:
    """An array as JSON: four significant digits, and null for what is not finite."""
    if values.ndim > 1:
        return [rounded(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]
