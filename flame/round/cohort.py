"""Who takes part in a round, which of them the attacker controls, and which rounds are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flame.round.seeding import generator
from flame.round.types import Cohort


@dataclass(frozen=True)
class Schedule:
    """The rounds in which the attack is carried out; elsewhere compromised clients train benignly."""

    start: int  # first attacked round, from 0
    stop: int | None  # first round after the attack; None: to the end
    every: int  # 1: each round from start on; k: every k-th

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"attack_rounds.every={self.every} is out of range: must be a whole number >= 1")
        if self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise ValueError(f"attack_rounds: start={self.start}, stop={self.stop} must satisfy 0 <= start <= stop")

    def rounds(self, total: int) -> range:
        """The attacked ones of so many."""
        return range(self.start, total if self.stop is None else min(self.stop, total), self.every)

    def active(self, round: int) -> bool:
        """Whether the attack is on in this round."""
        return (
            round >= self.start and (self.stop is None or round < self.stop) and (round - self.start) % self.every == 0
        )


@dataclass(frozen=True)
class EvaluatedRounds:
    """Every k-th of the rounds and the last ones: a rule, not a list, so that any number of rounds takes no memory."""

    rounds: int
    every: int
    last: int

    def __contains__(self, number: object) -> bool:
        return (
            isinstance(number, int)
            and 0 <= number < self.rounds
            and ((number + 1) % self.every == 0 or number >= self.rounds - self.last)
        )

    def __len__(self) -> int:
        last = min(self.last, self.rounds)
        return last + (self.rounds - last) // self.every


@dataclass(frozen=True)
class Population:
    """All clients, and the rule by which a round's cohort is drawn from them."""

    clients: int
    per_round: int
    poisoned_model_rate: float  # PMR: compromised / all clients, [0, 1)
    rule: str  # "fixed": round(PMR * n) attackers in every round; "random": n clients drawn from all
    schedule: Schedule
    hostile: bool  # False with attack=none: the same cohorts, nobody compromised
    seed: int

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients={self.clients} is out of range: must be a whole number >= 1")
        if not 1 <= self.per_round <= self.clients:
            raise ValueError(
                f"clients_per_round={self.per_round} is out of range: must be in [1, clients={self.clients}]"
            )
        if not 0 <= self.poisoned_model_rate < 1:
            raise ValueError(f"poisoned_model_rate={self.poisoned_model_rate} is out of range: must be in [0, 1)")
        if self.rule not in ("fixed", "random"):
            raise ValueError(f"attackers={self.rule!r} is unknown: must be fixed or random")
        if not self.hostile:
            return
        rate = f"poisoned_model_rate={self.poisoned_model_rate}"
        fixed = self.rule == "fixed"
        if self.poisoned_model_rate > 0 and not (self.attackers if fixed else self.controlled):
            of = f"clients_per_round={self.per_round}" if fixed else f"clients={self.clients}"
            raise ValueError(
                f"{rate} of {of} rounds to no attacker in any round: raise one of them, or say attack=none"
            )
        if self.controlled == self.clients:
            raise ValueError(f"{rate} of clients={self.clients} rounds to all of them: lower it, or raise clients")
        if fixed and self.attackers == self.per_round:
            raise ValueError(f"{rate} of clients_per_round={self.per_round} rounds to no benign client: lower it")

    @property
    def attackers(self) -> int:
        """round(PMR * n), the attackers of a round under the rule `fixed`; there are always so many."""
        return round(self.poisoned_model_rate * self.per_round)

    @property
    def colluders(self) -> range:
        """The numbers of attackers, from 1 on, that a round may have; empty where nobody attacks."""
        if not self.hostile or self.poisoned_model_rate == 0:
            return range(0)
        if self.rule == "fixed":
            return range(self.attackers, self.attackers + 1)
        return range(1, min(self.controlled, self.per_round) + 1)

    @property
    def controlled(self) -> int:
        """round(PMR * clients), the attacker's clients."""
        return round(self.poisoned_model_rate * self.clients)

    def compromised(self) -> Tensor:
        """[clients] bool, the attacker's clients; the same for a whole run."""
        mask = torch.zeros(self.clients, dtype=torch.bool)
        order = torch.randperm(self.clients, generator=generator(self.seed, "compromised"))
        mask[order[: self.controlled]] = True
        return mask

    def attacked(self, rounds: int) -> bool:
        """Whether, of so many rounds, any has an attacker: under the rule `random` there need not be one."""
        mask = self.compromised()
        return any(bool(self._drawn(round_, mask).compromised.any()) for round_ in self.schedule.rounds(rounds))

    def cohort(self, round_: int) -> Cohort:
        """The cohort of a round, ids ascending; a function of (seed, round) alone, so that runs can be paired."""
        return self._drawn(round_, self.compromised())

    def _drawn(self, round_: int, mask: Tensor) -> Cohort:
        order = torch.randperm(self.clients, generator=generator(self.seed, "cohort", round_))
        if self.rule == "fixed":
            hostile, benign = order[mask[order]], order[~mask[order]]
            order = torch.cat([hostile[: self.attackers], benign[: self.per_round - self.attackers]])
        ids = order[: self.per_round].sort().values
        return Cohort(ids, mask[ids] & (self.hostile and self.schedule.active(round_)))
