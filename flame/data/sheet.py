"""A data set for the eye: its facts in words, and a contact sheet of its images with and without a trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flame.data.facts import spread
from flame.data.samples import Dataset, Samples

LISTED = 20  # classes in the table
ROWS = 12  # classes on the sheet
ACROSS = 6  # images of each
GAP = 0.08  # between images, as a share of their side
TILE = 0.62  # inches
PAPER = (166, 190, 216)  # between images: a light blue, so that white triggers end where they end
Stamp = Callable[[Tensor], Tensor]


def describe(dataset: Dataset) -> str:
    """Shapes, pixel range, mean and std as declared and as they are, and how many images each class has."""
    lines = [f"{part:<6} {_images(images)}" for part, images in _parts(dataset).items()]
    for name, declared, found in zip(
        ("mean", "std"), (dataset.mean, dataset.std), spread(dataset.train.x), strict=True
    ):
        lines.append(f"{name:<6} declared {_numbers(declared)}, of the training images {_numbers(found)}")
    if dataset.holders:
        held = dataset.holders.of.bincount(minlength=len(dataset.holders.names)).double()
        sizes = " / ".join(f"{float(held.quantile(level)):g}" for level in (0, 0.5, 1))
        lines.append(f"held   by {len(held):,}; training images of each, min / median / max: {sizes}")
    return "\n".join([*lines, "", *_classes(dataset)])


def _parts(dataset: Dataset) -> Mapping[str, Samples]:
    return {"train": dataset.train, "test": dataset.test}


def _images(images: Samples) -> str:
    channels, height, width = images.x.shape[1:]
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    low, high = int(images.x.min()), int(images.x.max())
    return f"{len(images):,} images of {height} x {width} pixels, {colour}, levels from {low} to {high}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _classes(dataset: Dataset) -> Iterator[str]:
    """A table, and a line about the classes that it leaves out."""
    train, test = (images.y.bincount(minlength=dataset.classes) for images in _parts(dataset).values())
    yield f"{'class':>5}  {'train':>7}  {'test':>7}"
    for label in range(min(dataset.classes, LISTED)):
        yield f"{label:>5}  {int(train[label]):>7,}  {int(test[label]):>7,}"
    if dataset.classes > LISTED:
        yield f"... and {dataset.classes - LISTED} more classes"
    yield f"{dataset.classes} classes; training images of one: from {int(train.min()):,} to {int(train.max()):,}"


def draw_sheet(dataset: Dataset, stamp: Stamp, title: str, target: int | None, path: Path) -> None:
    """Write the first training images of up to 12 classes to `path`, and beside them the same, stamped.

    `title` names the attack, `target` is the class that its triggered images are to have, None: there is no one class.
    """
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    labels = [label for label in range(dataset.classes) if bool((dataset.train.y == label).any())][:ROWS]
    rows = [_first(dataset.train, label) for label in labels]
    stamped = [stamp(row) for row in rows]
    halves = [_mosaic(half) for half in (rows, stamped)]
    height, width = halves[0].shape[:2]
    per_inch = (height / len(labels)) / TILE
    size = (2 * width / per_inch + 1.4, height / per_inch + 1.1)
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    counts = dataset.train.y.bincount(minlength=dataset.classes)
    words = f"with the trigger of {title}" + ("" if target is None else f", to be seen as class {target}")
    if all(map(torch.equal, rows, stamped)):
        words = f"{title} puts nothing on an image"
    for ax, half, heading in zip(figure.subplots(1, 2), halves, ("as stored", words), strict=True):
        ax.imshow(half.numpy(), interpolation="nearest")
        ax.set_title(heading, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([(i + 0.5) * height / len(labels) for i in range(len(labels))])
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
        ax.set_yticklabels([f"class {label}\n{int(counts[label]):,}" for label in labels] if half is halves[0] else [])
    shown = f"the first {len(labels)} of {dataset.classes} classes" if len(labels) < dataset.classes else "all classes"
    figure.suptitle(f"{dataset.name}: {shown}, and how many training images each has", fontsize=10)
    figure.savefig(path)


def _first(images: Samples, label: int) -> Tensor:
    """[at most 6, C, H, W] uint8, the first images of a class."""
    return images.x[(images.y == label).nonzero().flatten()[:ACROSS]]


def _mosaic(rows: Sequence[Tensor]) -> Tensor:
    """[height, width, 3] uint8: rows of at most 6 images [n, C, H, W] uint8."""
    channels, height, width = rows[0].shape[1:]
    gap = max(1, round(GAP * max(height, width)))
    paper = torch.tensor(PAPER, dtype=torch.uint8)
    tiles = paper.repeat(len(rows), ACROSS, height + gap, width + gap, 1)
    for tile, row in zip(tiles, rows, strict=True):
        rgb = row[:, :3] if channels >= 3 else row[:, :1].expand(-1, 3, -1, -1)
        tile[: len(row), gap // 2 : gap // 2 + height, gap // 2 : gap // 2 + width] = rgb.permute(0, 2, 3, 1)
    return tiles.transpose(1, 2).reshape(len(rows) * (height + gap), ACROSS * (width + gap), 3)
