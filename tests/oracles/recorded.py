"""Random rounds in the form that defenses take, and as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from oracles.rounds import Round, random_round
from safetensors.torch import save_file
from torch import Tensor

from flame.run.recording import RecordedRound, assemble, packed

Fields = dict[str, object]

cached_round = cache(random_round)  # (seed, n, with_bn); rounds are read, never written


def as_recorded(plain: Round) -> RecordedRound:
    """The round as `flame.replay` would read it."""
    stacked = {k: torch.stack([w[k] for w in plain.client_states]) for k in plain.global_state}
    fields = {"samples": plain.samples, "trainable": plain.trainable, "keys": list(plain.global_state)}
    return assemble(plain.global_state, stacked, fields)


@cache
def recorded_round(seed: int, n: int, with_bn: bool = True) -> RecordedRound:
    """`random_round`, recorded."""
    return as_recorded(cached_round(seed, n, with_bn))


def written(path: Path) -> Path:
    """A round of ten, as the project writes it."""
    updates = recorded_round(0, 10).updates
    path.write_bytes(packed(updates, torch.zeros(10, dtype=torch.bool), round_=12, seed=3))
    return path


def foreign(path: Path, edit: Callable[[dict[str, Tensor], Fields], None] | None = None) -> Path:
    """The same round as other code would write it from the description: no `keys`."""
    plain = random_round(0, 10)
    tensors = {f"global/{k}": v for k, v in plain.global_state.items()}
    tensors |= {f"clients/{k}": torch.stack([w[k] for w in plain.client_states]) for k in plain.global_state}
    fields: Fields = {"trainable": plain.trainable, "samples": plain.samples, "client_ids": list(range(40, 50))}
    fields |= {"compromised": [i in plain.malicious for i in range(10)], "round": 12, "seed": 3}
    if edit:
        edit(tensors, fields)
    save_file(tensors, path, metadata={k: json.dumps(v) for k, v in fields.items()})
    return path
