"""The learning rate of clients over the rounds of a run, as a factor.

Shapes and numbers are those of torch.optim.lr_scheduler, stepped once a round.

With a warm-up of w rounds, round r < w has (r + 1) / (w + 1) of the rate (Goyal et al., arXiv 1706.02677, 2017: linear,
and full once it is over). `Step` and `MultiStep` count from round 0, `Cosine` and `Linear` from the warm-up's end.
These two fall over all rounds behind it, or over the first `falls` of them, and then stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Constant:
    """The same in every round; the others start from here."""

    warmup: int  # rounds, in [0, rounds)
    rounds: int  # of the run

    def __post_init__(self) -> None:
        require(0 <= self.warmup < self.rounds, "warmup", self.warmup, f"in [0, rounds - 1 = {self.rounds - 1}]")

    def __call__(self, round: int) -> float:
        """The factor of a round, counted from 0."""
        return min(1.0, (round + 1) / (self.warmup + 1)) * self.shape(round)

    def shape(self, round: int) -> float:
        """The factor without the warm-up."""
        return 1.0


@dataclass(frozen=True)
class Step(Constant):
    """Times gamma after each `every` rounds (StepLR)."""

    every: int  # rounds, in [1, rounds)
    gamma: float  # in (0, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.every < self.rounds, "every", self.every, f"in [1, rounds - 1 = {self.rounds - 1}]")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "in (0, 1]")

    def shape(self, round: int) -> float:
        """See `Constant.shape`."""
        return float(self.gamma ** (round // self.every))


@dataclass(frozen=True)
class MultiStep(Constant):
    """Times gamma at each of the milestones (MultiStepLR)."""

    milestones: Sequence[float]  # whole rounds in [1, rounds), or shares of all rounds in (0, 1)
    gamma: float  # in (0, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        fit = all(0 < m < 1 or (m % 1 == 0 and 1 <= m < self.rounds) for m in self.milestones)
        allowed = f"whole rounds in [1, rounds - 1 = {self.rounds - 1}] or shares of all rounds in (0, 1)"
        require(fit, "milestones", list(self.milestones), allowed)
        require(0 < self.gamma <= 1, "gamma", self.gamma, "in (0, 1]")

    def shape(self, round: int) -> float:
        """See `Constant.shape`."""
        over = [m for m in self.milestones if (m * self.rounds if m < 1 else m) <= round + 1e-9]  # 0.28 * 25 is above 7
        return float(self.gamma ** len(over))


@dataclass(frozen=True)
class Linear(Constant):
    """Straight from 1 to `end`, which the round behind the last of the fall would have (LinearLR)."""

    end: float  # in [0, 1]
    falls: int | None = field(default=None, kw_only=True)  # rounds of the fall, >= 1; None: all behind the warm-up

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.end <= 1, "end", self.end, "in [0, 1]")
        behind = self.rounds - self.warmup
        fits = self.falls is None or 1 <= self.falls <= behind
        require(fits, "falls", self.falls, f"null (all) or in [1, rounds - warmup = {behind}]")

    def share(self, round: int) -> float:
        """How much of the fall is over, in [0, 1]."""
        return min(1.0, max(0, round - self.warmup) / (self.falls or self.rounds - self.warmup))

    def shape(self, round: int) -> float:
        """See `Constant.shape`."""
        return 1 + (self.end - 1) * self.share(round)


@dataclass(frozen=True)
class Cosine(Linear):
    """Half a cosine from 1 to `end` (CosineAnnealingLR; Loshchilov and Hutter, ICLR 2017, without restarts)."""

    def shape(self, round: int) -> float:
        """See `Constant.shape`."""
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * self.share(round))) / 2


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """A ValueError that names the key, its value and what is allowed, unless the condition holds."""
    if not holds:
        raise ValueError(f"client.schedule.{key}={value} is out of range: must be {allowed}")
