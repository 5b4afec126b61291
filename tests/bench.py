"""What a round costs beside the same arithmetic without a federation around it.

    python tests/bench.py [--repeats 5] [--cases cnn resnet8]      # `make bench`

Contenders, each in a process of its own, take turns on the same machine in the same minutes, and medians are compared:

* `plain`: a bare loop, PyTorch as it comes, no federation code, tensors in memory, one thread;
* `tuned`: the same loop with this project's settings (channels_last, allocator thresholds, foreach optimiser);
* `sequential`, `pool`: a whole round of the project, FLAME and its shadow verdicts included;
* `bf16`, `pool bf16`: the same with precision=bf16.

A round: 10 clients of 600 images, two epochs of batches of 64, then the clean and the triggered test set. Of models of
tokens: 10 clients of 100 texts of 80 characters or 20 words, two epochs of batches of 20, no attack. Times go to
results/bench.csv; what is printed are ratios, since seconds mean little on another machine or a busy one.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from benching import run  # noqa: E402
from texts import TEXT  # noqa: E402

from flame.data.samples import Samples  # noqa: E402
from flame.engine.workbench import prepare_process  # noqa: E402
from flame.federation import play  # noqa: E402
from flame.round.augment import CropFlip  # noqa: E402
from flame.round.client import LocalTraining  # noqa: E402
from flame.round.optimizers import Adam  # noqa: E402
from flame.run.build import Parts, build, composed  # noqa: E402

ROUND = ("clients=10", "clients_per_round=10", "partition=iid", "client.epochs=2", "client.batch_size=64")
TEXTS = ("attack=none", "client.batch_size=20", "dataset.train=1000", "dataset.test=400")
CHARACTERS = (*TEXT, *TEXTS, "dataset.tokens=80", "dataset.length=80")
WORDS = (*TEXT, *TEXTS, "dataset.tokens=2000", "dataset.length=20")
WORKLOADS = {  # name -> overrides; benign and compromised clients train equally long, so that a loop can do the same
    "cnn": ("model=cnn", "train_samples=6000", "attack=badnets"),
    "resnet8": ("model=resnet8", "train_samples=6000", "attack=badnets"),
    "resnet8, no attack": ("model=resnet8", "train_samples=6000", "attack=none"),
    "resnet8, crop_flip": ("model=resnet8", "train_samples=6000", "attack=badnets", "augment=crop_flip"),
    "cnn, adam": ("model=cnn", "train_samples=6000", "attack=badnets", "client=adam"),
    "resnet18_light": ("model=resnet18_light", "train_samples=600", "attack=badnets"),
    "lstm": ("model=lstm", *CHARACTERS),
    "lstm, words": ("model=lstm", *WORDS),
    "gru": ("model=gru", *CHARACTERS),
    "text_cnn": ("model=text_cnn", *CHARACTERS),
}
FEDERATIONS = {  # contender -> overrides
    "sequential": ("engine=sequential",),
    "pool": ("engine=pool",),
    "bf16": ("engine=sequential", "precision=bf16"),
    "pool bf16": ("engine=pool", "precision=bf16"),
}
CONTENDERS = ("plain", "tuned", *FEDERATIONS)
COLUMNS = ("workload", "contender", "repeat", "phase", "seconds")
Laps = dict[str, float]  # phase -> wall seconds


def contend(pipe: Connection, contender: str, workload: str) -> None:
    """A contender's life: one round for each message, after one to warm up, until the pipe closes."""
    torch.set_num_threads(1)
    if contender != "plain":
        prepare_process(threads=1)
    parts = build(composed([*ROUND, *WORKLOADS[workload], *FEDERATIONS.get(contender, ())]))
    rounds = federation(parts) if contender in FEDERATIONS else loop(parts, contender == "tuned")
    with closing(rounds):
        while True:
            pipe.send(next(rounds))
            try:
                pipe.recv()
            except EOFError:
                return


def federation(parts: Parts) -> Iterator[Laps]:
    """Rounds of the project."""
    with closing(parts.start_engine(parts.task)) as engine:
        fed, state = parts.federation(engine), parts.initial
        while True:
            start = time.perf_counter()
            record = play(fed, state)
            state, seconds = record.after, time.perf_counter() - start
            phases = ("train", "evaluate", "aggregate", "shadow")
            yield {"round": seconds, **{name: record.metrics[f"time/{name}"] for name in phases}}


