"""What a start is (`flame/run/start.py` has them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn


class Start(Protocol):
    """A start, seen before any round."""

    @property
    def rounds(self) -> int:
        """Clean rounds that come before the run's first; see `flame/run/clean.py`."""

    def load(self, model: nn.Module, dataset: Mapping[str, Any]) -> None:
        """Put weights into a model at its initialisation; `dataset` is the run's, as its config has it."""
