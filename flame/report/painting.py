"""What the figures of the question are put together from: runs side by side, lines, maps, bars and dots."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flame.report.comparison import span
from flame.report.measures import VECTORS, mean
from flame.report.records import written
from flame.report.statistics import half_width
from flame.run import panels
from flame.run.holdings import holdings
from flame.run.record import Array, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Look = tuple[str, str, str]  # colour, line style, marker
DEFENSES: Mapping[str, Look] = {
    "fedavg": (panels.BLACK, ":", "^"),
    "flame_weights_only": (panels.BLUE, "-", "o"),
    "flame_all_state": (panels.VERMILION, "--", "s"),
}
LEAST_SEEDS = 3  # of an interval: that of two is 12.7 standard errors wide to each side
CAPTION_WIDTH = 15  # characters per inch of a small line
BINS = 5  # of equally many clients and rounds, in which the share of the rejected is taken
LEAST = 3  # times sampled, from which on a client's own frequency is drawn
MARKERS = ("o", "s", "^", "D")
SEEDS = "Mean over the seeds with Student's 95 % interval (from 3 seeds on)"


def facts(run: RunRecord) -> dict[str, Any]:
    """What figures tell runs apart by; alpha is infinite where images are dealt out at random, or Dirichlet's."""
    iid = run.choices["partition"] == "iid"
    return {
        **run.settings,
        "attack": run.choices["attack"],
        "defense": run.choices["defense"],
        "alpha": math.inf if iid else float(run.config["partition"].get("alpha", math.nan)),
        "pdr": run.config["attack"].get("poisoned_data_rate"),  # None: the attack poisons no data
        "seed": run.config["seed"],
        "run": run,
    }


def chosen(runs: Sequence[RunRecord], *keys: str, defense: Sequence[str]) -> pd.DataFrame:
    """A line per finished run of these defenses, with `facts`, of which `keys` and the seed tell any two apart.

    A ValueError if there is none, or two of them are alike.
    """
    found = pd.DataFrame([facts(run) for run in runs if run.summary and run.choices["defense"] in defense])
    found = found.dropna(subset=[key for key in keys if key != "pdr"]) if len(found) else found
    if found.empty:
        over = "and partition=iid or dirichlet" if "alpha" in keys else f"and {keys[-1]}"
        raise ValueError(f"no finished run has defense={' or '.join(defense)} {over}")
    if (twice := found.duplicated([*keys, "seed"])).any():
        at = tuple(found[twice].to_dict("records")[0][key] for key in (*keys, "seed"))
        raise ValueError(f"several runs have {(*keys, 'seed')} = {at}: give the folder of one recipe's runs alone")
    return found


def levels(found: pd.DataFrame, key: str) -> list[Any]:
    """The values of a key among runs: attacks with `none` first, alphas from even to skewed, others upwards."""
    values = found[key].unique().tolist()
    if key == "attack":
        return sorted(values, key=lambda name: (name != "none", name))
    return sorted(values, reverse=key == "alpha")


def named(alpha: float) -> str:
    """An alpha on an axis."""
    return "iid" if math.isinf(alpha) else written(alpha)


