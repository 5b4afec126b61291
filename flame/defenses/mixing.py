"""Weighted means of clients in the place of clients: what pre-aggregation hands to a rule, and how its answer is read.

A rule that remembers clients sees the mixtures' ids; integer counters and sample counts are rounded means. One that
tries models tries mixtures, and its validators are still the clients themselves.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from flame.defenses.base import Defense, Sends
from flame.round.smoothing import Smoothing
from flame.round.types import Updates, Verdict


class PreAggregation:
    """A rule before another one: what the inner rule asks of the federation, it asks for too."""

    rule: Defense  # what aggregates the mixtures

    @property
    def root_samples(self) -> int:
        """Images that the inner rule keeps at the server."""
        return getattr(self.rule, "root_samples", 0)

    @property
    def root_update(self) -> bool:
        """Whether the inner rule wants the server's own update."""
        return getattr(self.rule, "root_update", True)

    def check_clients(self, clients: int) -> None:
        """The inner rule's answer for as many mixtures, under the key that it has here."""
        check = getattr(self.rule, "check_clients", None)
        try:
            if check is not None:
                check(clients)
        except ValueError as error:
            raise ValueError(str(error).replace("defense.", "defense.rule.", 1)) from error

    @property
    def needs_lab(self) -> bool:
        """Whether the inner rule tries models."""
        return getattr(self.rule, "needs_lab", False)

    @property
    def sends(self) -> Sends | None:
        """How the inner rule changes what clients start from."""
        return getattr(self.rule, "sends", None)

    @property
    def randomized_smoothing(self) -> Smoothing | None:
        """The vote by which the inner rule's model answers."""
        return getattr(self.rule, "randomized_smoothing", None)

    @property
    def answer_confidence(self) -> float:
        """The probability from which an answer of the inner rule's model counts."""
        return getattr(self.rule, "answer_confidence", 0.0)


def mix(updates: Updates, mixing: Tensor, ids: Tensor) -> Updates:
    """k mixtures of n clients: `mixing` [k, n] float64, each row adding up to 1; `ids` [k] are their numbers."""
    return replace(
        updates,
        ids=ids,
        rows=mixing.float() @ updates.rows,
        counters=(mixing @ updates.counters.double()).round().long(),
        samples=(mixing @ updates.samples.double()).round().long(),
        losses=mixing @ updates.losses,
        recorded=None,
    )


def unmix(verdict: Verdict, mixing: Tensor) -> Verdict:
    """The verdict on mixtures as one on clients: a client weighs what its shares of all mixtures weigh.

    Clip factors belong to mixtures and are not reported.
    """
    return replace(verdict, weights=verdict.weights @ mixing, clip_factors=None)
