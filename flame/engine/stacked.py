"""Clients of a round trained as one model: their parameters stacked, each operation done for all of them at once.

`vmap` of torch.func turns k small convolutions into one with k groups, so that a large device has enough to do. On a
CPU it gains nothing. Rounding is that of the batched kernels: what clients send differs from `sequential` in the last
digits of float32, and so may all that follows.

torch.func's documentation would have models do without BatchNorm's running statistics, as those of one module cannot
take the updates of many (docs.pytorch.org, func.batch_norm). Here every client has statistics of its own, stacked like
its weights, and these vmap updates in place, as `tests/engine/test_stacked.py` holds.

Together go clients with equally many images, so that their batches have the same sizes, and the same recipe, `at_once`
<<<<<<< HEAD
of them. One by one, as in `sequential`, go all others: attacks with a training loop of their own, and those that poison
batch by batch. A model that draws (dropout) is refused, for its draws could not be each client's own. An LSTM and a GRU
are refused: vmap has no rule for them.
=======
of them. One by one, as in `sequential`, go all others: attacks with a training loop of their own, those that poison
batch by batch, and clients that search for triggers. A model that draws (dropout) is refused, for its draws could not
be each client's own.
>>>>>>> neighbours
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from sys import maxsize

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from attacks.base import Attack
from flame.engine.base import WorkerError
from flame.engine.sequential import Sequential
from flame.engine.workbench import BENIGN, Task
from flame.round.client import LocalJob, LocalTraining, autocast, batches
from flame.round.device import device_of, one_thread
from flame.round.server import told, with_own_statistics
from flame.round.types import Cohort, Notes, ServerState, Updates

Stack = dict[str, Tensor]  # the state_dicts of k clients: each tensor with a first axis [k]
Losses = Callable[[Stack, Tensor, Tensor], Tensor]  # of all clients, on x and y, each with [k, B] in front: [k]


class Stacked(Sequential):
    """Trains in this process, `at_once` clients at a time; evaluates as `Sequential` does."""

    def __init__(self, task: Task, at_once: int, *, aggregate_on: str = "cpu") -> None:
        super().__init__(task, aggregate_on=aggregate_on)
        self._at_once = at_once
        self._losses = losses_of(task.model, task.training)
        try:  # two clients with two samples each, as in a run
            twice = {name: torch.stack([value, value]) for name, value in task.model.state_dict().items()}
            x, y = task.normalise(task.train.x[:2]), task.train.y[:2]
            self._losses(twice, torch.stack([x, x]), torch.stack([y, y]))
        except (RuntimeError, ValueError) as error:
            raise WorkerError(
                f"engine=stacked cannot train model={type(task.model).__name__}, which must neither draw (dropout) nor"
                " share tensors, nor have layers that vmap cannot batch (LSTM, GRU): take engine=pool or sequential."
                f" {str(error).splitlines()[0]}"
            ) from error

    @one_thread()
    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, list[Notes]]:
        """See `Engine.train`."""
        task, n = self._task, len(cohort.ids)
        rows, counters = self._store.room(n, task.layout)
        losses, notes = torch.zeros(n, dtype=torch.float64), list[Notes]([{}] * n)
        clients = list(zip(cohort.ids.tolist(), cohort.compromised.tolist(), strict=True))
        for places, jobs in self._parts(state, clients):
            if len(places) == 1:
                (i,) = places
                losses[i], notes[i] = self.train_one(state, *clients[i], rows[i], counters[i])
                continue
            stack = self._start(state, jobs)
            losses[places] = fit(stack, jobs, self._losses, task.model).double()
            for k, (i, job) in enumerate(zip(places, jobs, strict=True)):
                task.layout.flatten({name: value[k] for name, value in stack.items()}, rows[i], counters[i])
                rows[i] -= state.row
                notes[i] = job.notes
        return task.updates(state, cohort.ids, rows, counters, losses), notes

    def _parts(
        self, state: ServerState, clients: Sequence[tuple[int, bool]]
    ) -> Iterator[tuple[list[int], list[LocalJob]]]:
        """Places in the cohort that are trained together, and their jobs; one place alone goes as in `sequential`."""
        alike: dict[tuple[int, int], list[tuple[int, LocalJob]]] = {}
        for i, (client, bad) in enumerate(clients):
            if bad and type(self._task.attack).train is not Attack.train:
                yield [i], []
                continue
            job = self._bench.job(state.row, state.counters, told(state.memory, client, bad), state.round, client)
            with self._bench.drawing(state.round, client):
                job = (self._task.attack if bad else BENIGN).compromise(job)
            if job.mixture is not None or job.training.hardening is not None:
                yield [i], []
            else:
                alike.setdefault((len(job.images), id(job.training)), []).append((i, job))
        for group in alike.values():
            for start in range(0, len(group), self._at_once):
                places, jobs = zip(*group[start : start + self._at_once], strict=True)
                yield list(places), list(jobs)

    def _start(self, state: ServerState, jobs: Sequence[LocalJob]) -> Stack:
        """What the clients start from, on the device."""
        layout, device = self._task.layout, device_of(self._bench.model)
        states = [layout.unflatten(with_own_statistics(state.row, layout, job.memory), state.counters) for job in jobs]
        return {name: torch.stack([each[name] for each in states]).to(device) for name in layout.keys}


def losses_of(model: nn.Module, training: LocalTraining) -> Losses:
    """The recipe's loss of every client's own model on its own batch; running statistics move with it, in place."""
    hollow = copy.deepcopy(model).to("meta").train()  # how it computes, without values

    def one(values: Stack, x: Tensor, y: Tensor) -> Tensor:
        return training.loss(lambda x: functional_call(hollow, values, (x,), strict=True), x, y)

    return vmap(one)


def fit(stack: Stack, jobs: Sequence[LocalJob], losses_of: Losses, model: nn.Module) -> Tensor:
    """`LocalTraining.fit` for k clients of one recipe and equally many images; changes `stack` in place.

    [k] the mean loss per step of the last epoch. Of `model` only the names of its parameters are read.
    """
    training, round, device = jobs[0].training, jobs[0].round, next(iter(stack.values())).device
    weights = {name: nn.Parameter(stack[name], p.requires_grad) for name, p in model.named_parameters()}
    start = [w.detach().clone() for w in weights.values()] if training.proximal else []
    optimizer, left = training.optimizer.over(weights.values(), training.lr), training.max_steps or maxsize
    images, views = [job.images.to(device) for job in jobs], [job.view() for job in jobs]
    streams, size, share = [job.stream("shuffle") for job in jobs], training.batch_size, min(1, training.epochs)
    steps: list[Tensor] = []
    for epoch in range(max(1, int(training.epochs))):
        if not left:
            break
        steps = []
        for group in optimizer.param_groups:
            group["lr"] = training.rate(epoch, round)
        orders = [batches(len(own), size, s, device, share=share) for own, s in zip(images, streams, strict=True)]
        for picks in islice(zip(*orders, strict=True), left):
            seen = [view(own, pick) for view, own, pick in zip(views, images, picks, strict=True)]
            x = jobs[0].normalise(torch.cat(seen)).unflatten(0, (len(jobs), -1))
            y = torch.stack([own.y[pick] for own, pick in zip(images, picks, strict=True)])
            with autocast(device, jobs[0].precision):
                losses = losses_of(stack | weights, x, y)
            optimizer.zero_grad()
            losses.sum().backward()
            bend(training, list(weights.values()), start)
            optimizer.step()
            steps.append(losses.detach())
        left -= len(steps)
    return torch.stack(steps).mean(0).cpu()


@torch.no_grad()
def bend(training: LocalTraining, weights: Sequence[Tensor], start: Sequence[Tensor]) -> None:
    """FedProx's term and clipping of `LocalTraining`, for every client by itself; `start` is empty without the term."""
    for w, s in zip(weights, start, strict=False):
        if w.grad is not None:
            w.grad.add_(w - s, alpha=training.proximal)
    if training.clip_norm is not None:
        gradients = [w.grad for w in weights if w.grad is not None]
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)  # [k]
        factors = (training.clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factors.view(-1, *[1] * (g.dim() - 1)))
