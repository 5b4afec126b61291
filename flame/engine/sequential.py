"""One process, one thread, one client after the other: the oracle for every other engine."""

from __future__ import annotations

import torch

from flame.engine.spill import Store
from flame.engine.workbench import Task, Workbench, restamp
from flame.round.device import one_thread
from flame.round.evaluate import Evaluation, slices, total
from flame.round.server import told
from flame.round.types import Cohort, Notes, ServerState, Updates


class Sequential:
    """Trains in this process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._bench = Workbench(task)
        self._store = Store(task.spill)

    @one_thread()
    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, list[Notes]]:
        """See `Engine.train`."""
        rows, counters = self._store.room(len(cohort.ids), self._task.layout)
        losses, notes = torch.zeros(len(cohort.ids), dtype=torch.float64), []
        for i, (client, compromised) in enumerate(zip(cohort.ids.tolist(), cohort.compromised.tolist(), strict=True)):
            losses[i], noted = self._bench.train(
                state.row, state.counters, told(state.memory, client, compromised), state.round, client, compromised
            )
            notes.append(noted)
            self._bench.write_update(state.row, rows[i], counters[i])
        return self._task.updates(state, cohort.ids, rows, counters, losses), notes

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
