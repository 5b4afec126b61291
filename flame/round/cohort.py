"""Who takes part in a round, which of them the attacker controls, and which rounds are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from flame.round.seeding import generator
from flame.round.types import Cohort

BEGAN = "schedule/began"  # in a state's memory: [] int64, the round from which an attack with `after_ma` counts


@dataclass(frozen=True)
class Schedule:
    """The rounds in which the attack is carried out; elsewhere compromised clients train benignly.

    With `after_ma` they count from the round after MA has first exceeded it. zhmzm/FLAME (main_fed.py, commit 9cb8d27,
    `attack_begin`) asks so in every round; there the attack pauses when MA falls back.
    """

    start: int  # first attacked round, from 0
    stop: int | None  # first round after the attack; None: to the end
    every: int  # 1: each round from start on; k: every k-th
    after_ma: float | None = None  # in (0, 1); None: they count from round 0

    def __post_init__(self) -> None:
        if self.after_ma is not None and not 0 < self.after_ma < 1:
            raise ValueError(
                f"attack_rounds.after_ma={self.after_ma} is out of range: must be in (0, 1), a share of test images, or"
                " null"
            )
        if self.every < 1:
            raise ValueError(f"attack_rounds.every={self.every} is out of range: must be a whole number >= 1")
        if self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise ValueError(f"attack_rounds: start={self.start}, stop={self.stop} must satisfy 0 <= start <= stop")

    def rounds(self, total: int) -> range:
        """The attacked ones of so many."""
        return range(self.start, total if self.stop is None else min(self.stop, total), self.every)

    def began(self, memory: Mapping[str, Tensor]) -> int | None:
        """The round that `start`, `stop` and `every` count from; None while MA has not exceeded `after_ma`."""
        if self.after_ma is None:
            return 0
        return int(memory[BEGAN]) if BEGAN in memory else None

    def noted(self, memory: Mapping[str, Tensor], ma: float, finished: int) -> Mapping[str, Tensor]:
        """The memory after `finished` rounds, the last of which ended with this MA in [0, 1]."""
        if self.began(memory) is not None or self.after_ma is None or not ma > self.after_ma:
            return memory
        return {**memory, BEGAN: torch.tensor(finished)}

    def active(self, round: int) -> bool:
        """Whether the attack is on in this round, counted from the one in which it began."""
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
        """Whether, of so many rounds, any has an attacker: under the rule `random` there need not be one.

        True while nobody knows, because the attack begins after some MA; see `unattacked`.
        """
        if self.waits({}):
            return True
        mask = self.compromised()
        return any(bool(self._drawn(round_, mask, {}).compromised.any()) for round_ in self.schedule.rounds(rounds))

    def waits(self, memory: Mapping[str, Tensor]) -> bool:
        """Whether MA must be known after every round, because the attack begins by it and has not yet."""
        return self.hostile and self.schedule.began(memory) is None

    def unattacked(self, rounds: int, memory: Mapping[str, Tensor], best: float) -> str | None:
        """After all `rounds`, a sentence if the attack waited for an MA above `best`, or for too long; else None."""
        schedule = self.schedule
        if not self.hostile or schedule.after_ma is None:
            return None
        began, wanted = schedule.began(memory), f"attack_rounds.after_ma={schedule.after_ma}"
        if began is None:
            return f"no round was attacked: MA never exceeded {wanted}, its best: {best:.4f}; lower it, raise rounds"
        if began + schedule.start < rounds:
            return None
        return (
            f"no round was attacked: MA first exceeded {wanted} in round {began - 1} of {rounds}, from 0; raise rounds"
        )

    def cohort(self, round_: int, memory: Mapping[str, Tensor] = MappingProxyType({})) -> Cohort:
        """The cohort of a round, ids ascending; a function of (seed, round) alone, so that runs can be paired.

        Who of them attacks may depend on `memory`, the state's, for a schedule with `after_ma`.
        """
        return self._drawn(round_, self.compromised(), memory)

    def _drawn(self, round_: int, mask: Tensor, memory: Mapping[str, Tensor]) -> Cohort:
        order = torch.randperm(self.clients, generator=generator(self.seed, "cohort", round_))
        if self.rule == "fixed":
            hostile, benign = order[mask[order]], order[~mask[order]]
            order = torch.cat([hostile[: self.attackers], benign[: self.per_round - self.attackers]])
        ids = order[: self.per_round].sort().values
        began = self.schedule.began(memory)
        return Cohort(ids, mask[ids] & (self.hostile and began is not None and self.schedule.active(round_ - began)))
