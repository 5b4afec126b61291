"""Where clients train: the model, and a client's images while they are in use. All else stays in the host's memory.

Random draws, poisoning and stamping happen on the CPU, so that a run on a GPU sees the same data in the same order.
Updates go back to the host once per client: defenses read a matrix that need not fit a GPU, in arithmetic that does not
depend on it. (`engine.aggregate_on=device` has a copy of the matrix compared and averaged there.) What a GPU computes
differs from a CPU in its rounding, so `device` changes bits, not what is studied.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bf16")
AGGREGATE_ON = ("cpu", "device")


def check_device(name: str) -> None:
    """ValueError with the remedy unless training could run there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name} is unknown: must be cpu, cuda or cuda:0, cuda:1, ...")
    count = torch.cuda.device_count()
    if device.type == "cuda" and count and (device.index or 0) >= count:
        raise ValueError(f"device={name} is not there: must be cuda (all of them) or cuda:0 to cuda:{count - 1}")
    if device.type == "cuda" and not count:
        raise ValueError(
            f"device={name} is not there: torch {torch.__version__} sees {count} CUDA devices; take device=cpu, or"
            " install a CUDA build of torch and a driver that fits it (nvidia-smi lists the devices)"
        )


def check_precision(name: str) -> None:
    """ValueError unless local training knows it."""
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r} is unknown: must be one of {', '.join(PRECISIONS)}")


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), CPU)


def on(name: str) -> torch.device:
    """The device, set so that float32 means float32 there and a second run gives the same bits."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa, on by default for convolutions
        torch.backends.cudnn.deterministic = True
    return device


def aggregating(device: str, aggregate_on: str) -> torch.device | None:
    """Where updates are compared and averaged; None: on the host. ValueError unless `aggregate_on` is a choice."""
    if aggregate_on not in AGGREGATE_ON:
        raise ValueError(f"engine.aggregate_on={aggregate_on!r} is unknown: must be one of {', '.join(AGGREGATE_ON)}")
    return None if aggregate_on == "cpu" else torch.device(device)


def copied(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` on a device, in float32 as they are; OSError with the remedy if a GPU has no room for them."""
    needed = rows.numel() * rows.element_size()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else needed
    if needed > free:
        raise OSError(
            f"engine.aggregate_on=device: the updates of a round take {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB"
            f" are free on {device}: take engine.aggregate_on=cpu, or lower engine.per_gpu or clients_per_round"
        )
    return rows.to(device)


def kind_of_device(name: str) -> str:
    """What chooses among its roundings: `cpu`, or the GPU's name, whichever of several it is."""
    return torch.cuda.get_device_name(name) if name.startswith("cuda") else name


def describe_device(name: str) -> str:
    """For the record: `cpu`, or `cuda:1 (NVIDIA ...)`."""
    return f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name


def describe_processor() -> str:
    """What chooses among kernels, and so among roundings: only where this is equal are results equal to the bit."""
    cpuinfo = Path("/proc/cpuinfo")
    facts = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line] if cpuinfo.exists() else []
    known = {key.strip(): value.strip() for key, value in facts}  # of the last core
    name = known.get("model name", platform.processor() or platform.machine())
    flags = hashlib.sha256(known.get("flags", known.get("Features", "")).encode()).hexdigest()[:8]
    return f"{name}, cache {known.get('cache size', '?')}, {torch.backends.cpu.get_cpu_capability()}, flags {flags}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Whatever is trained or evaluated takes one thread, whatever `threads` is: the count is part of the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
