"""The figure of one run, drawn from the files of its folder alone."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flame.round.checkpoint import write_atomically
from flame.run import panels
from flame.run.classes import Confusion, draw_classes, read_confusions
from flame.run.config import NAMED
from flame.run.record import RunRecord, read_run
from flame.run.text import one_digit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FIGURE = "figure.png"
DPI = 110


@contextmanager
def own_settings() -> Iterator[None]:
    """matplotlib with its defaults, for every figure of the project, whatever its user has set elsewhere.

    A matplotlibrc with `text.usetex` wants LaTeX, a style changes sizes, a backend (MPLBACKEND) may not exist at all.
    """
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # reads it, once
    finally:
        os.environ |= {} if chosen is None else {"MPLBACKEND": chosen}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@own_settings()
def draw_run(folder: Path) -> Path:
    """Write `figure.png` into a run folder, finished or not: accuracies, recalls, X-ray and accepted sets by round.

    Where a run was asked for answers by class, their confusion matrices stand below.
    """
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    run = read_run(folder)
    confusions = read_confusions(run)
    heights = [1, 1.25, 1.25] if confusions else [1, 1.25]
    figure = Figure(figsize=(13, 10 / 2.25 * sum(heights)), dpi=DPI, layout="constrained")
    figure.suptitle(headline(run))
    above, below, *last = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    accuracy, recall, xray = above.subplots(1, 3)
    draw_accuracy(accuracy, run)
    draw_recall(recall, run)
    draw_xray(xray, run)
    draw_acceptance(below, run)
    for part in last:
        draw_classes(part, confusions)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(folder / FIGURE, picture.getvalue())  # half a picture would pass for the whole
    return folder / FIGURE


@own_settings()
def acceptance_png(run: RunRecord) -> bytes:
    """A picture of the accepted sets alone."""
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=(11, 5), dpi=DPI, layout="constrained"), io.BytesIO()
    draw_acceptance(figure, run)
    figure.savefig(picture, format="png")
    return picture.getvalue()


@own_settings()
def classes_png(confusions: Mapping[str, Confusion]) -> bytes:
    """The confusion matrices alone."""
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=(11, 5), dpi=DPI, layout="constrained"), io.BytesIO()
    draw_classes(figure, confusions)
    figure.savefig(picture, format="png")
    return picture.getvalue()


def draw_accuracy(ax: Axes, run: RunRecord) -> None:
    """Main-task accuracy and, where there is a backdoor, its accuracy."""
    rounds = run.metrics["round"]
    panels.reported_rounds(ax, run)
    panels.curve(ax, rounds, run.metric("eval/ma"), "MA, clean test samples", panels.BLUE)
    if "eval/ba" in run.metrics:
        panels.curve(ax, rounds, run.metric("eval/ba"), "BA, triggered test samples", panels.VERMILION, "--")
    panels.per_cent(ax, "Accuracy of the global model", rounds)
    panels.legend_below(ax, 2)


def draw_recall(ax: Axes, run: RunRecord) -> None:
    """What the defense did to benign and to malicious clients, and the most that a bare majority could keep."""
    rounds = run.metrics["round"]
    panels.reported_rounds(ax, run)
    panels.curve(ax, rounds, run.metric("filter/benign_recall"), "benign, kept", panels.BLUE)
    if not np.isnan(run.metric("filter/malicious_recall")).all():
        panels.curve(ax, rounds, run.metric("filter/malicious_recall"), "attackers, rejected", panels.VERMILION, "--")
    ceiling = 1 - run.metric("filter/floor")
    panels.curve(ax, rounds, ceiling, "benign, most that n//2 + 1 keep", panels.BLACK, ":", marker="_", size=9)
    panels.per_cent(ax, "Recall of the filter", rounds)
    panels.legend_below(ax, 2)


def draw_xray(ax: Axes, run: RunRecord) -> None:
    """Shares of the blocks in the pairwise distances."""
    shares = {
        b: run.metrics[f"xray/{b}/distance_share"] for b in panels.BLOCKS if f"xray/{b}/distance_share" in run.metrics
    }
    panels.distance_shares(ax, run.metrics["round"], shares)
    panels.legend_below(ax, 2)


def draw_acceptance(figure: Figure | SubFigure, run: RunRecord) -> None:
    """Heat maps of who was accepted: by this run, unless a vector decided the same, and by each clustering vector."""
    grids = {name: panels.verdict_grid(run.acceptance, name) for name in verdict_columns(run)}
    shadows = [grids[f"shadow_{scope}"] for scope in run.shadows if f"shadow_{scope}" in grids]
    compare = len(shadows) == 2 and bool(len(run.acceptance))
    disagree = shadows[0] != shadows[1] if compare else None
    if compare:
        disagree &= ~np.isnan(shadows[0])
    axes = np.atleast_1d(figure.subplots(1, len(grids), sharey=True))
    for ax, (name, title) in zip(axes, verdict_columns(run).items(), strict=True):
        marked = disagree if name.startswith("shadow_") else None
        panels.heat_map(ax, grids[name], run.metrics["round"], title, marked)
        ax.label_outer()
        ax.set_xlabel("round")
    dots = disagree is not None and bool(disagree.any()) and disagree.size <= panels.MOST_DOTS
    handles = panels.verdict_legend(grids.values(), dots)
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)


def verdict_columns(run: RunRecord) -> Mapping[str, str]:
    """Columns of acceptance.csv -> title of their heat map."""
    same = [s for s in run.shadows if (run.acceptance[f"shadow_{s}"] == run.acceptance["accepted"]).all()]
    own = {} if same else {"accepted": f"Accepted by {run.choices['defense']} (this run)"}
    return own | {
        f"shadow_{scope}": f"Vector {scope}" + (" (as this run accepted)" if scope in same else ", on the same updates")
        for scope in run.shadows
    }


def headline(run: RunRecord) -> str:
    """Which run this is and how it ended."""
    title = panels.wrapped([*(run.choices[name] for name in NAMED), f"seed {run.config['seed']}"], per_line=6)
    if not run.summary:
        return f"{title}\nunfinished: {run.rounds} of {run.config['rounds']} rounds"
    shown = {"MA": "eval/ma", "BA": "eval/ba", "benign kept": "filter/benign_recall"}
    known = {name: run.reported(key) for name, key in shown.items() if not np.isnan(run.reported(key))}
    means = ", ".join(f"{name} {one_digit(100 * value)} %" for name, value in known.items())
    return f"{title}\nmean of the last {panels.counted(run.summary['mean_of_last'], 'round')}: {means}"
