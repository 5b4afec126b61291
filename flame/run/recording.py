"""One round's inputs on disk: what every client sent, so that any defense can be tried on it later.

A safetensors file holds `global/<key>` and `clients/<key>` [n, ...] for every key of the state_dict, counters too;
`clients/` are local models, not updates. Its metadata are JSON strings: client_ids, compromised and samples (one entry
per client), trainable (the keys that are trained, in state_dict order), round, seed, and keys (all keys in state_dict
order). `keys` may be missing, as safetensors sorts keys its own way; see `state_order`. A tensor with several names
(tied weights) is in it once, by its first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flame.federation import Round
from flame.geometry.layout import StateLayout, is_counter
from flame.round.checkpoint import write_atomically
from flame.round.plain import FLOATS, as_round
from flame.round.types import ServerState, Updates

FOLDER = "recorded"  # in the run folder
GLOBAL, CLIENTS = "global/", "clients/"
METADATA = ("client_ids", "compromised", "samples", "trainable", "round", "seed", "keys")
MODULE_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's, in its state_dict's order


@dataclass(frozen=True)
class Recorder:
    """Writes the rounds that are asked for."""

    folder: Path  # the run folder
    rounds: Collection[int]  # these rounds, from 0
    every: int  # and each k-th: k - 1, 2k - 1, ...; 0: none
    seed: int

    def log(self, record: Round) -> None:
        """Write `recorded/round_<r>.safetensors` if this round is wanted."""
        if record.number in self.rounds or (self.every and (record.number + 1) % self.every == 0):
            folder = self.folder / FOLDER
            folder.mkdir(exist_ok=True)
            content = packed(record.updates, record.cohort.compromised, record.number, self.seed)
            write_atomically(folder / f"round_{record.number:06d}.safetensors", content)


def packed(updates: Updates, compromised: Tensor, round_: int, seed: int) -> bytes:
    """The file of one round; all tensors float32 and int64, as the layout holds them."""
    layout, models = updates.layout, updates.models
    state, tied = layout.unflatten(updates.base, updates.base_counters), dict(layout.tied)
    tensors = {GLOBAL + k: v.clone() for k, v in state.items() if k not in tied}  # each tensor once
    for entries, values in ((layout.entries, models), (layout.counters, updates.counters)):
        tensors |= {CLIENTS + e.key: values[:, e.start : e.stop].reshape(-1, *e.shape).clone() for e in entries}
    trainable = {e.key for e in layout.entries if e.stop <= layout.trainable}
    metadata = {
        "client_ids": updates.ids.tolist(),
        "compromised": compromised.tolist(),
        "samples": updates.samples.tolist(),
        "trainable": [key for key in layout.keys if key in trainable],
        "round": round_,
        "seed": seed,
        "keys": [key for key in layout.keys if key not in tied],
    }
    return save(tensors, metadata={name: json.dumps(value) for name, value in metadata.items()})


@dataclass(frozen=True)
class RecordedRound:
    """A round read back."""

    state: ServerState
    updates: Updates
    seed: int
    dtypes: Mapping[str, torch.dtype]  # of each key in the file

    def plain(self, state: ServerState) -> dict[str, Tensor]:
        """A state as a state_dict in the file's dtypes, to float32's precision: of a float64 model that is 6e-8."""
        tensors = self.updates.layout.unflatten(state.row, state.counters)
        return {key: value.to(self.dtypes[key], copy=True) for key, value in tensors.items()}


def read_round(path: Path) -> RecordedRound:
    """A recorded round; the layout comes out of the file, so that any architecture will do.

    Raises:
        ValueError: the file is not a recorded round, or its parts do not fit together.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"updates={path}: there is no such file; a run writes them with record.rounds=[0]")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if path.stat().st_size > memory:
        raise ValueError(f"{path} is larger than this machine's memory: record fewer clients")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        fields = {name: _parsed(name, text) for name, text in metadata.items() if name in METADATA}
        before = {k.removeprefix(GLOBAL): t for k, t in tensors.items() if k.startswith(GLOBAL)}
        after = {k.removeprefix(CLIENTS): t for k, t in tensors.items() if k.startswith(CLIENTS)}
        return assemble(before, after, fields)
    except ValueError as error:
        raise ValueError(f"{path} is not a recorded round: {error}") from error


