"""Training and evaluation of one model on one core, in images per second, with each setting of the simulator apart.

    python tests/bench_kernels.py [--repeats 3] [--cases resnet8 cnn]      # part of `make bench`

Settings, each in a process of its own that takes turns with the others: `eager` (PyTorch as it comes), `kept` (freed
activations stay in the process, `prepare_process`), `channels_last` (that as well: what a run does), `compiled` and
`bf16` (that with torch.compile, with autocast). Beside them the floor: operations per image, by torch's own counter,
over the rate of a plain float32 matrix product on the same core in the same minute.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from benching import run  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from flame.engine.workbench import prepare_process  # noqa: E402
from models.cnn import CNN  # noqa: E402
from models.resnet8 import ResNet8  # noqa: E402

MODELS = {"resnet8": lambda: ResNet8(1, 10, "batch"), "cnn": lambda: CNN(1, 10, 28, 0.0)}
SETTINGS = ("eager", "kept", "channels_last", "compiled", "bf16")
TRAINING, EVALUATION = (16, 64), 100  # batch sizes
IMAGES = 2048  # in one measurement
COLUMNS = ("model", "setting", "what", "repeat", "images_per_second")
Rates = dict[str, float]


def take_turns(pipe: Connection, setting: str, name: str) -> None:
    """A setting's life: warm up, then measure once for each message until the pipe closes."""
    torch.set_num_threads(1)
    if setting != "eager":
        prepare_process(threads=1)
    layout = torch.contiguous_format if setting in ("eager", "kept") else torch.channels_last
    model = MODELS[name]().to(memory_format=layout)
    forward = torch.compile(model) if setting == "compiled" else model
    cast = torch.autocast("cpu", torch.bfloat16) if setting == "bf16" else nullcontext()
    x = torch.rand(IMAGES, 1, 28, 28).contiguous(memory_format=layout)
    start = time.perf_counter()
    with cast:
        rates(model, forward, x)
        pipe.send({"warm-up s": time.perf_counter() - start})
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(rates(model, forward, x) | {"sgemm GFLOP/s": product_rate()})


def rates(model: nn.Module, forward: nn.Module, x: Tensor) -> Rates:
    """Images per second of training at each batch size, and of evaluation."""
    y = torch.zeros(len(x), dtype=torch.int64)
    found = {}
    for size in TRAINING:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, foreach=True)
        model.train()
        start = time.perf_counter()
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            loss = F.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[f"train {size}"] = len(x) / (time.perf_counter() - start)
    model.eval()
    with torch.inference_mode():
        start = time.perf_counter()
        for images in x.split(EVALUATION):
            forward(images)
        found["evaluate"] = len(x) / (time.perf_counter() - start)
    return found


def product_rate() -> float:
    """10^9 operations per second of a float32 matrix product that stays in the cache."""
    a, b = torch.rand(768, 768), torch.rand(768, 768)
    start = time.perf_counter()
    with torch.autocast("cpu", enabled=False):
        for _ in range(20):
            a @ b
    return 20 * 2 * 768**3 / (time.perf_counter() - start) / 1e9


def operations(name: str) -> float:
    """10^9 floating-point operations of convolutions and matrix products, one image forward."""
    with FlopCounterMode(display=False) as counter:
        MODELS[name]()(torch.rand(1, 1, 28, 28).expand(2, -1, -1, -1))
    return counter.get_total_flops() / 2 / 1e9


def measure(name: str, repeats: int) -> list[tuple]:
    """Rows of the CSV for one model."""
    context, pipes, rows = get_context("spawn"), {}, []
    for setting in SETTINGS:
        pipes[setting], far = context.Pipe()
        context.Process(target=take_turns, args=(far, setting, name)).start()
        far.close()
        rows += [(name, setting, what, 0, f"{value:.4g}") for what, value in pipes[setting].recv().items()]
    for repeat in range(repeats):
        for setting, pipe in pipes.items():
            pipe.send(None)
            rows += [(name, setting, what, repeat, f"{value:.5g}") for what, value in pipe.recv().items()]
    for pipe in pipes.values():
        pipe.close()
    return rows


def summary(rows: list[tuple]) -> str:
    """Rates, and how much of the floor they reach."""

    def median(setting: str, what: str) -> float:
        return statistics.median(float(r[4]) for r in rows if (r[1], r[2]) == (setting, what))

    name, peak = rows[0][0], statistics.median(float(r[4]) for r in rows if r[2] == "sgemm GFLOP/s")
    work = operations(name)
    text = [f"{name}: {1e3 * work:.1f} MFLOP an image forward; sgemm {peak:.0f} GFLOP/s"]
    for what in (*(f"train {size}" for size in TRAINING), "evaluate"):
        floor = peak / (work if what == "evaluate" else 3 * work)
        each = "  ".join(
            f"{s} {median(s, what):6.0f} ({median(s, what) / median('eager', what):.2f}x)" for s in SETTINGS
        )
        text.append(
            f"  {what:9} {each}  channels_last: {100 * median('channels_last', what) / floor:.0f} % of the floor"
        )
    return "\n".join([*text, f"  torch.compile: {median('compiled', 'warm-up s'):.0f} s before the first result"])


if __name__ == "__main__":
    run(__doc__, MODELS, COLUMNS, measure, summary, "bench_kernels.csv")
