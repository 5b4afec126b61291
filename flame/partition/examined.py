"""The clients on whose own images a global model is evaluated (`evaluate.clients`)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from flame.data.samples import Shards
from flame.partition.figure import label_skews


def examined(labels: Tensor, shards: Shards, honest: Tensor, count: int, stream: Generator) -> dict[str, list[int]]:
    """Two groups of `count` of the clients under the mask `honest` [clients] bool, each ascending.

    `benign` are drawn at random. `skewed` are those with the greatest label skew: the total variation distance between
    a client's labels and all clients' (`label_skew`; of text all tokens that are asked are labels), of equals the lower
    numbers. A client may be in both.

    Raises:
        ValueError: there are not so many.
    """
    able = honest.nonzero().flatten()
    if not 0 <= count <= len(able):
        raise ValueError(
            f"evaluate.clients={count} is out of range: must be in [0, {len(able)}], the number of benign clients"
        )
    if not count:
        return {}
    skew = label_skews(labels, shards.first(len(honest)), int(labels.max()) + 1)[able]
    chosen = {
        "benign": torch.randperm(len(able), generator=stream)[:count],
        "skewed": skew.sort(descending=True, stable=True).indices[:count],
    }
    return {group: able[places].sort().values.tolist() for group, places in chosen.items()}
