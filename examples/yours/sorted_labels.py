import torch
from torch import Generator, Tensor

from flame.data.samples import Shards


def sorted_labels(labels: Tensor, clients: int, generator: Generator, offset: int) -> Shards:
    """Client after client along the sorted labels [N], from a place on."""
    order = labels.argsort(stable=True).roll(-offset)
    sizes = torch.full((clients,), len(labels) // clients)
    return Shards.cut(order[: int(sizes.sum())], sizes)
