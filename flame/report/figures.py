"""`python -m flame.report figures RUNS... --out DIR`: figures of a recipe's runs.

| figure          | shows                                                  | needs                             |
|-----------------|--------------------------------------------------------|-----------------------------------|
| `benign_recall` | benign clients that each vector accepts, and the bound | fedavg over alpha                 |
| `accuracy`      | MA and BA of each defense                              | the three defenses over alpha     |
| `setting`       | MA, BA and filter over PMR, PDR, q, lambda or n        | runs over one of them             |
| `phases`        | BA over alpha and poisoned data rate                   | runs over both, with a backdoor   |
| `xray`          | which block drives the distances                       | fedavg over alpha                 |
| `rejections`    | how often clients are rejected, by their label skew    | fedavg over alpha, and the data   |

Under `figures` a recipe says which of them it has, as `name: {like: setting, x: partition.q}`: with `--recipe NAME`
these are drawn, under their names. What the runs do not hold is left out, with the reason. Shadow verdicts are taken
from undefended runs, so that both vectors judge the very same updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flame.report import painting
from flame.report.measures import VECTORS
from flame.report.recipes import recipes
from flame.run import panels
from flame.run.build import ConfigError
from flame.run.figure import own_settings
from flame.run.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Sequence[RunRecord]
METRICS = {
    "eval/ma": "MA, % of clean test samples",
    "eval/ba": "BA, % of triggered test samples",
    "filter/benign_recall": "benign clients accepted, %",
    "filter/malicious_recall": "malicious clients rejected, %",
    "shadow/{}/benign_recall": "benign clients accepted, %",
}
CURVES = {  # figure -> metrics
    "benign_recall": ["shadow/{}/benign_recall"],
    "accuracy": ["eval/ma", "eval/ba"],
    "setting": ["eval/ma", "eval/ba", "filter/benign_recall", "filter/malicious_recall"],
}
AXES = {
    "alpha": "Dirichlet alpha (smaller: more skewed)",  # of figures that are no `setting`
    "poisoned_model_rate": "PMR, share of malicious clients",
    "attack.poisoned_data_rate": "PDR, share of a malicious client's samples that are poisoned",
    "partition.q": "q, degree of non-IID data",
    "defense.noise.factor": "lambda, noise over clip bound",
    "clients_per_round": "clients in a round",
}


def draw(runs: Runs, folder: Path, recipe: str | None) -> Iterator[tuple[str, str | None]]:
    """Each figure that a recipe names, or all of the above, in a file of its name; and why it is left out, if it is.

    A ValueError if there is no such recipe, or it has a figure of no kind.
    """
    if recipe not in (None, *(known := recipes())):
        raise ValueError(f"there is no recipe {recipe}: known are {', '.join(known)}")
    wanted = known[recipe].own.get("figures", {}) if recipe else {name: {"like": name} for name in FIGURES}
    if strange := [name for name, spec in wanted.items() if spec.get("like") not in FIGURES]:
        raise ValueError(f"figure {strange[0]} of {recipe} must be like one of {', '.join(FIGURES)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in wanted.items():
        try:
            more = {key: value for key, value in spec.items() if key != "like"}
            with own_settings():
                FIGURES[spec["like"]](runs, **more).savefig(folder / f"{name}.png")
            yield f"figure  {folder / f'{name}.png'}", None
        except (ValueError, ConfigError) as error:
            yield name, f"{name} is left out: {error}"


def draw_curves(runs: Runs, of: str, x: str | None = None) -> Figure:
    """A panel for each metric (and attack, over alpha), a line for each defense or vector, over equal steps of `x`.

    A ValueError if the runs do not hold it; of `setting`, if they do not vary exactly one of `AXES`, or not `x`.
    """
    metrics, by_attack = CURVES[of], of != "setting"
    key = "alpha" if by_attack else varied(runs, x)
    defenses = ["fedavg"] if of == "benign_recall" else list(painting.DEFENSES)
    found = painting.chosen(runs, *["attack"] * by_attack, "defense", key, defense=defenses)
    values, attacks = painting.levels(found, key), painting.levels(found, "attack") if by_attack else [""]
    rows, columns = (len(metrics), len(attacks)) if by_attack else (2, 2)
    figure = panels.new_figure(max(4.2 * columns + 0.5, 5), 4 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row")
    for ax, (metric, attack) in zip(axes.flat, product(metrics, attacks), strict=True):
        here = found[found["attack"] == attack] if by_attack else found
        painting.step_axis(ax, values, AXES[key])
        ax.set(title=f"attack: {attack}" if by_attack else "", ylabel=METRICS[metric])
        lines = series(metric)
        for shift, (label, defense, look, value) in zip((-0.1, 0, 0.1), lines, strict=False):
            these = here[here["defense"] == defense]
            found_at = [[100 * value(run) for run in these.loc[these[key] == at, "run"]] for at in values]
            painting.over(ax, found_at, look, label, shift, dots=by_attack)
        if not ax.containers:
            ax.text(0.5, 0.5, "no backdoor", transform=ax.transAxes, ha="center")
        if of == "benign_recall":
            most = 1 - np.mean([painting.over_rounds(run, "filter/floor") for run in here["run"]])
            ax.axhline(100 * most, color="black", linestyle=":", linewidth=1.5, label="most among n//2 + 1 clients")
        elif metric != "eval/ma" or not by_attack:
            ax.set_ylim(-3, 103)
        if by_attack:
            ax.label_outer()
    panels.shared_legend(figure)
    shadows = "Shadow verdicts on the updates of undefended runs, mean over all rounds of a run."
    last = ", ".join(sorted({str(run.summary["mean_of_last"]) for run in found["run"]}))
    what = shadows if of == "benign_recall" else f"Mean of the last {last} rounds of a run."
    text = f"{what} {painting.SEEDS}{'; small dots: seeds' * by_attack}."
    painting.captioned(figure, text, found, *["attack"] * by_attack, "defense", key)
    return figure


def series(metric: str) -> Iterator[tuple[str, str, painting.Look, Callable[[RunRecord], float]]]:
    """Label, defense, look and value of each line: the two vectors of a shadow's metric, else the three defenses."""
    if "{}" in metric:
        for vector in VECTORS:
            value = partial(painting.over_rounds, metric=metric.format(vector))
            yield f"vector {vector}", "fedavg", painting.DEFENSES[f"flame_{vector}"], value
    else:
        for defense, look in painting.DEFENSES.items():
            yield defense, defense, look, partial(RunRecord.reported, name=metric)


