"""Memory that the pool and its workers share, and what goes through their pipes by value.

Each shared tensor is a file descriptor, of which a process can be sent some 250. So a model travels in a few flat
buffers, one for each dtype, however many tensors it has.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flame.data.samples import Shards
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


ALIGNED = 64  # bytes, as torch aligns what it allocates: vector code may take another path elsewhere


@dataclass(frozen=True)
class Parcel:
    """A task on its way to a worker."""

    task: Task  # its model has no values
    flats: Mapping[torch.dtype, Tensor]  # they are here, in shared memory

    def opened(self) -> Task:
        """The task with a model whose tensors are views of the flat buffers."""
        return replace(self.task, model=filled(self.task.model, self.flats))


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
def shared(task: Task) -> Parcel:
    """The task with its tensors in shared memory, so that a worker maps them instead of copying."""
    share = methodcaller("mapped", Tensor.share_memory_)
    shards = Shards(task.shards.index.share_memory_(), task.shards.offsets.share_memory_())
    sets = {name: share(images) for name, images in task.eval_sets.items()}
    model, flats = emptied(task.model)
    return Parcel(replace(task, model=model, train=share(task.train), shards=shards, eval_sets=sets), flats)


def emptied(model: nn.Module) -> tuple[nn.Module, Mapping[torch.dtype, Tensor]]:
    """A copy of a module whose tensors have no values (they are on torch's device meta), and the values by dtype."""
    tensors = held(model)
    hollow = [_like(t, torch.empty_like(t, device="meta")) for t in tensors]
    sizes: dict[torch.dtype, int] = {}
    for t, start in placed(hollow):
        sizes[t.dtype] = start + t.numel()
    flats = {dtype: torch.zeros(size, dtype=dtype).share_memory_() for dtype, size in sizes.items()}
    with torch.no_grad():
        for value, (t, start) in zip(tensors, placed(hollow), strict=True):
            _view(t, start, flats).copy_(value)
    return copy.deepcopy(model, {id(t): h for t, h in zip(tensors, hollow, strict=True)}), flats


def filled(model: nn.Module, flats: Mapping[torch.dtype, Tensor]) -> nn.Module:
    """A copy of an emptied module with its values, views of `flats`."""
    return copy.deepcopy(model, {id(t): _like(t, _view(t, start, flats)) for t, start in placed(held(model))})


def held(model: nn.Module) -> list[Tensor]:
    """Every tensor that a module keeps, each once, in an order that a copy has too; outside its state_dict as well."""
    homes = [home for m in model.modules() for home in (m._parameters, m._buffers, vars(m))]
    return list({id(t): t for home in homes for t in home.values() if isinstance(t, Tensor)}.values())


def placed(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """Each tensor and where it starts in the flat buffer of its dtype."""
    used: dict[torch.dtype, int] = {}
    for t in tensors:
        step = ALIGNED // t.element_size()
        yield t, used.get(t.dtype, 0)
        used[t.dtype] = used.get(t.dtype, 0) + -(-t.numel() // step) * step


def _view(t: Tensor, start: int, flats: Mapping[torch.dtype, Tensor]) -> Tensor:
    return flats[t.dtype].as_strided(t.shape, t.stride(), start)


def _like(t: Tensor, values: Tensor) -> Tensor:
    """`values` as a parameter, if `t` is one."""
    return nn.Parameter(values, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else values


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """As they go through a pipe: by value, and no file descriptors."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def to_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """And back."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
