"""A data set for the eye: its facts in words, and a contact sheet of its images, or some of its texts, with and without
a trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flame.data.facts import spread
from flame.data.samples import Dataset, Samples
from flame.data.vocabulary import Vocabulary

LISTED = 20  # classes in the table
ROWS = 12  # classes on the sheet
FREQUENT = 8  # tokens that are named
SPECIMENS = 3  # texts
ACROSS = 6  # images of each
GAP = 0.08  # between images, as a share of their side
TILE = 0.62  # inches
PAPER = (166, 190, 216)  # between images: a light blue, so that white triggers end where they end
Stamp = Callable[[Tensor], Tensor]


def describe(dataset: Dataset) -> str:
    """Shapes, ranges, mean and std as declared and as they are, and how many samples each class has."""
    shape = {"images": _images, "tokens": _texts, "features": _rows}[dataset.kind]
    lines = [f"{part:<6} {shape(samples)}" for part, samples in _parts(dataset).items()]
    if dataset.vocabulary:
        lines.append(f"tokens {_tokens(dataset.vocabulary, dataset.train.x)}")
    elif dataset.kind == "images" or dataset.train.x.shape[1] <= LISTED:
        found = spread(dataset.train.x) if dataset.kind == "images" else _spread_of_rows(dataset.train.x)
        for name, declared, own in zip(("mean", "std"), (dataset.mean, dataset.std), found, strict=True):
            lines.append(f"{name:<6} declared {_numbers(declared)}, of the training {dataset.noun} {_numbers(own)}")
    if dataset.holders:
        held = dataset.holders.of.bincount(minlength=len(dataset.holders.names)).double()
        sizes = " / ".join(f"{float(held.quantile(level)):g}" for level in (0, 0.5, 1))
        lines.append(f"held   by {len(held):,}; training {dataset.noun} of each, min / median / max: {sizes}")
    return "\n".join([*lines, *(["", *_classes(dataset)] if dataset.train.y.dim() == 1 else [])])


def _parts(dataset: Dataset) -> Mapping[str, Samples]:
    return {"train": dataset.train, "test": dataset.test}


def _images(images: Samples) -> str:
    channels, height, width = images.x.shape[1:]
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    low, high = int(images.x.min()), int(images.x.max())
    return f"{len(images):,} images of {height} x {width} pixels, {colour}, levels from {low} to {high}"


def _texts(texts: Samples) -> str:
    """Of [N, T] tokens."""
    return f"{len(texts):,} texts of {texts.x.shape[1]} tokens, {texts.asked:,} labels asked for"


def _tokens(vocabulary: Vocabulary, x: Tensor) -> str:
    """Which there are and are most frequent."""
    counts = x.flatten().long().bincount(minlength=len(vocabulary))
    shown = ", ".join(repr(vocabulary.tokens[i]) for i in counts.sort(descending=True, stable=True).indices[:FREQUENT])
    used = int((counts > 0).sum())
    return (
        f"{len(vocabulary):,} in the vocabulary ({vocabulary.task}s), {used:,} in the training texts; the most: {shown}"
    )


def _rows(rows: Samples) -> str:
    """Of [N, F] features."""
    low, high = float(rows.x.min()), float(rows.x.max())
    return f"{len(rows):,} rows of {rows.x.shape[1]} features, from {low:.4g} to {high:.4g}"


def _spread_of_rows(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each feature of `x` [N, F]."""
    wide = x.double()
    return tuple(wide.mean(0).tolist()), tuple(wide.std(0, correction=0).tolist())


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
    noun = dataset.noun
    yield f"{dataset.classes} classes; training {noun} of one: from {int(train.min()):,} to {int(train.max()):,}"


def specimens(dataset: Dataset, stamp: Stamp, title: str) -> str:
    """The first training texts, as stored and with the trigger of `title`, whose tokens stand in [brackets]."""
    assert dataset.vocabulary
    shown = dataset.train.x[:SPECIMENS]
    stamped = stamp(shown)
    bare = torch.equal(shown, stamped)
    lines = []
    for before, after in zip(shown, stamped, strict=True):
        lines.append(f"  {_text(before, before, dataset.vocabulary)}")
        lines += [] if bare else [f"> {_text(before, after, dataset.vocabulary)}"]
    return "\n".join([*lines, f"{title} puts nothing on a text" if bare else f"> with the trigger of {title}"])


def _text(before: Tensor, after: Tensor, vocabulary: Vocabulary) -> str:
    """The text `after` [T], what is not as in `before` [T] in brackets, on one line."""
    other = before != after
    words = [vocabulary.tokens[i] for i in after.tolist()]
    parts = []
    for i, word in enumerate(words):
        opens, closes = other[i] and not (i and other[i - 1]), other[i] and not (i + 1 < len(words) and other[i + 1])
        parts.append(f"{'[' if opens else ''}{word}{']' if closes else ''}")
    return ("" if vocabulary.task == "character" else " ").join(parts).replace("\n", "\\n")


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
