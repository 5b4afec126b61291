"""`python -m flame.model model=torchvision dataset=cifar10`: what a model is made of, as layouts and defenses see it.

Blocks and tensors with their shapes, numbers and shares, at the state that a run starts from. The model is tried on two
samples of noise of the size that the data set's YAML declares; no data are read. Overrides are those of `train.py`;
`--config-dir DIR` finds models of your own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor, nn

from flame.geometry.layout import BLOCKS, COUNTERS, Entry, StateLayout
from flame.round.seeding import generator
from flame.round.types import ServerState
from flame.run.arguments import conf_of
from flame.run.build import initial_model
from flame.run.compose import ConfigError, composed
from flame.run.console import keep_going
from flame.run.overrides import quoted
from flame.run.trial import check_samples

WIDTH = 200  # characters, at most, of tables that no terminal shows
MEGA = 1e6


@dataclass(frozen=True)
class Part:
    """A block or a tensor: its numbers in the row, or among the counters."""

    name: str
    shape: tuple[int, ...]  # of a tensor; of a block (tensors,)
    block: str
    values: Tensor  # flat, float64
    share: float  # of all numbers, counters included
    energy: float  # its share of the squared norm of the row; 0 for counters


def main() -> None:
    """`python -m flame.model model=vit_tiny dataset=digits`."""
    parser = argparse.ArgumentParser(
        prog="python -m flame.model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py, e.g. model=vit_tiny")
    parser.add_argument("--config-dir", metavar="DIR", help="a conf of your own beside the project's")
    parser.add_argument("--config-path", metavar="DIR", help="a conf in the place of the project's")
    parser.add_argument("--config-name", metavar="NAME", default="config", help="a recipe, such as recipe/THEME/NAME")
    given = parser.parse_intermixed_args()
    try:
        cfg = composed(list(map(quoted, given.overrides)), given.config_name, conf_of(given))
        model = initial_model(cfg)
        layout = StateLayout.of(model)
        tried = try_out(model, cfg["dataset"], cfg["seed"])
    except (ValueError, OSError, ConfigError) as error:
        sys.exit(str(error))
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    state = ServerState.of(layout, model)
    console.print(block_table(blocks(layout, state)), tensor_table(tensors(layout, state)))
    print(*facts(layout), tried, sep="\n")


def try_out(model: nn.Module, facts: Any, seed: int) -> str:
    """What a trial on two samples of the declared size says; ValueError if the model does not take them."""
    found, classes = noise(facts, generator(seed, "model trial")), facts.get("classes")
    if found is None or not isinstance(classes, int):
        return (
            "Not tried: the data set's YAML does not declare as whole numbers classes and channels and image_size, or"
            " tokens and length, or features."
        )
    x, kind, size = found
    every = kind == "texts" and getattr(model, "answers", "every") == "every"
    check_samples(model, x, (classes, *x.shape[1:]) if every else (classes,), 2, f"{size} of noise")
    return f"Tried on two {kind} of {size.removesuffix(' pixels')}: it answers, in training too."


def noise(facts: Any, stream: Generator) -> tuple[Tensor, str, str] | None:
    """Two samples as a model reads them, what they are, and how large; None if their size is not declared."""

    def declared(*names: str) -> list[int]:
        sizes = [facts.get(name) for name in names]
        return sizes if all(isinstance(size, int) for size in sizes) else []

    if size := declared("channels", "image_size", "image_size"):
        return torch.randn(2, *size, generator=stream), "images", f"{' x '.join(map(str, size))} pixels"
    if size := declared("tokens", "length"):
        return torch.randint(size[0], (2, size[1]), generator=stream), "texts", f"{size[1]} tokens"
    if size := declared("features"):
        return torch.randn(2, *size, generator=stream), "rows", f"{size[0]} features"
    return None


def tensors(layout: StateLayout, state: ServerState) -> list[Part]:
    """Every tensor of the layout, in the order of the row, then the counters."""
    row, counters = state.row.double(), state.counters.double()
    numbers, energy = len(row) + len(counters), float(row.square().sum()) or 1.0

    def part(entry: Entry, among: Tensor, share: float) -> Part:
        values = among[entry.start : entry.stop]
        squared = float(values.square().sum()) * share
        return Part(entry.key, entry.shape, entry.block, values, len(values) / numbers, squared)

    return [part(e, row, 1 / energy) for e in layout.entries] + [part(e, counters, 0.0) for e in layout.counters]


def blocks(layout: StateLayout, state: ServerState) -> Iterator[Part]:
    """Its blocks, in the order of the row; empty ones are left out."""
    every = tensors(layout, state)
    for block in (*BLOCKS, COUNTERS):
        if inside := [part for part in every if part.block == block]:
            values = torch.cat([part.values for part in inside])
            share, energy = (sum(getattr(part, key) for part in inside) for key in ("share", "energy"))
            yield Part(block, (len(inside),), block, values, share, energy)


def block_table(parts: Iterator[Part]) -> Table:
    """A line per block."""
    return _table(
        "Blocks of the state that a run starts from",
        ("block", "tensors"),
        ((p.name, str(p.shape[0]), *_numbers(p)) for p in parts),
    )


def tensor_table(parts: list[Part]) -> Table:
    """A line per tensor."""
    lines = ((p.name, p.block, " x ".join(map(str, p.shape)) or "scalar", *_numbers(p)) for p in parts)
    return _table("Tensors, in the order of a row", ("tensor", "block", "shape"), lines)


def facts(layout: StateLayout) -> Iterator[str]:
    """What the two vectors are made of, and what one update takes."""
    d, b = layout.trainable, layout.size - layout.trainable
    yield f"weights_only: d = {d:,} numbers; all_state: d + b = {layout.size:,}; counters: {layout.counter_size:,}."
    if not b:
        yield "There is nothing but parameters: weights_only and all_state are one vector."
    yield f"An update takes {4 * layout.size / MEGA:,.1f} MB."
    yield from (f"{key} is {name} (tied): it is in the row once." for key, name in layout.tied)


def _numbers(part: Part) -> tuple[str, ...]:
    """Count, share, share of the squared norm, mean and standard deviation; of counters neither."""
    values, counted = part.values, part.block == COUNTERS
    energy = "" if counted else f"{part.energy:.2%}"
    spread = ("", "") if counted or not len(values) else (f"{values.mean():.4f}", f"{values.std(correction=0):.4f}")
    return f"{len(values):,}", f"{part.share:.2%}", energy, *spread


def _table(title: str, names: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    for name in ("numbers", "share", "of squared norm", "mean", "std"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


if __name__ == "__main__":
    keep_going()
    main()
