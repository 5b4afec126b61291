"""Accuracies and filter over the one setting that a recipe sweeps: PMR, PDR, q, lambda, clients in a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flame.report.question_figures import new_figure, shared_legend
from flame.report.samples import DEFENSES, Runs, captioned, interval
from flame.report.setting_tables import written
from flame.run.record import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "poisoned_model_rate": "PMR, share of malicious clients",
    "attack.poisoned_data_rate": "PDR, share of a malicious client's images that are poisoned",
    "partition.q": "q, degree of non-IID data",
    "defense.noise.factor": "lambda, noise over clip bound",
    "clients_per_round": "clients in a round",
}
METRICS = {
    "eval/ma": "MA, % of clean test images",
    "eval/ba": "BA, % of triggered test images",
    "filter/benign_recall": "benign clients accepted, %",
    "filter/malicious_recall": "malicious clients rejected, %",
}
SHIFTS = (-0.1, 0, 0.1)


def draw_setting(runs: Runs) -> Figure:
    """A panel for each share over the setting, whose values stand at equal steps; a line for each defense.

    Raises:
        ValueError: the runs do not differ in exactly one of those settings, beside defense and seed.
    """
    runs = [run for run in runs if run.summary and run.choices["defense"] in DEFENSES]
    varied = [key for key in AXES if len({run.settings[key] for run in runs if key in run.settings}) > 1]
    if len(varied) != 1:
        found = ", ".join(varied) or "none"
        raise ValueError(f"the finished runs vary {found} of {', '.join(AXES)}: give those of a recipe that varies one")
    key = varied[0]
    runs = [run for run in runs if key in run.settings]
    told = Counter((run.choices["defense"], run.settings[key], run.config["seed"]) for run in runs)
    if twice := [place for place, count in told.items() if count > 1]:
        raise ValueError(f"several runs have defense, {key}, seed = {twice[0]}: give runs that vary nothing else")
    values = sorted({run.settings[key] for run in runs})
    figure = new_figure(11, 8)
    for ax, (metric, name) in zip(figure.subplots(2, 2).flat, METRICS.items(), strict=True):
        for shift, (defense, look) in zip(SHIFTS, DEFENSES.items(), strict=True):
            if these := [run for run in runs if run.choices["defense"] == defense]:
                x = np.arange(len(values), dtype=np.float64) + shift
                interval(ax, x, samples(these, key, values, metric), look, defense)
        dress(ax, values, AXES[key], name)
    shared_legend(figure)
    last = ", ".join(sorted({str(run.summary["mean_of_last"]) for run in runs if run.summary}))
    text = (
        f"Mean of the last {last} rounds of a run. Mean over the seeds with Student's 95 % interval (from 3 seeds on)."
    )
    captioned(figure, text, runs, "defense", key)
    return figure


def samples(runs: Runs, key: str, values: Sequence[float], metric: str) -> Array:
    """[seeds, values] in per cent; NaN where a seed was not run."""
    seeds = sorted({run.config["seed"] for run in runs})
    found = np.full((len(seeds), len(values)), np.nan)
    for run in runs:
        found[seeds.index(run.config["seed"]), values.index(run.settings[key])] = 100 * run.reported(metric)
    return found


def dress(ax: Axes, values: Sequence[float], name: str, share: str) -> None:
    """Steps at the swept values, per cent upwards."""
    ax.set_xticks(range(len(values)), list(map(written, values)))
    ax.set(xlim=(-0.5, len(values) - 0.5), ylim=(-3, 103), xlabel=name, ylabel=share)
    ax.grid(axis="y", alpha=0.3, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
