"""The optimisers of local training: torch's own to the bit, a fresh one for every client and round.

Deviation: torch wraps theirs to tell its compiler to pass by, and imports 900 modules for that (torch._dynamo), one
second in every process. Here nothing is compiled, and the methods inside those wraps are called.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn

Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])


def _bare(kind: Kind) -> Kind:
    """The same without torch._dynamo; see above."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    bare: Any = type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})
    return cast(Kind, bare)


BareSGD = _bare(torch.optim.SGD)
BareAdam = _bare(torch.optim.Adam)
BareAdamW = _bare(torch.optim.AdamW)


class Optimizer(Protocol):
    """An optimiser's settings but for its rate, which is the recipe's."""

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """A fresh one for these parameters."""


@dataclass(frozen=True)
class SGD:
    """v = momentum v + g + weight_decay w; w = w - lr v."""

    momentum: float  # [0, 1)
    weight_decay: float  # >= 0

    def __post_init__(self) -> None:
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "in [0, inf)")

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """See `Optimizer.over`."""
        return BareSGD(parameters, lr, momentum=self.momentum, weight_decay=self.weight_decay, foreach=True)


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba, ICLR 2015; weight decay is part of the gradient."""

    beta1: float  # [0, 1)
    beta2: float  # [0, 1)
    eps: float  # > 0
    weight_decay: float  # >= 0

    def __post_init__(self) -> None:
        for key in ("beta1", "beta2"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "in [0, 1)")
        _require(0 < self.eps < math.inf, "eps", self.eps, "> 0")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "in [0, inf)")

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """See `Optimizer.over`."""
        return BareAdam(parameters, lr, (self.beta1, self.beta2), self.eps, self.weight_decay, foreach=True)


@dataclass(frozen=True)
class AdamW(Adam):
    """Loshchilov and Hutter, ICLR 2019: weight decay apart from the gradient."""

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """See `Optimizer.over`."""
        return BareAdamW(parameters, lr, (self.beta1, self.beta2), self.eps, self.weight_decay, foreach=True)


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"client.optimizer.{key}={value} is out of range: must be {allowed}")