def assemble(before: Mapping[str, Tensor], after: Mapping[str, Tensor], fields: Mapping[str, Any]) -> RecordedRound:
    """A round out of the global model's tensors, the clients' stacked [n, ...], and the metadata.

    `client_ids`, `round`, `seed` and `keys` may be missing.

    Raises:
        ValueError: a key, shape, dtype or metadata entry does not fit, or the global model is not finite.
    """
    n = _check_tensors(before, after)
    trainable = _listed(fields, "trainable", str)
    samples = _listed(fields, "samples", int, n)
    if min(samples) < 1:
        raise ValueError(f"samples holds {min(samples)}: every client has at least one training sample")
    ids = _listed(fields, "client_ids", int, n) if "client_ids" in fields else list(range(n))
    number, seed = (_whole(fields, name) for name in ("round", "seed"))
    order = _listed(fields, "keys", str) if "keys" in fields else state_order(before, trainable)
    if sorted(order) != sorted(before):
        raise ValueError(f"keys differs from the tensors' in {sorted(set(order) ^ set(before))[:3]}")
    layout = StateLayout.from_state({key: before[key] for key in order}, trainable)
    clients = [{key: stacked[i] for key, stacked in after.items()} for i in range(n)]
    state, updates = as_round(layout, before, clients, ids, samples, number)
    return RecordedRound(state, updates, seed, {key: tensor.dtype for key, tensor in before.items()})


def state_order(keys: Collection[str], trainable: Sequence[str]) -> list[str]:
    """The keys in state_dict order, as far as names tell.

    Trainable keys stand as listed. Another key follows the last trainable one of its own module (`bn1.running_var`
    follows `bn1.bias`) or, if the module trains nothing, the last one of the nearest module around it. Within a module
    BatchNorm's buffers come in its own order, then others by name.
    """

    def place(key: str) -> tuple[int, int, str]:
        if key in listed:
            return listed[key], -1, ""
        module, _, name = key.rpartition(".")
        own = [i for other, i in listed.items() if other.rpartition(".")[0] == module]
        while not own:
            module = module.rpartition(".")[0]
            own = [i for other, i in listed.items() if not module or other.startswith(f"{module}.")] or [0]
        rank = MODULE_BUFFERS.index(name) if name in MODULE_BUFFERS else len(MODULE_BUFFERS)
        return max(own), rank, key

    listed = {key: i for i, key in enumerate(trainable)}
    return sorted(keys, key=place)


def _check_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """n, once every key has both tensors, of one dtype and of fitting shapes."""
    if not before or set(before) != set(after):
        lacking = [CLIENTS + k for k in before if k not in after] + [GLOBAL + k for k in after if k not in before]
        raise ValueError(f"{GLOBAL}* and {CLIENTS}* must hold the same keys, at least one; missing: {lacking[:3]}")
    sizes = {len(stacked) if stacked.dim() else 0: CLIENTS + key for key, stacked in after.items()}
    if len(sizes) > 1 or min(sizes) < 1:
        raise ValueError(f"{CLIENTS}* must be stacked for the same n >= 1 clients, not for {sizes}")
    (n,) = sizes
    for key, tensor in before.items():
        stacked, dtype = after[key], tensor.dtype
        if stacked.shape[1:] != tensor.shape:
            raise ValueError(f"{CLIENTS}{key} is {tuple(stacked.shape)}, must be {(n, *tensor.shape)}")
        if stacked.dtype != dtype and not is_counter(key, tensor):
            raise ValueError(f"{CLIENTS}{key} is {stacked.dtype}, {GLOBAL}{key} {dtype}: must be the same")
        if dtype not in FLOATS and (dtype.is_complex or dtype.is_floating_point):
            raise ValueError(f"{GLOBAL}{key} is {dtype}: must be whole numbers, bool or one of {FLOATS}")
        if not bool(tensor.float().isfinite().all()):
            raise ValueError(f"{GLOBAL}{key} is not finite in float32: no defense can mend the global model")
    return n


def _parsed(name: str, text: str) -> Any:
    """A metadata entry, which must be JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata {name}={text!r:.60} is not JSON ({error}): write it with json.dumps") from error


def _listed(fields: Mapping[str, Any], name: str, kind: type, length: int | None = None) -> list[Any]:
    """A metadata entry as a list of `kind`, of `length` entries if given."""
    values = fields.get(name)
    if not isinstance(values, list) or length not in (None, len(values)) or not all(type(v) is kind for v in values):
        what = f"{length} " if length is not None else ""
        given = f"{name}={values!r:.60}" if name in fields else f"{name} is missing: it"
        raise ValueError(f"metadata {given} must be a JSON list of {what}{kind.__name__} values")
    if kind is int and max(map(abs, values)) >= 2**63:
        raise ValueError(f"metadata {name} holds a number beyond 64 bits")
    return values


def _whole(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name, 0)
    if type(value) is not int:
        raise ValueError(f"metadata {name}={value!r} must be a whole number")
    return value
