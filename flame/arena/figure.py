"""The board as a heat map: damage by defense and attack."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd

from flame.arena.board import PEACE
from flame.round.checkpoint import write_atomically
from flame.run.figure import DPI, own_settings

CELL = 0.4, 0.3  # inches of a cell, across and down
MARGIN = 2.6, 1.9  # inches for the names
DARK = 55  # per cent from which on a cell's number is white


@own_settings()
def draw_heat(table: pd.DataFrame, path: Path) -> None:
    """Write `table` [defenses, attacks] of damages in [0, 1], as `board.heat` sorts them, into an image at `path`."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    shares = 100 * table.to_numpy(dtype=np.float64)
    rows, columns = shares.shape
    figure = Figure(figsize=(columns * CELL[0] + MARGIN[0], rows * CELL[1] + MARGIN[1]), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(shares, cmap="Reds", vmin=0, vmax=100, aspect="auto")
    for i, j in np.ndindex(rows, columns):
        if not np.isnan(shares[i, j]):
            colour = "white" if shares[i, j] >= DARK else "black"
            ax.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    names = ["no attack" if name == PEACE else str(name) for name in table.columns]
    ax.set_xticks(range(columns), names, rotation=40, ha="left", fontsize=9)
    ax.set_yticks(range(rows), list(table.index), fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if PEACE in table.columns and columns > 1:
        ax.axvline(columns - 1.5, color="white", linewidth=4)
    bar = figure.colorbar(image, ax=ax, fraction=0.025, pad=0.01)
    bar.set_label("damage %", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Source": source(table)})
    write_atomically(path, picture.getvalue())


def source(table: pd.DataFrame) -> str:
    """Hash of what `draw_heat` draws; its picture carries it."""
    return hashlib.sha256(table.to_csv(float_format="%.4f").encode()).hexdigest()


def drawn(path: Path) -> str | None:
    """The hash that a picture carries, if it does; an OSError if it is none."""
    from PIL import Image

    with Image.open(path) as image:
        return image.info.get("Source")
