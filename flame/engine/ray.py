"""Clients trained as tasks of a Ray cluster (Moritz et al., OSDI 2018): as many at once as it has cores.

The data go to Ray's object store once a run and the global model once a round; every worker process builds its
Workbench once. What was lost with a worker or a node, Ray computes again elsewhere: to the bits of `sequential`, since
every random stream is addressed by (seed, role, round, client) and every worker runs one thread.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from flame.data.samples import Samples
from flame.engine.base import WorkerError
from flame.engine.sharing import to_arrays
from flame.engine.spill import Store
from flame.engine.workbench import Task, Workbench, prepare_process
from flame.round.device import aggregating, one_thread
from flame.round.evaluate import Evaluation, slices, total
from flame.round.server import told
from flame.round.types import Cohort, Notes, ServerState, Updates

RETRIES = 3  # of one client or slice, when its worker or node is lost
LOCAL = "local"
SENT = ("row", "counters", "memory")  # of a state; `round` is told with each job


class Ray:
    """Trains on the cluster at `address`; "local" starts one on this machine, with `workers` cores.

    On GPUs each client asks for one of them, or for a share of one, `per_gpu` to each. Ray shows it that one only.
    """

    def __init__(
        self, task: Task, address: str, workers: int, *, per_gpu: int | None = None, aggregate_on: str = "cpu"
    ) -> None:
        if task.device not in ("cpu", "cuda"):
            raise WorkerError(
                f"device={task.device} is not for engine=ray, which deals out GPUs itself: say device=cuda"
            )
        self.aggregate_on = aggregating(task.device, aggregate_on)
        self._ray = ray = _import_ray()
        self._task = task
        self._store = Store(task.spill)
        self._started = not ray.is_initialized()
        if self._started:
            here = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
            with _signals_kept():
                ray.init(address=address, logging_level="warning", **here)
        gpus = {"num_gpus": 1 / (per_gpu or 1)} if task.device == "cuda" else {}
        retried = ray.remote(num_cpus=1, max_retries=RETRIES, **gpus)
        self._train, self._evaluate = retried(_train), retried(_evaluate)
        self._shared = ray.put(task)
        self._sent: tuple[ServerState, Any] | None = None  # the last state, and where the store has it

    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, list[Notes]]:
        """See `Engine.train`."""
        n = len(cohort.ids)
        rows, counters = self._store.room(n, self._task.layout)
        losses, notes = torch.zeros(n, dtype=torch.float64), list[Notes]([{}] * n)
        where = [self._shared, self._put(state)]  # in a list, so that workers fetch them when they need to
        order = enumerate(zip(cohort.ids.tolist(), cohort.compromised.tolist(), strict=True))
        # attackers may train longer: theirs go first, so that no core idles at the end
        first = sorted(order, key=lambda each: not each[1][1])
        jobs = {self._train.remote(where, state.round, client, bad): i for i, (client, bad) in first}
        for i, (row, ints, loss, noted) in self._results(jobs):
            rows[i], counters[i], losses[i], notes[i] = torch.tensor(row), torch.tensor(ints), loss, _copies(noted)
        return self._task.updates(state, cohort.ids, rows, counters, losses), notes

    def evaluate(self, state: ServerState) -> dict[str, Evaluation]:
        """See `Engine.evaluate`."""
        where = [self._shared, self._put(self._task.evaluated(state)), self._put_restamped(state)]
        cuts = [(name, part) for name, images in self._task.eval_sets.items() for part in slices(len(images))]
        done = dict(self._results({self._evaluate.remote(where, state.round, *cut): i for i, cut in enumerate(cuts)}))
        return {name: total(done[i] for i, (of, _) in enumerate(cuts) if of == name) for name in self._task.eval_sets}

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._started:
            self._ray.shutdown()
        self._started = False

    def _put(self, state: ServerState) -> Any:
        """Where the object store has the state: what a round's evaluation has put there, the next round finds."""
        if self._sent is None or any(getattr(self._sent[0], part) is not getattr(state, part) for part in SENT):
            self._sent = state, self._ray.put((state.row.numpy(), state.counters.numpy(), to_arrays(state.memory)))
        return self._sent[1]

    @one_thread()
    def _put_restamped(self, state: ServerState) -> Any:
        """Where the object store has the backdoor set's images, if the attack has moved its trigger; else None."""
        backdoor = self._task.eval_sets.get("backdoor")
        moved = None if backdoor is None else self._task.attack.restamp(backdoor.x, state.memory)
        return None if moved is None else self._ray.put(moved.numpy())

    def _results(self, jobs: Mapping[Any, int]) -> Iterator[tuple[int, Any]]:
        """(number, result) of each job, in the order in which they end."""
        errors, waiting = self._ray.exceptions, list(jobs)
        while waiting:
            (done,), waiting = self._ray.wait(waiting)
            try:
                yield jobs[done], self._ray.get(done)
            except errors.RayTaskError as error:
                raise WorkerError(f"a worker failed:\n{error}") from None
            except errors.RayError as error:
                raise WorkerError(
                    f"Ray lost a job {RETRIES + 1} times and gives up: {error} If memory ran out, take nodes with"
                    " fewer cores (ray start --num-cpus), or lower client.batch_size."
                ) from error


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports over the network
    try:
        import ray
    except ImportError as error:
        raise WorkerError(
            "engine=ray needs the extra `ray` of pyproject.toml: pip install 'ray>=2.9'; without it, take engine=pool"
        ) from error
    return ray


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, with which a run writes its last checkpoint."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _train(where: list[Any], round: int, client: int, compromised: bool) -> tuple[Any, Any, float, Any]:
    """In a worker: local minus global model [d + b], the local counters [c], the loss and the notes; all as arrays."""
    bench, (row, counters, memory) = _bench(where[0]), _state(where[1])
    (out,), (out_counters,) = bench.task.layout.zeros(1)
    loss, notes = bench.train(row, counters, told(memory, client, compromised), round, client, compromised)
    bench.write_update(row, out, out_counters)
    return out.numpy(), out_counters.numpy(), loss, to_arrays(notes)


def _evaluate(where: list[Any], round: int, name: str, part: slice) -> Evaluation:
    bench, (row, counters, _) = _bench(where[0]), _state(where[1])
    if name == "backdoor" and where[2] is not None:
        bench = _restamped(bench, torch.tensor(_import_ray().get(where[2])))
    return bench.evaluate(row, counters, round, name, part)


@lru_cache(maxsize=1)
def _bench(task: Any) -> Workbench:
    """This process's own, from the task's place in the object store."""
    prepare_process(threads=1)
    return Workbench(_import_ray().get(task))


@lru_cache(maxsize=1)
def _state(state: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Row, counters and memory of a round; copies, because the store's own bytes are read-only."""
    row, counters, memory = _import_ray().get(state)
    return torch.tensor(row), torch.tensor(counters), _copies(memory)


def _copies(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def _restamped(bench: Workbench, x: Tensor) -> Workbench:
    """The same workbench with other images [N, C, H, W] in the backdoor set."""
    sets = bench.task.eval_sets
    other = copy.copy(bench)
    other.task = replace(bench.task, eval_sets={**sets, "backdoor": Samples(x, sets["backdoor"].y)})
    return other
