"""One process, one thread, one client after the other: the oracle for every other engine."""

from __future__ import annotations

import torch
from torch import Tensor

from flame.engine.spill import Store
from flame.engine.workbench import Task, Workbench, restamp
from flame.round.device import aggregating, one_thread
from flame.round.evaluate import Evaluation, slices, total
from flame.round.server import told
from flame.round.types import Cohort, Notes, ServerState, Updates


class Sequential:
    """Trains in this process."""

    def __init__(self, task: Task, *, aggregate_on: str = "cpu") -> None:
        self.aggregate_on = aggregating(task.device, aggregate_on)
        self._task = task
        self._bench = Workbench(task)
        self._store = Store(task.spill)

    @one_thread()
    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, list[Notes]]:
        """See `Engine.train`."""
        rows, counters = self._store.room(len(cohort.ids), self._task.layout)
        losses, notes = torch.zeros(len(cohort.ids), dtype=torch.float64), []
        for i, (client, compromised) in enumerate(zip(cohort.ids.tolist(), cohort.compromised.tolist(), strict=True)):
            losses[i], noted = self.train_one(state, client, compromised, rows[i], counters[i])
            notes.append(noted)
        return self._task.updates(state, cohort.ids, rows, counters, losses), notes

    def train_one(
        self, state: ServerState, client: int, compromised: bool, row: Tensor, counters: Tensor
    ) -> tuple[float, Notes]:
        """What one client sends goes to `row` [d + b] and `counters` [c]; its loss and notes."""
        memory = told(state.memory, client, compromised)
        found = self._bench.train(state.row, state.counters, memory, state.round, client, compromised)
        self._bench.write_update(state.row, row, counters)
        return found

    @one_thread()
    def evaluate(self, state: ServerState) -> dict[str, Evaluation]:
        """See `Engine.evaluate`."""
        restamp(self._task, state.memory)
        state = self._task.evaluated(state)
        model = state.row, state.counters, state.round
        return {
            name: total(self._bench.evaluate(*model, name, part) for part in slices(len(images)))
            for name, images in self._task.eval_sets.items()
        }

    def close(self) -> None:
        """Nothing to release."""
