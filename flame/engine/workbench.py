"""What one process needs to train clients and evaluate models; shared by every engine.

Whatever the model itself draws, in a dropout layer say, it draws from a stream of the job's own (`seeding.addressed`).
"""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attacks.base import Attack
from flame.data.reading import Noise
from flame.data.samples import Samples, Shards
from flame.engine.spill import Spill
from flame.geometry.layout import StateLayout
from flame.round.augment import UNCHANGED, Augment
from flame.round.client import LocalJob, LocalTraining, Normalise
from flame.round.device import device_of, on
from flame.round.evaluate import Evaluation, answers, evaluate, final
from flame.round.seeding import addressed
from flame.round.server import with_own_statistics
from flame.round.smoothing import Smoothing, vote
from flame.round.types import Fit, Notes, ServerState, Updates

BENIGN = Attack()  # its hooks do nothing


@dataclass(frozen=True)
class Task:
    """The fixed part of a run: pickled once to each worker, its tensors in shared memory."""

    model: nn.Module
    layout: StateLayout
    train: Samples
    shards: Shards
    eval_sets: Mapping[str, Samples]  # "clean" and, if the attack has a backdoor, "backdoor"
    normalise: Normalise
    noise: Noise  # random samples of the kind of `train`
    training: LocalTraining
    attack: Attack
    seed: int
    spill: Spill
    device: str  # cpu, cuda, cuda:1: of the model, and of the images while they are used
    precision: str  # of local training
    smoothing: Smoothing | None  # the vote that a defense wants evaluated in the model's place
    augment: Augment = UNCHANGED  # of local training
    truth: Mapping[str, Tensor] = field(default_factory=dict)  # true classes [N] of the sets whose answers are counted

    def evaluated(self, state: ServerState) -> ServerState:
        """The state whose model is evaluated: as it is, but for a defense with `randomized_smoothing`."""
        return state if self.smoothing is None else self.smoothing.centre(state)

    def updates(self, state: ServerState, ids: Tensor, rows: Tensor, counters: Tensor, losses: Tensor) -> Updates:
        """What clients `ids` [n] made of the global model: rows [n, d + b], counters [n, c], losses [n]."""
        samples = self.shards.sizes[ids]
        return Updates(self.layout, state.row, state.counters, ids, rows, counters, samples, losses)


