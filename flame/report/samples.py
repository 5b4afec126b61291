"""Finished runs picked out and set side by side, as the figures of the question need them: alpha, attack, seed."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flame.report.statistics import half_width
from flame.report.tables import span
from flame.run import panels
from flame.run.record import Array, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Sequence[RunRecord]
Look = tuple[str, str, str]  # colour, line style, marker
VECTORS: Mapping[str, Look] = {"weights_only": (panels.BLUE, "-", "o"), "all_state": (panels.VERMILION, "--", "s")}
DEFENSES: Mapping[str, Look] = {
    "fedavg": (panels.BLACK, ":", "^"),
    "flame_weights_only": VECTORS["weights_only"],
    "flame_all_state": VECTORS["all_state"],
}
LEAST_SEEDS = 3  # of an interval: that of two is 12.7 standard errors wide to each side
CAPTION_WIDTH = 15  # characters per inch of a small line


def alpha_of(run: RunRecord) -> float:
    """Dirichlet's alpha; infinite where images are dealt out at random, NaN for a partition without one."""
    return math.inf if run.choices["partition"] == "iid" else float(run.config["partition"].get("alpha", math.nan))


KEYS: Mapping[str, Callable[[RunRecord], Any]] = {
    "attack": lambda run: run.choices["attack"],
    "defense": lambda run: run.choices["defense"],
    "alpha": alpha_of,
    "pdr": lambda run: run.config["attack"].get("poisoned_data_rate"),  # None: the attack poisons no data
}


def of(runs: Runs, **wanted: Any) -> list[RunRecord]:
    """Those that have all the wanted values of `KEYS`."""
    return [run for run in runs if all(KEYS[key](run) == value for key, value in wanted.items())]


def levels(runs: Runs, key: str) -> list[Any]:
    """The values of a key among runs: attacks with `none` first, alphas from even to skewed, PDRs upwards."""
    found = {KEYS[key](run) for run in runs}
    if key == "attack":
        return sorted(found, key=lambda name: (name != "none", name))
    return sorted(found, reverse=key == "alpha")


def chosen(runs: Runs, *keys: str, **wanted: Any) -> list[RunRecord]:
    """Finished runs with an alpha and the wanted values, of which `keys` and the seed tell any two apart.

    Raises:
        ValueError: there is none, or two of them are alike.
    """
    found = [run for run in of(runs, **wanted) if run.summary and not math.isnan(alpha_of(run))]
    if not found:
        named = "".join(f"{key}={value} and " for key, value in wanted.items())
        raise ValueError(f"no finished run has {named}partition=iid or dirichlet")
    told = Counter((*(KEYS[key](run) for key in keys), run.config["seed"]) for run in found)
    if twice := [name for name, count in told.items() if count > 1]:
        raise ValueError(
            f"several runs have {(*keys, 'seed')} = {twice[0]}: give the folder of one recipe's runs alone"
        )
    return found


def named(alpha: float) -> str:
    """An alpha on an axis."""
    return "iid" if math.isinf(alpha) else f"{alpha:g}"


def interval(ax: Axes, x: Array, samples: Array, look: Look, label: str) -> None:
    """The mean over the seeds of `samples` [seeds, points], with Student's 95 % interval from three seeds on.

    NaN is a seed that was not measured there.
    """
    color, style, marker = look
    known = [column[~np.isnan(column)] for column in samples.T]
    mean = np.array([column.mean() if len(column) else np.nan for column in known])
    half = np.array([half_width(column) if len(column) >= LEAST_SEEDS else np.nan for column in known])
    ax.errorbar(x, mean, half, fmt=style, color=color, marker=marker, markersize=5, capsize=4, label=label)


def over_alpha(
    ax: Axes,
    runs: Runs,
    alphas: Sequence[float],
    value: Callable[[RunRecord], float],
    look: Look,
    label: str,
    shift: float,
) -> None:
    """Mean and interval of `value` in per cent at each of `alphas`, `shift` steps aside, and a dot for every seed."""
    found = [[100 * value(run) for run in of(runs, alpha=alpha)] for alpha in alphas]
    samples = np.full((max(map(len, found)), len(alphas)), np.nan)
    for place, column in enumerate(found):
        samples[: len(column), place] = column
    x = np.arange(len(alphas), dtype=np.float64) + shift
    ax.plot(np.broadcast_to(x + 0.06, samples.shape).T, samples.T, ".", color=look[0], alpha=0.5, markersize=5)
    interval(ax, x, samples, look, label)


def alpha_axis(ax: Axes, alphas: Sequence[float]) -> None:
    """Steps from even to skewed."""
    ax.set_xticks(range(len(alphas)), [named(alpha) for alpha in alphas])
    ax.set(xlim=(-0.5, len(alphas) - 0.5), xlabel="Dirichlet alpha (smaller: more skewed)")
    ax.grid(axis="y", alpha=0.3, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def captioned(figure: Figure, text: str, runs: Runs, *keys: str) -> None:
    """Below the figure: what is drawn, of how many seeds for each value of `keys`, and what the runs were.

    A key is one of `KEYS`, or one of the config.
    """
    seeds = Counter(tuple(KEYS[key](run) if key in KEYS else run.settings.get(key) for key in keys) for run in runs)
    what = {f"{run.choices['dataset']}, {run.choices['model']}" for run in runs}
    size = {f"{run.config['rounds']} rounds of {run.config['clients_per_round']} clients" for run in runs}
    found = np.array(list(seeds.values()))
    count = f"n = {span(found, '')} {'seed' if found.max() == 1 else 'seeds'} for each {', '.join(keys)}"
    facts = f"{count}; {'; '.join([*sorted(what), *sorted(size)])}."
    width = int(CAPTION_WIDTH * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(f"{text} {facts}", width), x=0.01, ha="left", fontsize="small")
