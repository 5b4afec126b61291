"""Which GPU each worker of a pool trains on: a function of numbers, so that it can be tested where there is no GPU.

Workers take the GPUs in turn, one each, then a second one each, as long as there is room. How many fit on one follows
from its free memory and from the model, by a rule that errs on the side of room; nothing of it has been measured.

No result depends on it: a client's bits are the same on every GPU of a kind, and GPUs of several kinds are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from flame.engine.workbench import Task

log = logging.getLogger(__name__)
WORKER_BYTES = 2 << 30  # a process of its own on the device: CUDA's context, kernels, the activations of a batch
COPIES = 8  # of the model's bytes: weights, gradients, two moments of Adam, what an attack keeps, what is freed late
USED = 0.9  # share of the free memory that may be taken
MOST = 8  # workers on one GPU, unless `engine.per_gpu` says more: processes take turns there, they do not run at once


def place(free: Sequence[int], model_bytes: int, workers: int, per_gpu: int | None) -> list[int]:
    """The GPU of each worker, by its place in `free`, the bytes that each GPU has left; [k], 1 <= k <= `workers`.

    `workers` is the most of them altogether: what is asked for, or the cores of the job. `per_gpu`, if given, is taken
    at its word.

    Raises:
        ValueError: not one worker fits on any GPU.
    """
    need = WORKER_BYTES + COPIES * model_bytes
    rooms = [min(MOST, int(USED * left) // need) if per_gpu is None else per_gpu for left in free]
    if not any(rooms):
        raise ValueError(
            f"device=cuda has no room: a worker is taken to need {need / 1e9:.1f} GB, and {_list_gb(free)} GB are free;"
            " end what else runs there, take engine.per_gpu=1 to try it all the same, or device=cpu"
        )
    turns = [gpu for turn in range(max(rooms)) for gpu, room in enumerate(rooms) if turn < room]
    return turns[:workers]


def homes(task: Task, workers: int, per_gpu: int | None) -> list[str]:
    """The device of each worker; ValueError where `place` has one, or the GPUs are of several kinds."""
    if task.device == "cpu":
        return ["cpu"] * workers
    gpus = [task.device] if ":" in task.device else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    kinds = sorted({torch.cuda.get_device_name(gpu) for gpu in gpus})
    if len(kinds) > 1:
        raise ValueError(
            f"device=cuda is {len(kinds)} kinds of GPU here ({', '.join(kinds)}), which round differently: name one,"
            " such as device=cuda:0, or set CUDA_VISIBLE_DEVICES"
        )
    model = sum(t.numel() * t.element_size() for t in task.model.state_dict().values())
    taken = place([torch.cuda.mem_get_info(gpu)[0] for gpu in gpus], model, workers, per_gpu)
    log.info("workers on GPUs: %s", ", ".join(f"{taken.count(i)} on {gpu}" for i, gpu in enumerate(gpus)))
    return [gpus[i] for i in taken]


def _list_gb(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size / 1e9:.1f}" for size in sizes)