class Workbench:
    """One live model and the data; deterministic because it runs single-threaded."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # a copy: tensors sent to a worker are shared memory, and two workers must not train one model
        self.model = copy.deepcopy(task.model).to(on(task.device)).to(memory_format=torch.channels_last)
        self.state = self.model.state_dict()  # live tensors of the model

    def train(
        self, row: Tensor, counters: Tensor, memory: Mapping[str, Tensor], round: int, client: int, compromised: bool
    ) -> tuple[float, Notes]:
        """Train one client from the global `row` [d + b]; the model then holds the result. Returns loss and notes."""
        job = self.job(row, counters, memory, round, client)
        with self.drawing(round, client):
            loss = (self.task.attack if compromised else BENIGN).train(job)
        return loss, job.notes

    def job(self, row: Tensor, counters: Tensor, memory: Mapping[str, Tensor], round: int, client: int) -> LocalJob:
        """One client's work; the live model then holds what it starts from."""
        task = self.task
        self._load(with_own_statistics(row, task.layout, memory), counters)
        images = task.train[task.shards[client]]
        job = LocalJob(self.model, images, task.training, task.normalise, memory, task.seed, round, client)
        return replace(job, precision=task.precision, augment=task.augment)

    def drawing(self, round: int, client: int) -> AbstractContextManager[None]:
        """In here the model draws from the client's stream."""
        return addressed(self.task.seed, "model", round, client, device_of(self.model))

    @torch.no_grad()
    def write_update(self, row: Tensor, out: Tensor, out_counters: Tensor) -> None:
        """Write local minus global into `out` [d + b], and the local counters."""
        self.task.layout.flatten(self.state, out, out_counters)
        out -= row

    def evaluate(self, row: Tensor, counters: Tensor, round: int, name: str, part: slice) -> Evaluation:
        """Evaluate the model of `row`, or the vote of its copies, on one slice of an image set."""
        task, images = self.task, self.task.eval_sets[name][part]
        truth = task.truth[name][part] if name in task.truth else None
        with addressed(task.seed, f"evaluate {name}", round, part.start, device_of(self.model)):
            if task.smoothing is None:
                return evaluate(self._load(row, counters), images, task.normalise, truth)
            copies = task.smoothing.noisy(row, task.layout.trainable, task.seed, round)
            voters = (self._load(copy, counters) for copy in copies)
            return vote(voters, images, task.normalise, task.smoothing.alpha, truth)

    @torch.no_grad()
    def _load(self, row: Tensor, counters: Tensor) -> nn.Module:
        """The live model, holding `row` [d + b] now."""
        self.task.layout.load(self.state, row, counters)
        return self.model

    @torch.no_grad()
    def logits(
        self,
        row: Tensor,
        counters: Tensor,
        x: Tensor,
        round: int,
        client: int = 0,
        *,
        told: Callable[[Tensor], Tensor] = final,
    ) -> Tensor:
        """[N, classes] float32, of the model of `row` on samples `x` [N, ...]; in the host's memory.

        Or whatever is `told` of the logits of each batch: those of all tokens of all texts would fill the memory. Whose
        samples they are, and in which round, says what the model draws: all models of a round draw the same.
        """
        model, device = self._load(row, counters), device_of(self.model)
        with addressed(self.task.seed, "laboratory", round, client, device):
            return torch.cat([told(logits).cpu() for logits in answers(model, x.to(device), self.task.normalise)])

    def trained(self, row: Tensor, counters: Tensor, images: Samples, fit: Fit, round: int) -> Tensor:
        """[d + b], the row after `fit` of the model of `row` on these samples, in the host's memory."""
        model, device = self._load(row, counters), device_of(self.model)
        with addressed(self.task.seed, "laboratory training", round, 0, device):
            images = images.to(device)
            fit(model, self.task.normalise(images.x), images.y)
        (out,), (unused,) = self.task.layout.zeros(1)
        self.task.layout.flatten(self.state, out, unused)
        return out

    def features(self, row: Tensor, counters: Tensor, x: Tensor, round: int) -> Tensor:
        """[N, p] float32, what the output layer gets while `logits` are computed, flat.

        Raises:
            ValueError: the model does not call its output layer, or not with a part for each sample.
        """
        name, seen = self.task.layout.output_layer, list[Tensor]()

        def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0].flatten(1).float().cpu())

        with self.model.get_submodule(name).register_forward_pre_hook(look):
            self.logits(row, counters, x, round)
        if not seen:
            raise ValueError(f"the model never calls its output layer {name!r}, whose input a defense asks for")
        found = torch.cat(seen)
        if len(found) % len(x):
            raise ValueError(
                f"the model gives its output layer {name!r} {len(found)} parts for {len(x)} samples, and a defense asks"
                " for one of each: must be called with [B, ...]"
            )
        return found.reshape(len(x), -1)  # a model of texts may have made one row of each token


def restamp(task: Task, memory: Mapping[str, Tensor]) -> None:
    """Put the trigger of this moment on the backdoor set, in place: workers map the same memory. Most never move."""
    if (images := task.eval_sets.get("backdoor")) is None:
        return
    if (moved := task.attack.restamp(images.x, memory)) is not None:
        images.x.copy_(moved)


def prepare_process(threads: int) -> None:
    """Fix the thread count, which fixes the bits, and keep freed activations in the process.

    glibc returns large blocks to the kernel and faults them in again, thousands of page faults per training step, and
    two processes doing so slow each other down.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc; musl has none
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
