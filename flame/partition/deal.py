"""From a data set to the clients' shards, with what the server keeps for itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from flame.data.samples import LabelledImages, Shards
from flame.round.seeding import generator

Partition = Callable[[Tensor, int, Generator], Shards]  # (labels, clients, stream): who holds which image


def deal(images: LabelledImages, partition: Partition, clients: int, root_samples: int, seed: int) -> Shards:
    """The clients' shards and, behind them, the server's: `root_samples` images drawn first, which no client gets."""
    if root_samples >= len(images):
        raise ValueError(
            f"defense: root_samples={root_samples} is out of range: must be in [1, {len(images) - 1}], so that images"
            " are left for the clients"
        )
    order = torch.randperm(len(images), generator=generator(seed, "root"))
    root, rest = order[:root_samples].sort().values, order[root_samples:].sort().values
    dealt = partition(images.y[rest], clients, generator(seed, "partition"))
    index = torch.cat([dealt.index, root])
    torch.index_select(rest, 0, dealt.index, out=index[: len(dealt.index)])  # the largest array of a run: no third copy
    return Shards.cut(index, torch.cat([dealt.sizes, torch.tensor([root_samples])]))
