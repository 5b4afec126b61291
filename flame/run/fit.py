"""Whether a model, a data set and a defense go together, before the first round."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch

from flame.data.datasets import normalise
from flame.data.samples import Dataset
from flame.defenses.base import Defense
from flame.engine.laboratory import Laboratory
from flame.engine.workbench import Task
from flame.round.seeding import generator
from flame.round.types import Cohort, ServerState, Updates


@torch.inference_mode()
def check_fit(model: torch.nn.Module, dataset: Dataset, smallest_batch: int) -> None:
    """ValueError unless the model turns the data set's images into a logit per class and trains on the smallest batch.

    BatchNorm refuses to train on a single value per channel: one image, once the strides have shrunk it to a pixel.
    """
    x = normalise(dataset.test.x[:2], dataset.mean, dataset.std)
    shape, wanted = tuple(x.shape[1:]), (2, dataset.classes)
    try:
        logits = model.eval()(x)
    except RuntimeError as error:
        raise ValueError(f"model does not fit the images of dataset={dataset.name}, {shape}: {error}") from error
    try:
        deepcopy(model).train()(x[:smallest_batch])
    except ValueError as error:
        raise ValueError(
            f"model cannot train on a batch of {smallest_batch} image(s) of dataset={dataset.name}: {error}. Set "
            "client.batch_size >= 2, a partition that gives every client at least two images, and a defense's "
            "root_samples >= 2"
        ) from error
    if logits.shape != wanted:
        raise ValueError(f"model gives {tuple(logits.shape)} for 2 images of dataset={dataset.name}: must be {wanted}")


def check_defense(defense: Defense, state: ServerState, task: Task) -> None:
    """ValueError unless the defense can read this model's updates: tried on one client that sends nothing."""
    rows, _ = task.layout.zeros(1)
    first, one, none = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), torch.zeros(1).double()
    silent = Updates(task.layout, state.row, state.counters, first, rows, state.counters[None], one, none, root=rows[0])
    if getattr(defense, "needs_lab", False):
        silent = replace(silent, lab=Laboratory.of(task, state, Cohort(first, torch.tensor([False]))))
    defense(state, silent, generator(0, "check"))
