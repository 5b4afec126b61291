"""From a data set to the clients' shards, with what the server keeps for itself.

A partition sees the labels of what it deals out. One that has a parameter `holders`, `kept` or `dataset_name`
is given that, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flame.data.check import check_holders
from flame.data.samples import Dataset, Holders, Kept, Shards
from flame.round.seeding import generator

Partition = Callable[..., Shards]  # (labels, clients, stream): who holds which image


def deal(dataset: Dataset, partition: Partition, clients: int, root_samples: int, seed: int) -> Shards:
    """The clients' shards and, behind them, the server's: `root_samples` images drawn first, which no client gets."""
    images = len(dataset.train)
    check_holders("attack.prepare", dataset.holders, images)
    if root_samples >= images:
        raise ValueError(
            f"defense: root_samples={root_samples} is out of range: must be in [1, {images - 1}], so that samples"
            " are left for the clients"
        )
    order = torch.randperm(images, generator=generator(seed, "root"))
    root, rest = order[:root_samples].sort().values, order[root_samples:].sort().values
    known = _asked(partition, dataset, rest)
    dealt = partition(dataset.train.y[rest], clients, generator(seed, "partition"), **known)
    index = torch.cat([dealt.index, root])
    torch.index_select(rest, 0, dealt.index, out=index[: len(dealt.index)])  # the largest array of a run: no third copy
    return replace(Shards.cut(index, torch.cat([dealt.sizes, torch.tensor([root_samples])])), names=dealt.names)


def _asked(partition: Partition, dataset: Dataset, rest: Tensor) -> dict[str, Holders | Kept | str | None]:
    """What the partition is given beside labels: of the images `rest`, which are dealt out."""
    named = inspect.signature(partition).parameters
    known: dict[str, Holders | Kept | str | None] = {}
    if "holders" in named:
        known["holders"] = dataset.holders and dataset.holders[rest]
    if "kept" in named:
        known["kept"] = (dataset.kept or Kept.whole(len(dataset.train)))[rest]
    if "dataset_name" in named:
        known["dataset_name"] = dataset.name
    return known
