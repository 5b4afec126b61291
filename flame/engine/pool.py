"""Persistent single-threaded worker processes, one per core or several per GPU; data and result rows in shared memory.

A client's work goes to whichever worker is free, and since every random stream is addressed by (seed, role, round,
client) and every worker runs one thread, the bits are those of `sequential`. A worker that dies is replaced and its
client trained again, to the same bits; three deaths within one call stop the run with the cause.
"""

from __future__ import annotations

import logging
import signal
import traceback
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing as mp

from flame.engine import PRELOADED, check_sockets
from flame.engine.base import WorkerError
from flame.engine.placement import homes
from flame.engine.sharing import Parcel, Room, empty_room, shared, to_arrays, to_tensors
from flame.engine.workbench import Task, Workbench, prepare_process, restamp
from flame.round.device import aggregating, one_thread
from flame.round.evaluate import Evaluation, slices, total
from flame.round.server import told
from flame.round.types import Cohort, Notes, ServerState, Updates

log = logging.getLogger(__name__)
MAX_DEATHS = 3  # per call, before the run stops
PATIENCE = 5.0  # seconds that a worker has to leave by itself


class Pool:
    """Trains on `workers` processes; on GPUs, on as many of them as there is room for, `per_gpu` on each."""

    def __init__(self, task: Task, workers: int, *, per_gpu: int | None = None, aggregate_on: str = "cpu") -> None:
        if workers < 1:
            raise ValueError(f"engine.workers={workers} is out of range: must be auto or a whole number >= 1")
        try:
            check_sockets()
            self._homes = homes(task, workers, per_gpu)
        except ValueError as error:
            raise WorkerError(str(error)) from error
        self.aggregate_on = aggregating(task.device, aggregate_on)
        self._parcel = shared(task)
        self._task = self._parcel.task
        if mp.get_start_method(allow_none=True) == "loky":  # in a joblib worker; its children would not know the name
            mp.set_start_method("forkserver", force=True)
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._room: Room | None = None
        self._workers: list[_Worker] = []

    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, list[Notes]]:
        """See `Engine.train`."""
        room = self._enter(state, len(cohort.ids))
        order = enumerate(zip(cohort.ids.tolist(), cohort.compromised.tolist(), strict=True))
        memory = state.memory
        jobs = [("train", i, to_arrays(told(memory, c, bad)), state.round, c, bad) for i, (c, bad) in order]
        # attackers may train longer: theirs go first, so that no core idles at the end
        done = self._run(sorted(jobs, key=lambda job: not job[-1]))
        losses, notes = zip(*(done[job] for job in range(len(jobs))), strict=True)
        loss = torch.tensor(losses, dtype=torch.float64)
        rows, counters = room.rows[: len(jobs)], room.counters[: len(jobs)]
        updates = self._task.updates(state, cohort.ids, rows, counters, loss)
        return updates, [to_tensors(noted) for noted in notes]

    def evaluate(self, state: ServerState) -> dict[str, Evaluation]:
        """See `Engine.evaluate`."""
        self._enter(self._task.evaluated(state), 1)
        with one_thread():
            restamp(self._task, state.memory)
        cuts = [(name, part) for name, images in self._task.eval_sets.items() for part in slices(len(images))]
        done = self._run([("evaluate", i, state.round, name, part) for i, (name, part) in enumerate(cuts)])
        return {name: total(done[i] for i, (of, _) in enumerate(cuts) if of == name) for name in self._task.eval_sets}

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _enter(self, state: ServerState, clients: int) -> Room:
        """Put the global model where the workers see it; make room and workers first if there are none that fit."""
        if self._room is None or self._room.rows.shape[0] < clients:
            self.close()
            layout = self._task.layout
            self._room = None  # before there is another: both may not fit
            self._room = empty_room(layout.size, layout.counter_size, clients, self._task.spill)
        for home in self._homes[len(self._workers) :]:
            self._workers.append(_Worker(self._context, self._parcel, self._room, home))
        self._room.row.copy_(state.row)
        self._room.base_counters.copy_(state.counters)
        return self._room

    def _run(self, jobs: Iterable[tuple]) -> dict[int, Any]:
        """Hand out jobs (kind, number, *arguments) to free workers; results by number. An error ends the workers."""
        try:
            return self._finish(jobs)
        except BaseException:
            self.close()
            raise

    def _finish(self, jobs: Iterable[tuple]) -> dict[int, Any]:
        waiting, deaths, results = deque(jobs), 0, dict[int, Any]()
        pending = len(waiting)
        while len(results) < pending:
            for worker in self._workers:
                if worker.job is None and waiting:
                    worker.give(waiting.popleft())
            for worker in _ready(self._workers):
                job = worker.job
                assert job is not None  # only busy workers are ready
                try:
                    results[job[1]] = worker.take()
                except EOFError:
                    deaths += 1
                    waiting.appendleft(job)
                    self._replace(worker, job, deaths)
        return results

    def _replace(self, worker: _Worker, job: tuple, deaths: int) -> None:
        cause = worker.cause_of_death()
        if deaths >= MAX_DEATHS:
            raise WorkerError(
                f"{deaths} workers died in one round, the last of {cause} during {job[0]} job {job[1]}. If memory ran "
                "out, lower engine.workers or client.batch_size."
            )
        log.warning("a worker died (%s); its job is done again on a new one, with the same result", cause)
        assert self._room is not None
        self._workers[self._workers.index(worker)] = _Worker(self._context, self._parcel, self._room, worker.home)