def loop(parts: Parts, tuned: bool) -> Iterator[Laps]:
    """Rounds of nothing but local training and evaluation."""
    task = parts.task
    layout = torch.channels_last if tuned else torch.contiguous_format
    mean, std = (torch.tensor(values or (0.0,)).view(1, -1, 1, 1) for values in (parts.dataset.mean, parts.dataset.std))

    def images(x: torch.Tensor) -> torch.Tensor:
        if parts.dataset.kind == "tokens":
            return x.long()
        # not `normalise(x).contiguous()`: one channel is contiguous in both layouts, and would stay channels_last
        return task.normalise(x) if tuned else (x / 255 - mean) / std

    while True:
        start = time.perf_counter()
        for client in range(parts.population.clients):
            model = copy.deepcopy(task.model).to(memory_format=layout).train()
            fit(model, task.train[task.shards[client]], task.training, images, tuned, pad_of(task.augment))
        middle = time.perf_counter()
        with torch.inference_mode():
            model.eval()
            for each in task.eval_sets.values():
                for x, y in zip(each.x.split(100), each.y.split(100), strict=True):
                    int((model(images(x)).argmax(1) == y).sum())
        end = time.perf_counter()
        yield {"round": end - start, "train": middle - start, "evaluate": end - middle}


def pad_of(augment: object) -> int | None:
    """The frame of `crop_flip`; None: images as they are stored."""
    return augment.pad if isinstance(augment, CropFlip) else None


def cropped_and_flipped(x: torch.Tensor, pad: int) -> torch.Tensor:
    """A batch [B, C, H, W] as whole-batch code of anybody's does it: rows and columns by index."""
    count, _, height, width = x.shape
    rows = torch.arange(height) + torch.randint(2 * pad + 1, (count, 1))  # [B, H]
    columns = torch.arange(width) + torch.randint(2 * pad + 1, (count, 1))
    each = torch.arange(count).view(-1, 1, 1)
    x = F.pad(x, [pad] * 4)[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    return torch.where((torch.rand(count) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)


def fit(
    model: torch.nn.Module,
    data: Samples,
    training: LocalTraining,
    images: Callable,
    foreach: bool,
    pad: int | None = None,
) -> None:
    """Local training as a tutorial writes it."""
    lr, kind = training.lr, training.optimizer
    if isinstance(kind, Adam):
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr, foreach=foreach)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum=kind.momentum, foreach=foreach)
    for _ in range(int(training.epochs)):
        for batch in torch.randperm(len(data)).split(training.batch_size):
            x = data.x[batch] if pad is None else cropped_and_flipped(data.x[batch], pad)
            logits, y = model(images(x)), data.y[batch]
            if logits.dim() > 2:  # of every token
                logits, y = logits.transpose(1, 2).flatten(0, 1), y.flatten()
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def measure(workload: str, repeats: int) -> list[tuple]:
    """Rows of results/bench.csv: the contenders take turns."""
    context = get_context("spawn")
    pipes, processes = {}, []
    for contender in CONTENDERS:
        pipes[contender], far = context.Pipe()
        # not a daemon: the pool has workers of its own
        processes.append(context.Process(target=contend, args=(far, contender, workload)))
        processes[-1].start()
        far.close()
        pipes[contender].recv()  # the round that warms up, alone on the machine
    rows = []
    for repeat in range(repeats):
        for contender, pipe in pipes.items():
            pipe.send(None)
            rows += [(workload, contender, repeat, phase, f"{s:.4f}") for phase, s in pipe.recv().items()]
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.close()
        process.join()
    return rows


def ratios(rows: list[tuple]) -> str:
    """Medians of a workload, phase by phase, over those of another contender."""

    def median(contender: str, phase: str) -> float:
        return statistics.median(float(s) for _, c, _, p, s in rows if (c, p) == (contender, phase))

    text = [f"{rows[0][0]}"]
    for name, over, what in (
        ("plain", "sequential", "times as fast as the bare loop, on one core"),
        ("plain", "pool", "times as fast as the bare loop, on all cores"),
        ("sequential", "tuned", "of the time of a bare loop with the same settings (1.00: a federation costs nothing)"),
        ("sequential", "pool", "times as fast with the pool"),
        ("plain", "bf16", "times as fast as the bare loop, on one core, with precision=bf16"),
        ("plain", "pool bf16", "times as fast as the bare loop, on all cores, with precision=bf16"),
    ):
        each = "  ".join(f"{p} {median(name, p) / median(over, p):5.2f}" for p in ("round", "train", "evaluate"))
        text.append(f"  {name + ' / ' + over:18} {each}  {what}")
    whole = median("sequential", "round")
    shares = "  ".join(
        f"{p} {100 * median('sequential', p) / whole:.1f} %" for p in ("train", "evaluate", "aggregate", "shadow")
    )
    return "\n".join([*text, f"  of a sequential round: {shares}"])


if __name__ == "__main__":
    run(__doc__, WORKLOADS, COLUMNS, measure, ratios, "bench.csv")
