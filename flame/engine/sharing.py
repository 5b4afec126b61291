"""Memory that the pool and its workers share, and what goes through their pipes by value."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flame.data.samples import LabelledImages, Shards
from flame.engine.spill import Spill, SpilledRows
from flame.engine.workbench import Task


@dataclass(frozen=True)
class Room:
    """Shared memory between the pool and its workers: the global model in, the clients' results out."""

    row: Tensor  # [d + b] float32
    base_counters: Tensor  # [c] int64
    written: Tensor | SpilledRows  # `rows`
    counters: Tensor  # [n, c] int64

    @property
    def rows(self) -> Tensor:
        """[n, d + b] float32, in shared memory or in a file."""
        return self.written.tensor if isinstance(self.written, SpilledRows) else self.written


@contextmanager
def explained() -> Iterator[None]:
    """torch's "unable to allocate shared memory" with the place and the remedy."""
    try:
        yield
    except RuntimeError as error:
        if "shared memory" not in str(error) and "No space left" not in str(error):
            raise
        place = Path("/dev/shm")  # not on macOS
        room = f" ({shutil.disk_usage(place).free >> 20} MB free in {place})" if place.exists() else ""
        raise OSError(
            f"shared memory is too small for the data and the updates{room}: enlarge it "
            f"(docker run --shm-size=2g), lower clients_per_round, or engine=sequential. {error}"
        ) from error


@explained()
def empty_room(size: int, counters: int, clients: int, spill: Spill) -> Room:
    """Zeros for the results of `clients` clients, and for the model they start from."""
    row, base_counters, client_counters = (
        torch.zeros(shape, dtype=dtype).share_memory_()
        for shape, dtype in (((size,), torch.float32), ((counters,), torch.int64), ((clients, counters), torch.int64))
    )
    rows = spill.rows(clients, size) or torch.zeros(clients, size).share_memory_()
    return Room(row, base_counters, rows, client_counters)


@explained()
def shared(task: Task) -> Task:
    """The task with its tensors in shared memory, so that a worker maps them instead of copying."""

    def share(images: LabelledImages) -> LabelledImages:
        return LabelledImages(images.x.share_memory_(), images.y.share_memory_())

    shards = Shards(task.shards.index.share_memory_(), task.shards.offsets.share_memory_())
    sets = {name: share(images) for name, images in task.eval_sets.items()}
    return replace(task, train=share(task.train), shards=shards, eval_sets=sets)


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """As they go through a pipe: by value, and no file descriptors."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def to_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """And back."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
