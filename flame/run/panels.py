"""The panels that figures are put together from: each draws one thing on one axes.

Colours are those of Okabe and Ito (2008), told apart with any colour vision; what a colour says is also said by a line
style, a lightness or a place. Rounds count from 0, as in the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flame.run.record import Array, RunRecord

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
STYLES = ("-", "--", "-.", ":")
BLOCKS = {
    "trunk": (BLUE, "trunk"),
    "head": (SKY, "head"),
    "running_mean": (YELLOW, "running mean"),
    "running_var": (ORANGE, "running variance"),
    "buffers": (PURPLE, "other buffers"),
}  # block of the layout -> colour, name
VERDICTS = {
    "benign, rejected": "#C6DDEE",
    "benign, accepted": BLUE,
    "malicious, rejected": "#F7CDA8",
    "malicious, accepted": VERMILION,
}  # in the order of the codes of `verdict_grid`: hue is the truth, lightness the verdict
DOT: dict[str, Any] = {"linestyle": "", "marker": "o", "color": "black", "markersize": 3, "markeredgecolor": "white"}
MOST_DOTS = 1500  # cells of a heat map that a dot still fits into
MOST_MARKERS = 40  # rounds of a curve


def curve(
    ax: Axes, rounds: Array, values: Array, label: str, color: str, style: str = "-", marker: str = "o", size: float = 3
) -> None:
    """A share in [0, 1] over rounds, in per cent; rounds without a value are skipped, and a single one shows."""
    known = ~np.isnan(values)
    shown = marker if known.sum() <= MOST_MARKERS else None
    ax.plot(rounds[known], 100 * values[known], style, color=color, marker=shown, markersize=size, label=label)


def per_cent(ax: Axes, title: str, rounds: Array) -> None:
    """Axes of shares over `rounds`."""
    ax.set(title=title, ylim=(-3, 103), ylabel="%")
    ax.grid(alpha=0.3, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    round_axis(ax, rounds)


def round_axis(ax: Axes, rounds: Array) -> None:
    """A whole number of rounds from the first to the last."""
    ax.set_xlabel("round")
    ax.xaxis.set_major_locator(whole_numbers())
    if len(rounds):
        ax.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)


def whole_numbers() -> Locator:
    """Ticks at whole numbers, however short the axis is."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", integer=True, min_n_ticks=1)


def reported_rounds(ax: Axes, run: RunRecord) -> None:
    """Shade the last rounds, which summary.json is the mean of."""
    if run.summary and run.rounds > run.summary["mean_of_last"]:
        last = run.metrics["round"][-run.summary["mean_of_last"] :]
        ax.axvspan(last[0] - 0.5, last[-1] + 0.5, color="black", alpha=0.06, linewidth=0, label="reported mean")


def verdict_grid(acceptance: NDArray[np.void], column: str) -> Array:
    """[positions, rounds] of codes 2 * compromised + accepted, NaN where a round has fewer clients.

    `column` holds the verdict. The clients of a round are sorted: compromised first, then by number.
    """
    if not len(acceptance):
        return np.full((1, 1), np.nan)
    rows = acceptance[np.lexsort((acceptance["client"], -acceptance["compromised"], acceptance["round"]))]
    _, first, place = np.unique(rows["round"], return_index=True, return_inverse=True)
    position = np.arange(len(rows)) - first[place]
    grid = np.full((position.max() + 1, len(first)), np.nan)
    grid[position, place] = 2 * rows["compromised"] + rows[column]
    return grid


def heat_map(ax: Axes, grid: Array, rounds: Array, title: str, marked: NDArray[np.bool_] | None = None) -> None:
    """Verdicts of `grid` over `rounds`, with a dot in the `marked` cells if they are few enough to see it."""
    from matplotlib.colors import ListedColormap

    start = rounds[0] if len(rounds) else 0.0
    extent = (start - 0.5, start + grid.shape[1] - 0.5, grid.shape[0] - 0.5, -0.5)
    colors = ListedColormap(list(VERDICTS.values()))
    ax.imshow(grid, aspect="auto", interpolation="nearest", cmap=colors, vmin=-0.5, vmax=3.5, extent=extent)
    if marked is not None and grid.size <= MOST_DOTS:
        position, place = np.nonzero(marked)
        ax.plot(place + start, position, **DOT)
    compromised = np.nansum(grid >= 2, axis=0)
    edges = np.arange(grid.shape[1] + 1) + start - 0.5
    ax.stairs(compromised - 0.5, edges, baseline=None, color="black", linewidth=1)
    ax.set(title=title, ylabel="clients of the round, compromised on top")
    ax.yaxis.set_major_locator(whole_numbers())
    round_axis(ax, rounds)


def verdict_legend(grids: Iterable[Array], dots: bool) -> list[Artist]:
    """Legend entries of heat maps, for the verdicts that occur in `grids`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    seen = {code for grid in grids for code in np.unique(grid[~np.isnan(grid)]).astype(int).tolist()}
    entries: list[Artist] = [
        Patch(facecolor=color, label=name) for code, (name, color) in enumerate(VERDICTS.items()) if code in seen
    ]
    return [*entries, Line2D([], [], **DOT, label="the two vectors disagree")] if dots else entries


def distance_shares(ax: Axes, rounds: Array, shares: Mapping[str, Array]) -> None:
    """Stacked shares [rounds] in [0, 1] of the layout's blocks in the summed squared distances, a step per round."""
    ax.set(title="X-ray: which block sets the clients apart", ylabel="% of squared distance", ylim=(0, 100))
    edges = np.append(rounds, rounds[-1:] + 1) - 0.5
    below = np.zeros(len(rounds))
    for block, share in shares.items():
        color, name = BLOCKS.get(block, (BLACK, block))
        above = below + 100 * np.nan_to_num(share)
        if len(rounds):
            ax.stairs(above, edges, baseline=below, fill=True, color=color, label=name)
        below = above
    round_axis(ax, rounds)


def legend_below(ax: Axes, columns: int) -> None:
    """A legend under the axes, where it hides nothing; none if there is nothing to tell."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize="small")


def line_style(index: int) -> tuple[str, str]:
    """Colour and line style of the index-th line of an axes; all differ up to 28."""
    return LINES[index % len(LINES)], STYLES[index % len(STYLES)]


def wrapped(words: Sequence[str], per_line: int) -> str:
    """Words joined by spaced dots, some to a line."""
    lines = [words[i : i + per_line] for i in range(0, len(words), per_line)]
    return "\n".join("  ·  ".join(line) for line in lines)


def counted(count: int, noun: str) -> str:
    """A number with its noun in the right form."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def shared_legend(figure: Figure) -> None:
    """One legend above for all axes; what several of them name stands in it once."""
    entries: dict[str, Artist] = {}
    for ax in figure.axes:
        entries |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries), frameon=False)
