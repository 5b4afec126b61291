"""A partition for the eye: the label histogram of the clients as a table and as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flame.data.samples import Shards

TABLE_CLIENTS = 30
FIGURE_CLIENTS = 200  # columns that stay several pixels wide
NUMBERED_CLIENTS = 25  # columns that are wide enough for a number


def label_histogram(labels: Tensor, shards: Shards, classes: int) -> Tensor:
    """[clients, classes] int64, how many images of each class each client holds."""
    client = torch.arange(len(shards)).repeat_interleave(shards.sizes)
    cell = client * classes + labels[shards.index]
    return torch.bincount(cell, minlength=len(shards) * classes).view(len(shards), classes)


def label_skew(histogram: Tensor) -> Tensor:
    """[clients] float64 in [0, 1], total variation distance of a client's label distribution from the overall one.

    `histogram` [clients, classes]; overall means all clients together. 0 is the same mix; a client without images
    gives nan.
    """
    counts = histogram.double()
    overall = counts.sum(0) / counts.sum()
    return (counts / counts.sum(1, keepdim=True) - overall).abs().sum(1) / 2


def describe(histogram: Tensor, names: Sequence[str] | None = None) -> str:
    """Aligned table of `histogram` [clients, classes] int64: a row for each of the first 30 clients, and a summary.

    With their names, where they have some.
    """
    first = histogram[:TABLE_CLIENTS]
    columns = zip(first.sum(1).tolist(), label_skew(histogram)[:TABLE_CLIENTS].tolist(), first.tolist(), strict=True)
    table = [["client", "size", "skew", *map(str, range(histogram.shape[1]))]]
    table += [
        [str(client), str(size), f"{skew:.2f}", *map(str, row)] for client, (size, skew, row) in enumerate(columns)
    ]
    if names is not None:
        for row, name in zip(table, ["name", *names], strict=False):
            row.insert(1, name)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in table]
    if len(histogram) > TABLE_CLIENTS:
        lines.append(f"... and {len(histogram) - TABLE_CLIENTS} more clients")
    return "\n".join([*lines, summary(histogram)])


def summary(histogram: Tensor) -> str:
    """One line: number of clients, their sizes and their label skew, of `histogram` [clients, classes]."""
    size, skew = histogram.sum(1).double(), label_skew(histogram)
    sizes = " / ".join(f"{float(size.quantile(level)):g}" for level in (0, 0.5, 1))
    return (
        f"{len(histogram)} clients; images per client min / median / max {sizes};"
        f" label skew (total variation) mean {float(skew.mean()):.2f}, max {float(skew.max()):.2f}"
    )


def plot_label_histogram(histogram: Tensor, path: Path) -> None:
    """Write a heat map of images per class and client, under a bar per client size, to `path` (.png, .svg or .pdf).

    `histogram` [clients, classes] int64. Of more than 200 clients the first 200 are drawn, and the axis says so.
    """
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    shown = histogram[:FIGURE_CLIENTS]
    clients, classes = shown.shape
    width, height = min(max(7.0, 0.35 * clients + 2), 14.0), min(max(4.0, 0.3 * classes + 2), 12.0)  # inches
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    bars, heat = figure.subplots(2, 1, sharex=True, height_ratios=[1, max(2.5, 0.3 * classes)])
    bars.bar(range(clients), shown.sum(1).tolist(), width=0.8, color="tab:blue")
    bars.set_ylabel("images")
    bars.spines[["top", "right"]].set_visible(False)
    image = heat.imshow(shown.T.numpy(), aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    heat.set_xlabel("client" if clients == len(histogram) else f"client (the first {clients} of {len(histogram)})")
    heat.set_ylabel("class")
    if classes <= 20:
        heat.set_yticks(range(classes))
    if clients <= NUMBERED_CLIENTS:
        heat.set_xticks(range(clients))
        for (client, label), count in zip(shown.argwhere().tolist(), shown[shown > 0].tolist(), strict=True):
            ink = "white" if count > shown.max() / 2 else "black"
            heat.text(client, label, str(count), ha="center", va="center", fontsize=6, color=ink)
    figure.colorbar(image, ax=heat, label="images of a class", pad=0.01)
    figure.suptitle(summary(histogram).replace("; label", "\nlabel"), fontsize="medium")
    figure.savefig(path)
