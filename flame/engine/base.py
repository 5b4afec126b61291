"""What an engine is, and how it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from flame.round.evaluate import Evaluation
from flame.round.types import Cohort, Notes, ServerState, Updates


class WorkerError(RuntimeError):
    """A worker failed: its own traceback, or what killed it."""


class Engine(Protocol):
    """Trains and evaluates; all but `stacked`, which rounds otherwise, give the same bits for the same arguments."""

    aggregate_on: torch.device | None  # where updates are compared and averaged; None: the host, in its own arithmetic

    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, Sequence[Notes]]:
        """Local training of a whole cohort; the rows are overwritten by the next call.

        Beside what each client sends, what it noted for its accomplices: [n] of them, those of benign clients empty.
        """

    def evaluate(self, state: ServerState) -> Mapping[str, Evaluation]:
        """The global model on every evaluation set of the task, the backdoor set as the attack stamps it by now.

        For a defense with `randomized_smoothing`, the vote of its copies (`flame/round/smoothing.py`).
        """

    def close(self) -> None:
        """Release processes and memory."""
