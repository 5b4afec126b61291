"""What the first round starts from: random weights, weights from a file, or a model that clean rounds have trained.

Bagdasaryan et al. (AISTATS 2020), DBA, Neurotoxin, 3DFed and BackFed's tables attack a converged model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

log = logging.getLogger(__name__)
LISTED = 5  # keys that a message names


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
        fitting = [key for key in own if key in weights and _alike(own[key], weights[key])]
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


def differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """`missing: a, b; unexpected: c; misshapen: d (2, 3) instead of (4, 3)`; empty if all fits."""
    misshapen = [
        f"{k} {_kind(given[k])} instead of {_kind(t)}" for k, t in own.items() if not _alike(t, given.get(k, t))
    ]
    lists = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "misshapen": misshapen,
    }
    return "; ".join(f"{kind}: {named(keys)}" for kind, keys in lists.items() if keys)


def named(keys: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _alike(own: Tensor, given: Tensor) -> bool:
    """Whether one can be copied into the other: floats of any width into floats, whole numbers into whole numbers."""
    return own.shape == given.shape and own.is_floating_point() == given.is_floating_point() and not given.is_complex()


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'}"


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
