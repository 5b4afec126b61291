"""Step 6: Gaussian noise, once, on the aggregate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flame.defenses.base import check_choice
from flame.geometry.layout import SCOPES, StateLayout, scope_blocks


@dataclass(frozen=True)
class Noise:
    """N(0, std^2) per tensor; `level` is the paper's lambda."""

    factor: float | None  # lambda, >= 0
    epsilon: float | None  # instead of factor, with delta: lambda = sqrt(2 ln(1.25 / delta)) / epsilon
    delta: float | None
    scale: str  # bound: std = lambda S_t | bound_squared: its square | bound_times_std: times each tensor's own std
    at: str  # aggregate: added to the mean | sum: to the sum of the accepted, before server_lr / divisor
    scope: str  # the blocks that get noise
    skip: Sequence[str]  # parts of key names, e.g. [bias]; tensors so named get none

    def __post_init__(self) -> None:
        check_choice("noise.scale", self.scale, tuple(SCALES))
        check_choice("noise.at", self.at, ("aggregate", "sum"))
        check_choice("noise.scope", self.scope, tuple(SCOPES))
        if (self.factor is None) == (self.epsilon is None) or (self.epsilon is None) != (self.delta is None):
            raise ValueError("defense.noise: give either factor, or epsilon and delta; set the others to null")
        if self.factor is not None and not 0 <= self.factor < math.inf:
            raise ValueError(f"defense.noise.factor={self.factor} is out of range: must be >= 0 (the paper: 0.001)")
        if self.epsilon is not None and not (self.epsilon > 0 and 0 < (self.delta or 0) <= 1):
            raise ValueError(
                f"defense.noise.epsilon={self.epsilon}, defense.noise.delta={self.delta} are out of range: must be > 0"
                " and in (0, 1]"
            )

    @property
    def level(self) -> float:
        """lambda."""
        if self.factor is not None:
            return self.factor
        assert self.epsilon is not None and self.delta is not None
        return math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon

    def std(self, bound: float, shares: Tensor) -> float:
        """The standard deviation, before any factor of the tensor's own; `shares` [n] as in `Aggregate.shares`.

        On the sum it is relative to the most that one client can add to it. Under sample weights, which no preset joins
        with `at=sum`, that is lambda S_t in units of the largest weight, not of one image.
        """
        sigma = (self.level * bound) ** (2 if self.scale == "bound_squared" else 1)
        return sigma * float(shares.max()) if self.at == "sum" else sigma

    def add(self, row: Tensor, std: float, layout: StateLayout, stream: Generator) -> Tensor:
        """[d + b], a row with noise on the blocks of the scope."""
        row, blocks = row.clone(), scope_blocks(self.scope)
        for e in layout.entries:
            if std and e.block in blocks and not any(part in e.key for part in self.skip):
                values = row[e.start : e.stop]
                values += torch.randn(len(values), generator=stream) * (std * SCALES[self.scale](values))
        return row


def _spread(values: Tensor) -> float:
    """The tensor's unbiased standard deviation; 0 for a single value, where public code gets NaN."""
    return float(values.std()) if len(values) > 1 else 0.0


SCALES: Mapping[str, Callable[[Tensor], float]] = {
    "bound": lambda values: 1.0,
    "bound_squared": lambda values: 1.0,
    "bound_times_std": _spread,
}
