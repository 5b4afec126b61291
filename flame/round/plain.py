"""Plain state_dicts of anybody's code as a round, and the next model as one.

A state_dict does not say which of its tensors are trained. Told nothing, all floats are taken for parameters but
BatchNorm's `running_mean` and `running_var`; integers, booleans and `num_batches_tracked` are counters. Other float
buffers (a mask, constant frequencies) would be clipped and noised like weights: name the parameters where there are
some, or take the state by `model.state_dict(keep_vars=True)`, which tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flame.geometry.layout import StateLayout, is_counter, whole
from flame.round.types import ServerState, Updates

State = Mapping[str, Tensor]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STATISTICS = ("running_mean", "running_var")
LISTED = 5  # keys that a message names


def listed(name: str, keys: Iterable[str] | None) -> list[str] | None:
    """The argument `name` as a list; a ValueError unless it holds keys, which the letters of a single one are not."""
    found = None if keys is None else [*keys]
    if isinstance(keys, str) or not all(isinstance(key, str) for key in found or ()):
        raise ValueError(
            f"{name}={keys!r:.60} is no list of keys: must be keys of the state_dict, such as ['weight', 'bias']"
        )
    return found


def layout_of(state: State, parameters: Iterable[str] | None) -> StateLayout:
    """The layout of a global state_dict whose `parameters` are named, or recognised as the module's head says.

    Raises:
        ValueError: a name is no float tensor of the state, nothing is trained, or two entries share their memory.
    """
    check_ties(state)
    names = recognised(state) if parameters is None else list(parameters)
    if unknown := [name for name in names if name not in state or is_counter(name, state[name])]:
        raise ValueError(f"parameters={unknown[:3]} are no float tensors of global_state: must be among its own keys")
    if not names:
        raise ValueError("global_state has no float tensor that could be a parameter: there is nothing to defend")
    return StateLayout.from_state(state, names)


def recognised(state: State) -> list[str]:
    """The keys that are taken for parameters."""
    marked = [key for key, value in state.items() if isinstance(value, nn.Parameter)]
    floats = (key for key, value in state.items() if not is_counter(key, value))
    return marked or [key for key in floats if key.rpartition(".")[2] not in STATISTICS]


def as_tensors(name: str, decode: Callable[[], Iterable[np.ndarray]]) -> list[Tensor]:
    """The arrays that `decode` makes of `name`, somebody's bytes; a ValueError if they are not arrays of numbers."""
    try:
        return [torch.from_numpy(np.array(array)) for array in decode()]
    except Exception as error:  # foreign bytes make numpy's parser raise nearly anything, such as a TokenError
        said = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"  # it may repeat what was sent
        raise ValueError(f"{name} cannot be read ({said}): must be arrays of numbers") from error


def check_tensors(name: str, state: State) -> None:
    """A ValueError unless the state_dict `name` holds dense tensors of whole numbers, booleans or ordinary floats."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{name} is a {type(state).__name__}: must be a state_dict, tensors by name")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}[{key!r}] is a {type(value).__name__}: must be a torch.Tensor (torch.as_tensor)")
        odd = value.is_complex() or (value.is_floating_point() and value.dtype not in FLOATS)
        if odd or value.layout != torch.strided:
            raise ValueError(
                f"{name}[{key!r}] is {value.dtype}, {value.layout}: must be dense, and one of {FLOATS} or whole"
            )


def check_finite(name: str, state: State) -> None:
    """A ValueError if a model of the server's, the state_dict `name`, holds NaN, or what float32 does not."""
    for key, value in state.items():
        if not bool(value.float().isfinite().all()):
            raise ValueError(f"{name}[{key!r}] is not finite in float32: must be, for no defense can mend it")


def check_fit(name: str, before: State, client: State) -> None:
    """A ValueError that lists the keys in which the state_dict `name` differs from the global one."""
    check_tensors(name, client)
    if gaps := differences(*({key: _counted(key, value) for key, value in s.items()} for s in (before, client))):
        raise ValueError(f"{name} does not fit global_state ({gaps}): must have its keys and shapes")


def _counted(key: str, value: Tensor) -> Tensor:
    """A counter as whole numbers, whatever its type: code that averages a state_dict makes it float."""
    return whole(value) if is_counter(key, value) else value


def differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """`missing: a, b; unexpected: c; misshapen: d (2, 3) instead of (4, 3)`; empty if all fits."""
    misshapen = [
        f"{k} {_kind(given[k])} instead of {_kind(t)}" for k, t in own.items() if not alike(t, given.get(k, t))
    ]
    lists = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "misshapen": misshapen,
    }
    return "; ".join(f"{kind}: {named(keys)}" for kind, keys in lists.items() if keys)


def named(keys: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {more} more" if more > 0 else "")


def alike(own: Tensor, given: Tensor) -> bool:
    """Whether one can be copied into the other: floats of any width into floats, whole numbers into whole numbers."""
    return own.shape == given.shape and own.is_floating_point() == given.is_floating_point() and not given.is_complex()


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'}"


def check_ties(state: State) -> None:
    """A ValueError if two entries are one tensor: what is done to the one would be undone by the other."""
    seen: dict[tuple[int, torch.Size], str] = {}
    for key, value in state.items():
        first = seen.setdefault((value.data_ptr(), value.shape), key)
        if first != key and value.numel():
            raise ValueError(
                f"global_state[{first!r}] and [{key!r}] share their memory (tied weights): leave one of them out of"
                " every state_dict; the model ties them again"
            )


@torch.no_grad()
def as_round(
    layout: StateLayout,
    before: State,
    clients: Sequence[State],
    ids: Sequence[int],
    samples: Sequence[int],
    number: int,
) -> tuple[ServerState, Updates]:
    """Round `number` (from 0): the global state_dict `before` and what n clients made of it, each complete.

    Differences of float64 models are taken in float64.
    """
    (row, counters), (models, local_counters) = layout.zeros(1), layout.zeros(len(clients))
    layout.flatten(before, row[0], counters[0])
    state, rows = ServerState(row[0], counters[0], number), torch.empty_like(models)
    for i, client in enumerate(clients):
        layout.flatten(client, models[i], local_counters[i])
        rows[i] = difference(layout, before, client, models[i] - state.row)
    updates = Updates(
        layout=layout,
        base=state.row,
        base_counters=state.counters,
        ids=torch.tensor(ids),
        rows=rows,
        counters=local_counters,
        samples=torch.tensor(samples),
        losses=torch.zeros(len(clients), dtype=torch.float64),
        recorded=models,
    )
    return state, updates


def difference(layout: StateLayout, before: State, client: State, row: Tensor) -> Tensor:
    """[d + b], `row`, a local model minus the global one, with what is float64 subtracted before it is rounded."""
    for e in layout.entries:
        if before[e.key].dtype == torch.float64:
            row[e.start : e.stop] = (client[e.key] - before[e.key]).flatten()
    return row


def as_state_dict(layout: StateLayout, state: ServerState, like: State) -> dict[str, Tensor]:
    """A copy with keys, dtypes and devices of `like`, to float32's precision: of a float64 model that is 6e-8."""
    tensors = layout.unflatten(state.row, state.counters)
    return {key: tensors[key].to(value.device, value.dtype, copy=True) for key, value in like.items()}
