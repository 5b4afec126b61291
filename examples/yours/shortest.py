from dataclasses import dataclass, replace

from torch import Generator

from flame.defenses.base import average, uniform
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class Shortest:
    """Accept the clients whose updates are shortest."""

    accepted: int
    scope: str

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        ranks = updates.geometry.norms(self.scope).argsort().argsort()  # [n], 0: the shortest
        weights = uniform(ranks < self.accepted)
        return Verdict(replace(state, row=average(state, updates, weights)), weights)