class _Worker:
    """The pool's end of one worker process."""

    def __init__(self, context: Any, parcel: Parcel, room: Room, home: str) -> None:
        self.home = home  # its device
        self.job: tuple | None = None
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, parcel, room, home), daemon=True)
        try:
            self.process.start()
        except OSError:
            raise
        except Exception as error:  # what cannot be sent makes the sender raise nearly anything
            raise WorkerError(
                f"a part of the run cannot be sent to a worker ({error}): a model, attack or client of yours must keep"
                " functions and classes that have a name at the top of a module (no lambda); or take engine=sequential"
            ) from error
        far.close()  # so that the worker's death reads as end of file here

    def give(self, job: tuple) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # if it is dead already, `take` will find the end of file
            self.connection.send(job)

    def take(self) -> Any:
        """The result; EOFError when the process died, WorkerError with its traceback when the job failed."""
        try:
            ok, result = self.connection.recv()
        except OSError as error:  # reset, or the end in the middle of a message
            raise EOFError from error
        self.job = None
        if not ok:
            raise WorkerError(f"a worker failed:\n{result}")
        return result

    def cause_of_death(self) -> str:
        self._end()
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"{name}, often out of memory" if name == "SIGKILL" else name
        return f"exit code {code}"

    def stop(self) -> None:
        self.connection.close()
        if self.job is not None:
            self.process.terminate()  # mid-job, so it would not notice the closed pipe soon
        self._end()

    def _end(self) -> None:
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """Workers with a result, or dead, among those that have a job; blocks until there is one."""
    busy = {w.connection: w for w in workers if w.job is not None}
    return [busy[c] for c in wait(list(busy))]


def _serve(connection: Connection, parcel: Parcel, room: Room, home: str) -> None:
    """A worker's life: serve jobs until the pool closes the pipe (or dies, which closes it too)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    prepare_process(threads=1)
    bench = Workbench(replace(parcel.opened(), device=home))
    while True:
        try:
            kind, number, *arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            result = (True, _do(bench, room, kind, number, arguments))
        except Exception:  # sent to the parent, which raises it
            result = (False, traceback.format_exc())
        with suppress(BrokenPipeError):  # the pool is gone; the next receive ends this life
            connection.send(result)


def _do(bench: Workbench, room: Room, kind: str, number: int, arguments: list) -> Any:
    if kind == "evaluate":
        return bench.evaluate(room.row, room.base_counters, *arguments)
    memory, *rest = arguments
    loss, notes = bench.train(room.row, room.base_counters, to_tensors(memory), *rest)
    bench.write_update(room.row, room.rows[number], room.counters[number])
    return loss, to_arrays(notes)
