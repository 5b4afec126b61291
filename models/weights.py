"""Weights in a file that any PyTorch code writes: a state_dict, plain or in a training script's checkpoint."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")  # where training scripts keep the weights
FOREIGN = re.compile(r"GLOBAL ([\w.]{1,100})")  # in torch's words: the class or function that a pickle asks for
PREFIX = "module."  # of torch's DataParallel

Weights = dict[str, Tensor]


def read_state_dict(path: Path, key: str) -> tuple[Weights, Mapping[str, str]]:
    """The state_dict in a file, and the metadata of a .safetensors file. Nothing in it is executed.

    Raises:
        ValueError: it is not there, is damaged or holds more than tensors; `key` is the setting that named it.
    """
    if not path.is_file():
        raise ValueError(
            f"{key}={path}: there is no such file or folder: name one, from / or from where you start the run"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path, key)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file makes the reader raise nearly anything
        raise ValueError(f"{key}={path} {_refusal(error)}") from error
    return _plain(found, path, key), {}


def _refusal(error: Exception) -> str:
    """Why torch's reader refused, without its advice to let the file run code, and what to do."""
    if stranger := FOREIGN.search(str(error)):
        return (
            f"holds objects other than tensors ({stranger[1]}), which could run code and are never opened: save"
            " model.state_dict()"
        )
    plain = f"{type(error).__name__}: {str(error).strip().partition('. ')[0]:.200}"
    reason = "damaged, or no file of torch's" if isinstance(error, pickle.UnpicklingError) else plain
    return (
        f"cannot be read ({reason}): must be what torch.save(model.state_dict(), path) writes, or a .safetensors file"
    )


def _read_safetensors(path: Path, key: str) -> tuple[Weights, Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{key}={path} is not a whole safetensors file: {error}") from error
    if {"row", "counters"} <= found.keys():
        raise ValueError(f"{key}={path} is a checkpoint, which has no keys: must be the folder of its run")
    return _plain(found, path, key), metadata


def _plain(found: Any, path: Path, key: str) -> Weights:
    """The state_dict itself, out of a training script's checkpoint and without DataParallel's prefix."""
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    strangers = [k for k, v in found.items() if not isinstance(v, Tensor)] if isinstance(found, Mapping) else ["all"]
    if strangers or not found:
        raise ValueError(
            f"{key}={path} is no state_dict ({strangers[:3] or 'empty'}): must be tensors by name, or hold them"
            f" under one of {', '.join(WRAPPERS)}"
        )
    if all(name.startswith(PREFIX) for name in found):
        return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
    return dict(found)
