"""What the first round starts from: random weights, weights from a file, or a model that clean rounds have trained.

Bagdasaryan et al. (AISTATS 2020), DBA, Neurotoxin, 3DFed and BackFed's tables attack a converged model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flame.round.plain import LISTED, alike, differences, named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scratch:
    """The model's own initialisation."""

    @property
    def rounds(self) -> int:
        """None."""
        return 0

    def load(self, model: nn.Module, dataset: Mapping[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Trained:
    """Rounds of clean averaging on this run's own data, model and client, from its initialisation."""

    rounds: int  # >= 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(
                f"start.rounds={self.rounds} is out of range: must be a whole number >= 1; start=scratch has none"
            )

    def load(self, model: nn.Module, dataset: Mapping[str, Any]) -> None:
        """Nothing: the rounds begin where `scratch` does."""


@dataclass(frozen=True)
class File:
    """A state_dict, or the model of another run."""

    path: str | None  # ~ is the home directory
    strict: bool  # whether all of the model must be in it, and the data the same

    def __post_init__(self) -> None:
        if self.path is None:
            raise ValueError(
                "start.path=null: start=file needs a state_dict (.safetensors, .pt) or a run folder of ours"
            )

    @property
    def rounds(self) -> int:
        """None."""
        return 0

    def load(self, model: nn.Module, dataset: Mapping[str, Any]) -> None:
        """Copy what fits, as float32.

        Raises:
            ValueError: it cannot be read, or is not finite, or does not fit and `strict` asks that it does.
        """
        from flame.run.weights import facts_of, read_weights  # here: build, which makes this part, is below it

        path = Path(str(self.path)).expanduser()
        weights, facts = read_weights(path)
        if self.strict and facts is not None:
            _check_data(path, facts, facts_of(dataset))
        own = model.state_dict()  # live tensors
        gaps = differences(own, weights)
        fitting = [key for key in own if key in weights and alike(own[key], weights[key])]
        if gaps and (self.strict or not fitting):
            raise ValueError(_misfit(path, gaps, bool(fitting)))
        if broken := [key for key in fitting if not bool(weights[key].float().isfinite().all())]:
            raise ValueError(
                f"start.path={path} is not finite in {named(broken)}: a run cannot start there; take another"
            )
        for key in fitting:
            own[key].copy_(weights[key])
        if gaps:
            kept = [key for key in own if key not in fitting]
            log.warning("start.path=%s: %s; %s keep their initialisation", path, gaps, named(kept))


def _check_data(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    if ours and keys:
        changed = ", ".join(f"{key}={theirs.get(key)} instead of {ours.get(key)}" for key in keys[:LISTED])
        raise ValueError(
            f"start.path={path} was trained on other data: dataset {changed}; set dataset to that, or"
            " start.strict=false starts from it all the same"
        )


def _misfit(path: Path, gaps: str, some: bool) -> str:
    remedy = (
        "start.strict=false keeps the initialisation of what is missing or misshapen (a new head)"
        if some
        else "it has nothing in common with this model"
    )
    return f"start.path={path} does not fit the model ({gaps}): set model to the one that it was trained with; {remedy}"
