"""A model as a file that any PyTorch code reads and writes: a plain state_dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from flame.geometry.layout import StateLayout
from flame.round.checkpoint import RunFolderError, checkpoints, read_checkpoint, write_atomically
from flame.round.types import ServerState, digest
from flame.run.build import make
from flame.run.config import OWN
from flame.run.folder import CHECKPOINTS
from flame.run.record import read_config
from flame.run.trackers.files import CONFIG
from models.weights import Weights, read_state_dict

MODEL = "model.safetensors"  # in the folder of a finished run
Facts = Mapping[str, Any]  # of the data set that they were trained on


def export(folder: Path) -> None:
    """Write a finished run's last checkpoint as `folder/model.safetensors`.

    Its keys are the state_dict's, floats float32, counters int64. The metadata have one key, `run`: JSON of the
    sha256 of summary.json and of the data set's settings, by which a start from it is compared.
    """
    state, layout, dataset = _newest(folder)
    tensors = {key: tensor.clone() for key, tensor in layout.unflatten(state.row, state.counters).items()}
    run = {"state_sha256": digest(state), "dataset": dataset}
    write_atomically(folder / MODEL, save(tensors, {"run": json.dumps(run, sort_keys=True)}))


def facts_of(dataset: Facts) -> dict[str, Any]:
    """The settings of a data set, as JSON gives them back, without where it lies or comes from."""
    kept: dict[str, Any] = json.loads(json.dumps(dict(dataset)))
    where = () if str(kept.get("_target_")).startswith(OWN) else ("root", "download")
    return {key: value for key, value in kept.items() if key not in (*where, "cache")}


def read_weights(path: Path) -> tuple[Weights, Facts | None]:
    """The state_dict in a file or a run folder, and what is known of the data that it was trained on.

    Raises:
        ValueError: it is neither, or holds more than tensors; nothing in it is executed.
    """
    return _read_run(path) if path.is_dir() else _read_file(path)


def _read_file(path: Path) -> tuple[Weights, Facts | None]:
    weights, metadata = read_state_dict(path, "start.path")
    try:
        run = json.loads(metadata.get("run", "{}"))
    except ValueError as error:
        raise ValueError(f"start.path={path} is not a whole safetensors file: {error}") from error
    return weights, run.get("dataset") if isinstance(run, dict) else None


def _read_run(folder: Path) -> tuple[Weights, Facts | None]:
    """The newest model of a run of ours, finished or not."""
    if (folder / MODEL).is_file():
        return _read_file(folder / MODEL)
    try:
        state, layout, dataset = _newest(folder)
    except RunFolderError as error:
        raise ValueError(f"start.path={folder}: {error}; must be a run folder of ours, or a state_dict") from error
    return layout.unflatten(state.row, state.counters), dataset


def _newest(folder: Path) -> tuple[ServerState, StateLayout, Facts]:
    """The newest checkpoint of a run, its model's layout and its data set's settings; RunFolderError if it has none."""
    found = checkpoints(folder / CHECKPOINTS)
    if not found or not (folder / CONFIG).is_file():
        raise RunFolderError(f"it has no {CONFIG} with {CHECKPOINTS}")
    config = read_config(folder / CONFIG)
    layout = StateLayout.of(make(config, "model"))
    state, _ = read_checkpoint(found[-1])
    if state.row.shape != (layout.size,):
        raise RunFolderError(f"{found[-1].name} is not of the model in {CONFIG}")
    return state, layout, facts_of(config["dataset"])