def varied(runs: Runs, x: str | None) -> str:
    """The one setting that the finished runs vary."""
    kept = [run for run in runs if run.summary and run.choices["defense"] in painting.DEFENSES]
    keys = [key for key in [*AXES][1:] if len({run.settings[key] for run in kept if key in run.settings}) > 1]
    if len(keys) != 1 or x not in (None, keys[0]):
        found, wanted = ", ".join(keys) or "none", x or "one"
        raise ValueError(f"the finished runs vary {found} of {', '.join(AXES)}: give those of a recipe with {wanted}")
    return keys[0]


def draw_phases(runs: Runs) -> Figure:
    """BA over alpha and PDR as a map for each defense."""
    found = painting.chosen(runs, "attack", "alpha", "defense", "pdr", defense=list(painting.DEFENSES))
    found = found[found["pdr"].notna()]
    attacks, rates, alphas = (painting.levels(found, key) for key in ("attack", "pdr", "alpha"))
    if len(rates) < 2:
        raise ValueError(f"the runs have the poisoned data rates {rates}: a map needs two at least")
    defenses = [defense for defense in painting.DEFENSES if (found["defense"] == defense).any()]
    figure = panels.new_figure(4.2 * len(defenses) + 1, 3.6 * len(attacks) + 1)
    axes = figure.subplots(len(attacks), len(defenses), squeeze=False, sharex=True, sharey=True)
    for row, attack in zip(axes, attacks, strict=True):
        for ax, defense in zip(row, defenses, strict=True):
            here = found[(found["attack"] == attack) & (found["defense"] == defense)]
            image = painting.phase(ax, here, alphas, rates)
            ax.set_title(f"{defense}, {attack}")
            ax.label_outer()
    figure.colorbar(image, ax=axes, label="BA, % of triggered test samples")
    painting.captioned(figure, "Mean over the seeds; -: not run.", found, "attack", "alpha", "defense", "pdr")
    return figure


def draw_xray(runs: Runs) -> Figure:
    """The share of each block in the squared distances of undefended rounds: over alpha and attack, and over rounds."""
    found = painting.chosen(runs, "attack", "alpha", defense=["fedavg"])
    attacks, alphas = painting.levels(found, "attack"), painting.levels(found, "alpha")
    blocks = [block for block in panels.BLOCKS if any(painting.share_of(block) in run.metrics for run in found["run"])]
    figure = panels.new_figure(max(3.4 * len(alphas), 4.2 * len(attacks)), 8.5)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    above.suptitle("Mean over all rounds, by alpha")
    below.suptitle(f"Over rounds (attack: {attacks[0]}), by alpha")
    for ax, attack in zip(above.subplots(1, len(attacks), squeeze=False, sharey=True)[0], attacks, strict=True):
        painting.bars(ax, found[found["attack"] == attack], alphas, blocks)
        ax.set(title=f"attack: {attack}")
    for ax, alpha in zip(below.subplots(1, len(alphas), squeeze=False, sharey=True)[0], alphas, strict=True):
        here = found[(found["attack"] == attacks[0]) & (found["alpha"] == alpha)]["run"]
        if len(here):
            rounds = min((run.metrics["round"] for run in here), key=len)
            shares = {
                b: np.mean([run.metric(painting.share_of(b))[: len(rounds)] for run in here], axis=0) for b in blocks
            }
            panels.distance_shares(ax, rounds, shares)
        ax.set(title=f"alpha: {painting.named(alpha)}")
        ax.label_outer()
    panels.shared_legend(figure)
    text = "Share of each block in the summed squared distances between all updates of a round, BatchNorm's statistics"
    painting.captioned(figure, f"{text} included; undefended runs, mean over the seeds.", found, "attack", "alpha")
    return figure


FIGURES: Mapping[str, Callable[..., Figure]] = {
    **{name: partial(draw_curves, of=name) for name in CURVES},
    "phases": draw_phases,
    "xray": draw_xray,
    "rejections": painting.draw_rejections,
}
