"""The figure that compares cells: accuracies over rounds, and who was accepted."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flame.run import panels
from flame.run.figure import own_settings
from flame.run.record import Array, Cell, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

MOST_CELLS, MAPS_PER_ROW = 9, 3  # more curves and maps in one figure cannot be told apart
LEGEND_WIDTH, TITLE_WIDTH = 140, 42  # characters that fit beside each other


@own_settings()
def draw_comparison(cells: Sequence[Cell], path: Path) -> None:
    """Write MA and BA of each cell over rounds, and a heat map of the accepted sets of its first run, to `path`.

    Of many cells the first nine, which the figure says.
    """
    total, cells = len(cells), cells[:MOST_CELLS]
    map_rows = -(-len(cells) // MAPS_PER_ROW)
    figure = panels.new_figure(13, 5 + 3.8 * map_rows)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[5, 3.8 * map_rows])[:, 0]
    ma, ba = above.subplots(1, 2)
    draw_curves(ma, cells, "eval/ma", "MA, main-task accuracy on clean test samples")
    draw_curves(ba, cells, "eval/ba", "BA, backdoor accuracy on triggered test samples")
    handles, labels = ma.get_legend_handles_labels()
    columns = max(1, min(len(cells), LEGEND_WIDTH // max(map(len, labels))))
    notes = [f"The first {len(cells)} of {total} cells; for others give their runs alone"] * (total > len(cells))
    notes += ["Mean over the seeds; the band is their range"] * any(len(shown(cell)) > 1 for cell in cells)
    above.suptitle("\n".join(notes) or None)
    above.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    draw_maps(below, cells)
    figure.savefig(path)


def draw_curves(ax: Axes, cells: Sequence[Cell], metric: str, title: str) -> None:
    """Mean over a cell's seeds, with a band from the smallest to the largest where there are several."""
    longest = max((rounds for rounds, _ in (over_seeds(cell, metric) for cell in cells)), key=len)
    for index, cell in enumerate(cells):
        color, style = panels.line_style(index)
        rounds, seeds = over_seeds(cell, metric)
        name = f"{cell.name} ({panels.counted(len(seeds), 'seed')}{'' if cell.finished else ', unfinished'})"
        panels.curve(ax, rounds, seeds.mean(0), name, color, style)
        if len(seeds) > 1:
            low, high = 100 * seeds.min(0), 100 * seeds.max(0)
            known = ~np.isnan(low)
            ax.fill_between(rounds[known], low[known], high[known], color=color, alpha=0.2, linewidth=0)
    if not any(np.size(line.get_xdata()) for line in ax.lines):  # e.g. no backdoor
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
    panels.per_cent(ax, title, longest)


def over_seeds(cell: Cell, metric: str) -> tuple[Array, Array]:
    """Rounds [r] and values [seeds, r], up to the last round that all runs of the cell have played."""
    runs = shown(cell)
    rounds = min((run.metrics["round"] for run in runs), key=len)
    return rounds, np.stack([run.metric(metric)[: len(rounds)] for run in runs])


def shown(cell: Cell) -> tuple[RunRecord, ...]:
    """The finished runs; the others only where none is finished."""
    return cell.finished or cell.runs


def draw_maps(figure: SubFigure, cells: Sequence[Cell]) -> None:
    """The accepted sets of the first run of each cell, side by side."""
    rows, columns = -(-len(cells) // MAPS_PER_ROW), min(len(cells), MAPS_PER_ROW)
    axes = figure.subplots(rows, columns, squeeze=False)
    grids = [panels.verdict_grid(shown(cell)[0].acceptance, "accepted") for cell in cells]
    for ax, cell, grid in zip(axes.flat, cells, grids, strict=False):
        run = shown(cell)[0]
        title = textwrap.fill(f"{cell.name}, seed {run.config['seed']}", TITLE_WIDTH)
        panels.heat_map(ax, grid, run.metrics["round"], title)
        ax.set_ylabel("clients, compromised on top")
    for ax in axes.flat[len(cells) :]:
        ax.set_axis_off()
    figure.suptitle("Who was accepted, round by round")
    figure.legend(handles=panels.verdict_legend(grids, dots=False), loc="outside lower center", ncols=4, frameon=False)
