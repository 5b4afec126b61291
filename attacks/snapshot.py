"""A model's whole state as one row, so that an attack can train from the same start twice and keep both results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from flame.geometry.layout import Entry, StateLayout


@dataclass(frozen=True)
class Snapshot:
    """Copies: training on changes nothing here."""

    layout: StateLayout
    row: Tensor  # [d + b] float32
    counters: Tensor  # [c] int64

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """The model as it is now."""
        layout = StateLayout.of(model)
        (row,), (counters,) = layout.zeros(1)
        layout.flatten(model.state_dict(), row, counters)
        return cls(layout, row, counters)

    def load(self, model: nn.Module) -> None:
        """Make the model what it was."""
        self.layout.load(model.state_dict(), self.row, self.counters)

    def with_layers(self, other: Snapshot, layers: Iterable[Entry]) -> Snapshot:
        """This model, those tensors taken from the other one."""
        row = self.row.clone()
        for e in layers:
            row[e.start : e.stop] = other.row[e.start : e.stop]
        return replace(self, row=row)