def step_axis(ax: Axes, values: Sequence[float], name: str) -> None:
    """Equal steps at `values`."""
    ax.set_xticks(range(len(values)), list(map(named, values)))
    ax.set(xlim=(-0.5, len(values) - 0.5), xlabel=name)
    ax.grid(axis="y", alpha=0.3, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def over(ax: Axes, columns: Sequence[Sequence[float]], look: Look, label: str, shift: float, dots: bool) -> None:
    """Mean and interval of each column's values in per cent, `shift` steps aside; `dots`: and every seed."""
    if not np.isfinite([y for column in columns for y in column]).any():
        return  # not run, or undefined as BA without a backdoor
    samples = np.full((max(map(len, columns)), len(columns)), np.nan)
    for place, column in enumerate(columns):
        samples[: len(column), place] = column
    x = np.arange(len(columns), dtype=np.float64) + shift
    if dots:
        ax.plot(np.broadcast_to(x + 0.06, samples.shape).T, samples.T, ".", color=look[0], alpha=0.5, markersize=5)
    interval(ax, x, samples, look, label)


def interval(ax: Axes, x: Array, samples: Array, look: Look, label: str) -> None:
    """The mean over the seeds of `samples` [seeds, points], with Student's 95 % interval from three seeds on.

    NaN is a seed that was not measured there.
    """
    color, style, marker = look
    known = [column[~np.isnan(column)] for column in samples.T]
    centre = np.array([mean(column) for column in known])
    half = np.array([half_width(column) if len(column) >= LEAST_SEEDS else np.nan for column in known])
    ax.errorbar(x, centre, half, fmt=style, color=color, marker=marker, markersize=5, capsize=4, label=label)


def bars(ax: Axes, found: pd.DataFrame, alphas: Sequence[float], blocks: Sequence[str]) -> None:
    """A stacked bar of block shares for each alpha; shares of a tenth and more are written into it."""
    below = np.zeros(len(alphas))
    for block in blocks:
        color, name = panels.BLOCKS[block]
        runs = [found.loc[found["alpha"] == alpha, "run"] for alpha in alphas]
        share = 100 * np.array([mean(np.array([over_rounds(run, share_of(block)) for run in here])) for here in runs])
        ax.bar(range(len(alphas)), share, bottom=below, color=color, width=0.7, label=name)
        for x, (low, height) in enumerate(zip(below, share, strict=True)):
            if height >= 10:
                ink = "white" if color == panels.BLUE else "black"
                ax.text(x, low + height / 2, f"{height:.0f}", ha="center", va="center", color=ink, fontsize="small")
        below = below + np.nan_to_num(share)
    step_axis(ax, alphas, "Dirichlet alpha (smaller: more skewed)")
    ax.set(ylim=(0, 100), ylabel="% of squared distance")
    ax.set_axisbelow(True)
    ax.label_outer()


def phase(ax: Axes, found: pd.DataFrame, alphas: Sequence[float], rates: Sequence[float]) -> AxesImage:
    """A square for each alpha and poisoned data rate, with the mean BA in it."""
    ba = found.assign(ba=[100 * run.reported("eval/ba") for run in found["run"]])
    means = ba.pivot_table("ba", "alpha", "pdr", "mean").reindex(index=alphas, columns=rates).to_numpy()
    image = ax.imshow(means, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(means):
        text, ink = ("-", "black") if np.isnan(value) else (f"{value:.0f}", "white" if value < 50 else "black")
        ax.text(x, y, text, ha="center", va="center", color=ink)
    ax.set_xticks(range(len(rates)), [f"{100 * rate:g}" for rate in rates])
    ax.set_yticks(range(len(alphas)), [named(alpha) for alpha in alphas])
    ax.set(xlabel="PDR, % of a malicious client's samples", ylabel="Dirichlet alpha")
    return image


def draw_rejections(runs: Sequence[RunRecord]) -> Figure:
    """Are the clients that a vector rejects those with unusual labels? A row per attack, a column per vector, a colour
    per alpha: benign clients of undefended runs. A ValueError without such a run, or without its data.
    """
    found = chosen(runs, "attack", "alpha", defense=["fedavg"])
    attacks, alphas = levels(found, "attack"), levels(found, "alpha")
    figure = panels.new_figure(11, 3.4 * len(attacks) + 1.4)
    axes = figure.subplots(len(attacks), len(VECTORS), squeeze=False, sharex=True, sharey=True)
    for row, attack in zip(axes, attacks, strict=True):
        here = found[found["attack"] == attack]
        floor = 100 * float(np.mean([over_rounds(run, "filter/floor") for run in here["run"]]))
        for ax, scope in zip(row, VECTORS, strict=True):
            for index, alpha in enumerate(alphas):
                if len(these := here.loc[here["alpha"] == alpha, "run"]):
                    label = f"alpha {named(alpha)}" if np.isfinite(alpha) else "iid"
                    draw_frequencies(ax, these, scope, index, label)
            ax.axhline(floor, color="black", linestyle=":", linewidth=1.5, label="least, with n//2 + 1 accepted")
            ax.set(title=f"vector {scope}, attack: {attack}", ylabel="rejected, % of its rounds", ylim=(-4, 104))
            ax.set(xlabel="label skew of the client (total variation, 0 to 1)")
            ax.grid(alpha=0.3, linewidth=0.5)
            ax.spines[["top", "right"]].set_visible(False)
            ax.label_outer()
    panels.shared_legend(figure)
    text = (
        f"Small dots: benign clients sampled at least {LEAST} times in a run. Lines: all benign clients of all rounds "
        f"in {BINS} bins of equally many, the share rejected. {SEEDS}. Shadow verdicts on undefended runs' updates."
    )
    captioned(figure, text, found, "attack", "alpha")
    return figure


def draw_frequencies(ax: Axes, runs: Sequence[RunRecord], scope: str, index: int, label: str) -> None:
    """Dots and the binned line of one alpha; all seeds share the bins."""
    color, style = panels.line_style(index)
    tables = [benign_rounds(run, scope) for run in runs]
    edges = np.quantile(np.concatenate([skew for _, skew, _ in tables]), np.linspace(0, 1, BINS + 1))
    shares, centres = np.full((2, len(tables), BINS), np.nan)
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


def over_rounds(run: RunRecord, metric: str) -> float:
    """Mean over the rounds that have it."""
    return mean(run.metric(metric))


def share_of(block: str) -> str:
    """The X-ray metric of one block."""
    return f"xray/{block}/distance_share"


def captioned(figure: Figure, text: str, found: pd.DataFrame, *keys: str) -> None:
    """Below the figure: what is drawn, of how many seeds for each value of `keys`, and what the runs were."""
    what = {f"{run.choices['dataset']}, {run.choices['model']}" for run in found["run"]}
    size = {f"{run.config['rounds']} rounds of {run.config['clients_per_round']} clients" for run in found["run"]}
    seeds = found.groupby(list(keys), dropna=False).size().to_numpy()
    count = f"n = {span(seeds, '')} {'seed' if seeds.max() == 1 else 'seeds'} for each {', '.join(keys)}"
    facts = f"{count}; {'; '.join([*sorted(what), *sorted(size)])}."
    width = int(CAPTION_WIDTH * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(f"{text} {facts}", width), x=0.01, ha="left", fontsize="small")
