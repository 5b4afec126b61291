"""Are the clients that a vector rejects those with unusual labels? Rejection frequency against label skew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flame.report.holdings import holdings
from flame.report.question_figures import new_figure, over_rounds, shared_legend
from flame.report.samples import VECTORS, Runs, captioned, chosen, interval, levels, named, of
from flame.run import panels
from flame.run.record import Array, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 5  # of equally many clients and rounds, in which the share of the rejected is taken
LEAST = 3  # times sampled, from which on a client's own frequency is drawn
MARKERS = ("o", "s", "^", "D")


def draw_rejections(runs: Runs) -> Figure:
    """A row per attack, a column per vector, a colour per alpha: benign clients of undefended runs.

    Raises:
        ValueError: there is no such run, or its data are not where they were.
    """
    runs = chosen(runs, "attack", "alpha", defense="fedavg")
    attacks, alphas = levels(runs, "attack"), levels(runs, "alpha")
    figure = new_figure(11, 3.4 * len(attacks) + 1.4)
    axes = figure.subplots(len(attacks), len(VECTORS), squeeze=False, sharex=True, sharey=True)
    for row, attack in zip(axes, attacks, strict=True):
        here = of(runs, attack=attack)
        floor = 100 * float(np.mean([over_rounds(run, "filter/floor") for run in here]))
        for ax, scope in zip(row, VECTORS, strict=True):
            for index, alpha in enumerate(alphas):
                if these := of(here, alpha=alpha):
                    draw_frequencies(ax, these, scope, index, f"alpha {named(alpha)}" if np.isfinite(alpha) else "iid")
            ax.axhline(floor, color="black", linestyle=":", linewidth=1.5, label="least, with n//2 + 1 accepted")
            ax.set(
                title=f"vector {scope}, attack: {attack}", xlabel="label skew of the client (total variation, 0 to 1)"
            )
            ax.set(ylabel="rejected, % of its rounds", ylim=(-4, 104))
            ax.grid(alpha=0.3, linewidth=0.5)
            ax.spines[["top", "right"]].set_visible(False)
            ax.label_outer()
    shared_legend(figure)
    captioned(
        figure,
        f"Small dots: benign clients sampled at least {LEAST} times in a run. Lines: all benign clients of all rounds "
        f"in {BINS} bins of equally many, the share rejected; mean over the seeds with Student's 95 % interval (from 3 "
        "seeds on). Shadow verdicts on the updates of undefended runs.",
        runs,
        "attack",
        "alpha",
    )
    return figure


def draw_frequencies(ax: Axes, runs: Runs, scope: str, index: int, label: str) -> None:
    """Dots and the binned line of one alpha; all seeds share the bins."""
    color, style = panels.line_style(index)
    tables = [benign_rounds(run, scope) for run in runs]
    edges = np.quantile(np.concatenate([skew for _, skew, _ in tables]), np.linspace(0, 1, BINS + 1))
    shares, centres = np.full((2, len(runs), BINS), np.nan)
    for seed, (clients, skew, rejected) in enumerate(tables):
        often = [clients == client for client in np.unique(clients) if (clients == client).sum() >= LEAST]
        dots = np.array([(skew[own][0], 100 * rejected[own].mean()) for own in often]).reshape(-1, 2)
        ax.plot(*dots.T, ".", color=color, alpha=0.25, markersize=6, markeredgewidth=0)
        place = np.searchsorted(edges[1:-1], skew, side="right")  # [entries] in 0..BINS - 1
        for k in np.unique(place):
            shares[seed, k], centres[seed, k] = 100 * rejected[place == k].mean(), skew[place == k].mean()
    filled = ~np.isnan(shares).all(0)  # equal skews leave bins empty
    look = (color, style, MARKERS[index % len(MARKERS)])
    interval(ax, np.nanmean(centres[:, filled], 0), shares[:, filled], look, label)


def benign_rounds(run: RunRecord, scope: str) -> tuple[Array, Array, Array]:
    """An entry per round and benign client in it: its number, its label skew, and 1.0 where the vector rejected it."""
    rows = run.acceptance[run.acceptance["compromised"] == 0]
    return rows["client"], holdings(run).skew[rows["client"]], 1.0 - rows[f"shadow_{scope}"]
