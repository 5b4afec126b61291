"""A partition for the eye: how much clients hold and of which labels, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flame.data.samples import UNASKED, Shards

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLE_CLIENTS = 30
FIGURE_CLIENTS = 200  # columns that stay several pixels wide
NUMBERED_CLIENTS = 25  # columns that are wide enough for a number
CELLS = 1 << 24  # of histograms that are made at once: 128 MB


@dataclass(frozen=True)
class Held:
    """What the clients of a partition hold."""

    sizes: Tensor  # [clients] int64, samples
    skew: Tensor  # [clients] float64 in [0, 1], see `label_skew`
    histogram: Tensor  # [clients, classes] int64; [clients, 0] where every token is a label, which no table could show
    noun: str = "images"  # what the samples are called

    @classmethod
    def of(cls, labels: Tensor, shards: Shards, classes: int, noun: str = "images") -> Held:
        """Of labels [N] or [N, T]."""
        shown = (
            label_histogram(labels, shards, classes) if labels.dim() == 1 else shards.sizes.new_zeros(len(shards), 0)
        )
        return cls(shards.sizes, label_skews(labels, shards, classes), shown, noun)


def label_histogram(labels: Tensor, shards: Shards, classes: int) -> Tensor:
    """[clients, classes] int64, how many labels of each class each client holds, where something is asked."""
    given = labels[shards.index].reshape(len(shards.index), -1)
    client = torch.arange(len(shards)).repeat_interleave(shards.sizes)[:, None].expand_as(given)
    asked = given != UNASKED
    cell = client[asked] * classes + given[asked]
    return torch.bincount(cell, minlength=len(shards) * classes).view(len(shards), classes)


def label_skew(histogram: Tensor, overall: Tensor | None = None) -> Tensor:
    """[clients] float64 in [0, 1], total variation distance of a client's label distribution from the overall one.

    `histogram` [clients, classes]; overall means all clients together, with `overall` [classes] labels if these are not
    all. 0 is the same mix; a client without labels gives nan.
    """
    counts = histogram.double()
    total = counts.sum(0) if overall is None else overall.double()
    return (counts / counts.sum(1, keepdim=True) - total / total.sum()).abs().sum(1) / 2


def label_skews(labels: Tensor, shards: Shards, classes: int) -> Tensor:
    """[clients], the `label_skew` of each; some clients at a time, as all with a vocabulary could fill the memory."""

    def histograms() -> Iterator[Tensor]:
        step = max(1, CELLS // classes)
        for first in range(0, len(shards), step):
            offsets = shards.offsets[first : first + step + 1]
            yield label_histogram(labels, Shards(shards.index[offsets[0] : offsets[-1]], offsets - offsets[0]), classes)

    overall = torch.stack([histogram.sum(0) for histogram in histograms()]).sum(0)
    return torch.cat([label_skew(histogram, overall) for histogram in histograms()])


def describe(held: Held, names: Sequence[str] | None = None) -> str:
    """Aligned table: a row for each of the first 30 clients, and a summary. With their names, where they have some."""
    first = held.histogram[:TABLE_CLIENTS].tolist()
    columns = zip(held.sizes[:TABLE_CLIENTS].tolist(), held.skew[:TABLE_CLIENTS].tolist(), first, strict=True)
    table = [["client", "size", "skew", *map(str, range(held.histogram.shape[1]))]]
    table += [
        [str(client), str(size), f"{skew:.2f}", *map(str, row)] for client, (size, skew, row) in enumerate(columns)
    ]
    if names is not None:
        for row, name in zip(table, ["name", *names], strict=False):
            row.insert(1, name)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in table]
    if len(held.sizes) > TABLE_CLIENTS:
        lines.append(f"... and {len(held.sizes) - TABLE_CLIENTS} more clients")
    return "\n".join([*lines, summary(held)])


def summary(held: Held) -> str:
    """One line: number of clients, their sizes and their label skew."""
    sizes = " / ".join(f"{float(held.sizes.double().quantile(level)):g}" for level in (0, 0.5, 1))
    return (
        f"{len(held.sizes)} clients; {held.noun} per client min / median / max {sizes};"
        f" label skew (total variation) mean {float(held.skew.mean()):.2f}, max {float(held.skew.max()):.2f}"
    )


def plot_held(held: Held, path: Path) -> None:
    """Write a heat map of labels per class and client, under a bar per client size, to `path` (.png, .svg or .pdf).

    Of text, whose classes are too many, bars of the label skew. Of more than 200 clients the first 200 are drawn, and
    the axis says so.
    """
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    shown = held.histogram[:FIGURE_CLIENTS]
    clients, classes = shown.shape
    width, height = min(max(7.0, 0.35 * clients + 2), 14.0), min(max(4.0, 0.3 * classes + 2), 12.0)  # inches
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    ratios = [1, max(2.5, 0.3 * classes) if classes else 1]
    bars, below = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    bars.bar(range(clients), held.sizes[:clients].tolist(), width=0.8, color="tab:blue")
    bars.set_ylabel(held.noun)
    below.set_xlabel("client" if clients == len(held.sizes) else f"client (the first {clients} of {len(held.sizes)})")
    if clients <= NUMBERED_CLIENTS:
        below.set_xticks(range(clients))
    if classes:
        _heat_map(figure, below, shown, held.noun)
    else:
        below.bar(range(clients), held.skew[:clients].tolist(), width=0.8, color="tab:blue")
        below.set(ylabel="label skew", ylim=(0, 1))
    for ax in (bars,) if classes else (bars, below):
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(summary(held).replace("; label", "\nlabel"), fontsize="medium")
    figure.savefig(path)


def _heat_map(figure: Figure, heat: Axes, shown: Tensor, noun: str) -> None:
    """Of `shown` [clients, classes], with numbers where there is room."""
    clients, classes = shown.shape
    image = heat.imshow(shown.T.numpy(), aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    heat.set_ylabel("class")
    if classes <= 20:
        heat.set_yticks(range(classes))
    if clients <= NUMBERED_CLIENTS:
        for (client, label), count in zip(shown.argwhere().tolist(), shown[shown > 0].tolist(), strict=True):
            ink = "white" if count > shown.max() / 2 else "black"
            heat.text(client, label, str(count), ha="center", va="center", fontsize=6, color=ink)
    figure.colorbar(image, ax=heat, label=f"{noun} of a class", pad=0.01)
