"""The optimisers of local training: torch's own, a fresh one for every client and round."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


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
        return torch.optim.SGD(parameters, lr, momentum=self.momentum, weight_decay=self.weight_decay, foreach=True)


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
        return torch.optim.Adam(parameters, lr, (self.beta1, self.beta2), self.eps, self.weight_decay, foreach=True)


@dataclass(frozen=True)
class AdamW(Adam):
    """Loshchilov and Hutter, ICLR 2019: weight decay apart from the gradient."""

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """See `Optimizer.over`."""
        return torch.optim.AdamW(parameters, lr, (self.beta1, self.beta2), self.eps, self.weight_decay, foreach=True)


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"client.optimizer.{key}={value} is out of range: must be {allowed}")
