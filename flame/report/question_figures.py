"""The figures of the question: what the two vectors reject, cost and let through, over alpha, attack and PDR.

Each takes the runs of one recipe and returns a figure, or raises ValueError if they do not hold what it shows.
Shadow verdicts are taken from undefended runs (`fedavg`), so that both vectors judge the very same updates.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flame.report.samples import (
    DEFENSES,
    VECTORS,
    Runs,
    alpha_axis,
    captioned,
    chosen,
    levels,
    named,
    of,
    over_alpha,
)
from flame.run import panels
from flame.run.record import Array, RunRecord

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 110
ACCURACIES = {"eval/ma": "MA, % of clean test images", "eval/ba": "BA, % of triggered test images"}


def draw_benign_recall(runs: Runs) -> Figure:
    """Benign clients that each vector accepts over alpha, beside the most in a bare majority; a panel per attack."""
    runs = chosen(runs, "attack", "alpha", defense="fedavg")
    attacks, alphas = levels(runs, "attack"), levels(runs, "alpha")
    figure = new_figure(4.2 * len(attacks) + 0.5, 5)
    for ax, attack in zip(figure.subplots(1, len(attacks), squeeze=False, sharey=True)[0], attacks, strict=True):
        here = of(runs, attack=attack)
        for shift, (scope, look) in zip((-0.08, 0.08), VECTORS.items(), strict=True):
            over_alpha(
                ax,
                here,
                alphas,
                partial(over_rounds, metric=f"shadow/{scope}/benign_recall"),
                look,
                f"vector {scope}",
                shift,
            )
        most = 1 - np.mean([over_rounds(run, "filter/floor") for run in here])
        ax.axhline(100 * most, color="black", linestyle=":", linewidth=1.5, label="most among n//2 + 1 clients")
        ax.set(title=f"attack: {attack}", ylabel="benign clients accepted, %")
        alpha_axis(ax, alphas)
        ax.label_outer()
    shared_legend(figure)
    captioned(
        figure,
        "Shadow verdicts on the updates of undefended runs, mean over all rounds of a run. Mean over the seeds with "
        "Student's 95 % interval (from 3 seeds on); small dots: seeds.",
        runs,
        "attack",
        "alpha",
    )
    return figure


def draw_accuracies(runs: Runs) -> Figure:
    """MA and BA of the runs that each vector defends, and of undefended ones, over alpha; a column per attack."""
    runs = chosen([run for run in runs if run.choices["defense"] in DEFENSES], "attack", "alpha", "defense")
    attacks, alphas = levels(runs, "attack"), levels(runs, "alpha")
    figure = new_figure(4.2 * len(attacks) + 0.5, 8.5)
    axes = figure.subplots(2, len(attacks), squeeze=False, sharey="row")
    for row, (metric, name) in zip(axes, ACCURACIES.items(), strict=True):
        for ax, attack in zip(row, attacks, strict=True):
            here = of(runs, attack=attack)
            ax.set(title=f"attack: {attack}")
            alpha_axis(ax, alphas)
            if np.isnan([run.reported(metric) for run in here]).all():
                ax.text(0.5, 0.5, "no backdoor", transform=ax.transAxes, ha="center")
                continue
            for shift, (defense, look) in zip((-0.12, 0, 0.12), DEFENSES.items(), strict=True):
                if these := of(here, defense=defense):
                    over_alpha(ax, these, alphas, partial(RunRecord.reported, name=metric), look, defense, shift)
        row[0].set_ylabel(name)
    axes[1, 0].set_ylim(-3, 103)
    shared_legend(figure)
    last = sorted({run.summary["mean_of_last"] for run in runs if run.summary})
    captioned(
        figure,
        f"Mean of the last {', '.join(map(str, last))} rounds of a run. Mean over the seeds with Student's 95 % "
        "interval (from 3 seeds on); small dots: seeds.",
        runs,
        "attack",
        "alpha",
        "defense",
    )
    return figure


def draw_xray(runs: Runs) -> Figure:
    """The share of each block in the squared distances of undefended rounds: over alpha and attack, and over rounds."""
    runs = chosen(runs, "attack", "alpha", defense="fedavg")
    attacks, alphas = levels(runs, "attack"), levels(runs, "alpha")
    blocks = [block for block in panels.BLOCKS if any(share_of(block) in run.metrics for run in runs)]
    figure = new_figure(max(3.4 * len(alphas), 4.2 * len(attacks)), 8.5)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    above.suptitle("Mean over all rounds, by alpha")
    below.suptitle(f"Over rounds (attack: {attacks[0]}), by alpha")
    for ax, attack in zip(above.subplots(1, len(attacks), squeeze=False, sharey=True)[0], attacks, strict=True):
        bars(ax, of(runs, attack=attack), alphas, blocks)
        ax.set(title=f"attack: {attack}")
    for ax, alpha in zip(below.subplots(1, len(alphas), squeeze=False, sharey=True)[0], alphas, strict=True):
        here = of(runs, attack=attacks[0], alpha=alpha)
        if here:
            rounds = min((run.metrics["round"] for run in here), key=len)
            shares = {b: np.mean([run.metric(share_of(b))[: len(rounds)] for run in here], axis=0) for b in blocks}
            panels.distance_shares(ax, rounds, shares)
        ax.set(title=f"alpha: {named(alpha)}")
        ax.label_outer()
    shared_legend(figure)
    captioned(
        figure,
        "Share of each block of the model in the summed squared distances between all updates of a round, BatchNorm's "
        "statistics included; undefended runs, mean over the seeds.",
        runs,
        "attack",
        "alpha",
    )
    return figure


def draw_phases(runs: Runs) -> Figure:
    """BA over alpha and PDR as a map for each defense."""
    runs = chosen([run for run in runs if run.choices["defense"] in DEFENSES], "attack", "alpha", "defense", "pdr")
    runs = [run for run in runs if run.config["attack"].get("poisoned_data_rate") is not None]
    attacks, rates = levels(runs, "attack"), levels(runs, "pdr")
    if len(rates) < 2:
        raise ValueError(f"the runs have the poisoned data rates {rates}: a map needs two at least")
    defenses = [defense for defense in DEFENSES if of(runs, defense=defense)]
    figure = new_figure(4.2 * len(defenses) + 1, 3.6 * len(attacks) + 1)
    axes = figure.subplots(len(attacks), len(defenses), squeeze=False, sharex=True, sharey=True)
    for row, attack in zip(axes, attacks, strict=True):
        for ax, defense in zip(row, defenses, strict=True):
            image = phase(ax, of(runs, attack=attack, defense=defense), levels(runs, "alpha"), rates)
            ax.set_title(f"{defense}, {attack}")
            ax.label_outer()
    figure.colorbar(image, ax=axes, label="BA, % of triggered test images")
    captioned(figure, "Mean over the seeds; -: not run.", runs, "attack", "alpha", "defense", "pdr")
    return figure


def over_rounds(run: RunRecord, metric: str) -> float:
    """Mean over the rounds that have it."""
    values = run.metric(metric)
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan


def share_of(block: str) -> str:
    """The X-ray metric of one block."""
    return f"xray/{block}/distance_share"


def bars(ax: Axes, runs: Runs, alphas: list[float], blocks: list[str]) -> None:
    """A stacked bar of block shares for each alpha; shares of a tenth and more are written into it."""
    below = np.zeros(len(alphas))
    for block in blocks:
        color, name = panels.BLOCKS[block]
        means = [[over_rounds(run, share_of(block)) for run in of(runs, alpha=alpha)] or [np.nan] for alpha in alphas]
        share: Array = 100 * np.array([np.mean(column) for column in means])
        ax.bar(range(len(alphas)), share, bottom=below, color=color, width=0.7, label=name)
        for x, (low, height) in enumerate(zip(below, share, strict=True)):
            if height >= 10:
                ink = "white" if color == panels.BLUE else "black"
                ax.text(x, low + height / 2, f"{height:.0f}", ha="center", va="center", color=ink, fontsize="small")
        below = below + np.nan_to_num(share)
    alpha_axis(ax, alphas)
    ax.set(ylim=(0, 100), ylabel="% of squared distance")
    ax.set_axisbelow(True)
    ax.label_outer()


def phase(ax: Axes, runs: Runs, alphas: list[float], rates: list[float]) -> AxesImage:
    """A square for each alpha and poisoned data rate, with the mean BA in it."""
    found = [[[100 * run.reported("eval/ba") for run in of(runs, alpha=a, pdr=r)] for r in rates] for a in alphas]
    means = np.array([[np.mean(values) if values else np.nan for values in row] for row in found])
    image = ax.imshow(means, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (y, x), mean in np.ndenumerate(means):
        text, ink = ("-", "black") if np.isnan(mean) else (f"{mean:.0f}", "white" if mean < 50 else "black")
        ax.text(x, y, text, ha="center", va="center", color=ink)
    ax.set_xticks(range(len(rates)), [f"{100 * rate:g}" for rate in rates])
    ax.set_yticks(range(len(alphas)), [named(alpha) for alpha in alphas])
    ax.set(xlabel="PDR, % of a malicious client's images", ylabel="Dirichlet alpha")
    return image


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def shared_legend(figure: Figure) -> None:
    """One legend above for all axes; what several of them name stands in it once."""
    entries: dict[str, Artist] = {}
    for ax in figure.axes:
        entries |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries), frameon=False)
