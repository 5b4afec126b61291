"""A view of the run for TensorBoard: event files in the run folder, `tensorboard --logdir RUNS` shows them all.

Each sitting of a run writes a file of its own; TensorBoard drops what an interrupted one wrote beyond its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from flame.federation import Round
from flame.run.classes import class_metrics
from flame.run.record import flatten
from flame.run.trackers.base import RunInfo, dispensable
from flame.run.trackers.exhibits import final

FOLDER = "tensorboard"  # in the run folder


class TensorBoard:
    """A point per metric and round and, at the end, the means of the last rounds."""

    def __init__(self) -> None:
        """ValueError without the package."""
        if find_spec("tensorboard") is None:
            raise ValueError(
                "tracker=tensorboard needs a package that is not installed: pip install 'tensorboard>=2.15'"
            )
        self._writer: Any = None  # torch's SummaryWriter

    def start(self, info: RunInfo, first_round: int) -> None:
        """Open the event file; rounds from `first_round` on that an interrupted run has written do not count."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(info.folder / FOLDER), purge_step=first_round)
        self._writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in flatten(info.config).items()))

    def log(self, record: Round) -> None:
        """One point per metric."""
        with dispensable("the round for TensorBoard"):
            self._points({**record.metrics, **class_metrics(record.classes)}, record.number)
            self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """`final/*`: the means of the last rounds."""
        self._points(final(summary["metrics"]), summary["rounds"])

    def close(self, exit_code: int) -> None:
        """Close the file."""
        self._writer.close()

    def _points(self, metrics: Mapping[str, float], number: int) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, number)
