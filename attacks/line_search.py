"""The factor of a crafted update that hurts a rule most, found by asking the rule: ByzFL's search (LPD-EPFL/byzfl
69bd1ac, byzfl/attacks/attacks.py, Optimal_ALittleIsEnough and Optimal_InnerProductManipulation).

The damage of a factor is the distance of the aggregate from the mean of the honest updates. From `start`, the factor
grows by a step that doubles as long as the damage grows; after the first that is none better, the step shrinks to
`ratio` of itself each time, and a better factor is kept. Of a plain mean there is no worst factor: 20 evaluations end
at five million.

Threat model: the attacker knows the rule in force with its settings and its memory, and sees all honest updates. It
does not know what the rule draws. A rule that asks for images at the server or tries models cannot be asked.

Deviations: the aggregate is read as the change of the model that the rule answers, in the columns that are crafted; a
server's optimiser plays no part. ByzFL gives the search a rule and pre-aggregations of its own, clipping at 2 and the
mean unless told otherwise; here it is the run's `defense` unless `attack.search.rule` is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Generator, Tensor

from attacks.base import Scene, require, seen
from flame.geometry.guard import LARGEST_NORM
from flame.round.seeding import generator
from flame.round.types import ServerState, Updates, Verdict


class Rule(Protocol):
    """A defense, as `flame/defenses/base.py` has it; a room further on."""

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The next global model."""


@dataclass(frozen=True)
class LineSearch:
    """How many factors are tried, and where."""

    rule: Rule  # that the attacker takes to be in force
    evaluations: int  # of the rule, in a round, >= 1
    start: float  # first factor
    step: float  # to the second one, > 0
    ratio: float  # by which the step shrinks, in (0.5, 1)

    def __post_init__(self) -> None:
        require(self.evaluations >= 1, "search.evaluations", self.evaluations, "a whole number >= 1")
        require(0 <= self.start < float("inf"), "search.start", self.start, "in [0, inf)")
        require(0 < self.step < float("inf"), "search.step", self.step, "in (0, inf)")
        require(0.5 < self.ratio < 1, "search.ratio", self.ratio, "in (0.5, 1)")
        for key in ("root_samples", "needs_lab"):
            if getattr(self.rule, key, 0):
                raise ValueError(
                    f"attack.search.rule={type(self.rule).__name__} needs images, so that nobody can ask it about an"
                    " update beforehand: must be a rule that reads updates alone, such as krum"
                )

    def factor(self, candidate: Callable[[float], Tensor], scene: Scene, columns: slice, stream: Generator) -> float:
        """The best factor found; `candidate` maps one to what all colluders would send in the columns, [k]."""
        mean, _ = honest_moments(scene, columns)
        seed = stream.initial_seed()

        def damage(factor: float) -> float:
            sent = candidate(factor)
            if not bool(sent.double().norm() <= LARGEST_NORM):  # the server's guard would take it out
                return 0.0
            moved = self._answer(sent, scene, columns, generator(seed, "line search"))
            return float((moved - mean).double().norm())

        return search(damage, self.evaluations, self.start, self.step, self.ratio)

    def _answer(self, sent: Tensor, scene: Scene, columns: slice, stream: Generator) -> Tensor:
        """[k] by which the rule would move the model if all colluders sent this."""
        sight = seen(scene)
        rows = sight.updates.rows.clone()
        rows[sight.mine, columns] = sent
        verdict = self.rule(scene.state, replace(sight.updates, rows=rows, recorded=None), stream)
        return (verdict.state.row - scene.state.row)[columns]


def search(damage: Callable[[float], float], evaluations: int, start: float, step: float, ratio: float) -> float:
    """The factor of the largest damage found; only a larger one counts, so that the first of equals is kept."""
    best, most, growing = start, damage(start), True
    for _ in range(evaluations - 1):
        tried = best + step
        found = damage(tried)
        if found > most:
            best, most = tried, found
        growing = growing and best == tried
        step *= 2 if growing else ratio
    return best


def honest_moments(scene: Scene, columns: slice) -> tuple[Tensor, Tensor]:
    """[k] each, mean and standard deviation of the honest updates, that of a sample as ByzFL has it.

    A round of attackers alone has a mean of 0, and one honest client no deviation.
    """
    honest = seen(scene).others[:, columns]
    none = honest.new_zeros(honest.shape[1])
    return (honest.mean(0) if len(honest) else none), (honest.std(0) if len(honest) > 1 else none)
