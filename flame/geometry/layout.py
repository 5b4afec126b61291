"""A model's state_dict as one flat float row plus integer counters, cut into named blocks.

Blocks stand in a fixed order, so that every scope of interest is one slice of the row and never a copy:

    trunk | head | running_mean | running_var | buffers          and, apart, the counters

`trunk` and `head` are the trainable parameters (the paper's "weights and biases", section 3), `head` being those of the
last trainable layer; `buffers` holds other float buffers, which none of the project's own models has. Counters are
all integer tensors, and `num_batches_tracked` whatever its dtype: code that averages a whole state_dict makes it float.
A parameter with `requires_grad=False` is in `trunk` or `head` like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

BLOCKS = ("trunk", "head", "running_mean", "running_var", "buffers")
COUNTERS = "counters"
COUNTER = "num_batches_tracked"  # BatchNorm's name for it
FAR = 1 << 62  # stands for a counter that no int64 holds: the guard refuses it
SCOPES: Mapping[str, tuple[str, ...]] = {
    "weights_only": ("trunk", "head"),
    "all_state": BLOCKS,
    "full_state": (*BLOCKS, COUNTERS),
    "head": ("head",),
}


def scope_blocks(scope: str) -> tuple[str, ...]:
    """The blocks of a named scope; a ValueError lists the names there are."""
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is unknown: must be one of {', '.join(SCOPES)}")
    return SCOPES[scope]


@dataclass(frozen=True)
class Entry:
    """Where one tensor of the state_dict lies in the row (or, for a counter, in the counters)."""

    key: str
    shape: tuple[int, ...]
    start: int
    stop: int
    block: str


@dataclass(frozen=True)
class StateLayout:
    """The order of one architecture's state; decided once, shared by every row of a federation."""

    entries: tuple[Entry, ...]  # float tensors, in row order
    counters: tuple[Entry, ...]  # num_batches_tracked, and other integer tensors
    keys: tuple[str, ...]  # all keys in state_dict order
    tied: tuple[tuple[str, str], ...] = ()  # further names of a tensor, and the one under which the row has it

    @classmethod
    def of(cls, model: nn.Module) -> StateLayout:
        """The layout of a module's state_dict; a tensor with several names (tied weights) is in it once.

        It has the name that it has in the output layer, whose weights an embedding may share, and else its first.

        Raises:
            ValueError: nothing is trainable, or the row cannot hold a tensor; the sentence names it and the remedy.
        """
        tensors = model.state_dict(keep_vars=True)
        for key, tensor in tensors.items():
            _check_tensor(key, tensor)
        last = next((key for key, tensor in reversed(tensors.items()) if isinstance(tensor, nn.Parameter)), None)
        if last is None:
            raise ValueError(
                f"model={type(model).__name__} has no parameters, so there is nothing to train and to send: must have"
                " at least one nn.Parameter in its state_dict"
            )
        output, names = _module(last), list(reversed(tensors))
        names.sort(key=lambda key: _module(key) == output)  # of a tensor's names the last one here is kept
        name = {id(tensors[key]): key for key in names}
        own = {key: tensor for key, tensor in tensors.items() if name[id(tensor)] == key}
        layout = cls.from_state(own, [key for key, tensor in own.items() if isinstance(tensor, nn.Parameter)])
        tied = tuple((key, name[id(tensor)]) for key, tensor in tensors.items() if key not in own)
        return replace(layout, keys=tuple(tensors), tied=tied)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], trainable: Iterable[str]) -> StateLayout:
        """The layout of any state_dict, given the keys that are trained; order within a block is the state_dict's.

        Raises:
            ValueError: a trainable key is missing, a counter or not a float tensor, or nothing is trainable; or a
                tensor is complex.
        """
        names = set(trainable)
        if odd := sorted(key for key, tensor in state.items() if tensor.is_complex()):
            raise ValueError(
                f"{odd[0]} is {state[odd[0]].dtype}: must be a float tensor, as torch.view_as_real gives it"
            )
        if unknown := sorted(k for k in names if k not in state or is_counter(k, state[k])):
            raise ValueError(f"trainable lists {unknown}, which are not float tensors of the state: list its own keys")
        last = next((k for k in reversed(list(state)) if k in names), None)
        if last is None:
            raise ValueError("trainable is empty: a model needs at least one trainable tensor")
        layer = _module(last)
        members: dict[str, list[str]] = {block: [] for block in (*BLOCKS, COUNTERS)}
        for key, tensor in state.items():
            members[_block_of(key, tensor, names, layer)].append(key)
        floats = [(block, key) for block in BLOCKS for key in members[block]]
        ints = [(COUNTERS, key) for key in members[COUNTERS]]
        return cls(_place(floats, state), _place(ints, state), tuple(state))

    @cached_property
    def spans(self) -> Mapping[str, slice]:
        """Where each block lies in the row: contiguous, in the order of BLOCKS; empty blocks are left out."""
        found: dict[str, slice] = {}
        for e in self.entries:
            start = found[e.block].start if e.block in found else e.start
            found[e.block] = slice(start, e.stop)
        return found

    def span(self, scope: str) -> slice:
        """A scope's columns as one slice of the row (its integer counters are not in the row)."""
        parts = [self.spans[b] for b in scope_blocks(scope) if b in self.spans]
        return slice(parts[0].start, parts[-1].stop) if parts else slice(0, 0)

    @property
    def output_layer(self) -> str:
        """The module of the last trainable layer, as `named_modules` calls it."""
        return next(_module(e.key) for e in self.entries if e.block == "head")

    @property
    def size(self) -> int:
        """d + b, the length of a row."""
        return self.entries[-1].stop

    @property
    def trainable(self) -> int:
        """d, the number of trainable parameters; they are the first d columns."""
        return self.span("weights_only").stop

    @property
    def counter_size(self) -> int:
        """c, the number of integers kept apart."""
        return self.counters[-1].stop if self.counters else 0

    def flatten(self, state: Mapping[str, Tensor], row: Tensor, counters: Tensor) -> None:
        """Write a state_dict into `row` [d + b] and `counters` [c], in place."""
        for e in self.entries:
            row[e.start : e.stop].view(e.shape).copy_(state[e.key])
        for e in self.counters:
            counters[e.start : e.stop].view(e.shape).copy_(whole(state[e.key]))

    def unflatten(self, row: Tensor, counters: Tensor) -> dict[str, Tensor]:
        """The state_dict whose tensors are views of `row` [d + b] and `counters` [c], in the original key order.

        Counters are int64, whatever they were.
        """
        views = {e.key: row[e.start : e.stop].view(e.shape) for e in self.entries}
        views |= {e.key: counters[e.start : e.stop].view(e.shape) for e in self.counters}
        views |= {key: views[name] for key, name in self.tied}
        return {key: views[key] for key in self.keys}

    def load(self, state: Mapping[str, Tensor], row: Tensor, counters: Tensor) -> None:
        """Copy `row` and `counters` into the tensors of a live state_dict (any memory format)."""
        for key, value in self.unflatten(row, counters).items():
            state[key].copy_(value)

    def zeros(self, clients: int) -> tuple[Tensor, Tensor]:
        """Room for `clients` rows [n, d + b] float32 and counters [n, c] int64."""
        return torch.zeros(clients, self.size), torch.zeros(clients, self.counter_size, dtype=torch.int64)


def _module(key: str) -> str:
    """Whose tensor it is."""
    return key.rpartition(".")[0]


def is_counter(key: str, tensor: Tensor) -> bool:
    """Whether this tensor of a state_dict is kept apart from the row."""
    return key.rpartition(".")[2] == COUNTER or not tensor.is_floating_point()


def whole(values: Tensor) -> Tensor:
    """Counters as int64, cut towards 0; NaN, Inf and what int64 does not hold as `FAR`."""
    if not values.is_floating_point():
        return values
    return torch.where(values.abs() < FAR, values, FAR).to(torch.int64)


def _check_tensor(key: str, tensor: object) -> None:
    """A ValueError unless a row of float32 numbers, or the counters, can hold this entry of a live state_dict."""
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"model: {key} of its state_dict is a {type(tensor).__name__}: must be a tensor (leave out get_extra_state)"
        )
    said = f"model: {kind} {key}"
    if is_lazy(tensor):
        raise ValueError(
            f"{said} has no shape before its first batch: give its layer the number of inputs (no Lazy...)"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"{said} is sparse ({tensor.layout}): must be dense, as .to_dense() gives it")
    if tensor.is_complex():
        raise ValueError(
            f"{said} is {tensor.dtype}: must be float32; keep its real and imaginary part, as torch.view_as_real gives"
            " them, and make it complex in forward"
        )
    if tensor.dtype != torch.float32 and not is_counter(key, tensor):
        remedy = "" if kind == "parameter" else ", or register it with persistent=False if it is a constant"
        raise ValueError(
            f"{said} is {tensor.dtype}: must be float32, as updates are; call .float() on the model{remedy}"
        )


def _block_of(key: str, tensor: Tensor, trainable: set[str], last_layer: str) -> str:
    if key in trainable:
        return "head" if _module(key) == last_layer else "trunk"
    if is_counter(key, tensor):
        return COUNTERS
    suffix = key.rpartition(".")[2]
    return suffix if suffix in ("running_mean", "running_var") else "buffers"


def _place(members: list[tuple[str, str]], state: Mapping[str, Tensor]) -> tuple[Entry, ...]:
    placed, start = [], 0
    for block, key in members:
        shape = tuple(state[key].shape)
        placed.append(Entry(key, shape, start, start := start + math.prod(shape), block))
    return tuple(placed)
