"""SMEA, smallest maximum eigenvalue averaging (Allouah, Guerraoui, Gupta, Pinot and Stephan, "On the
Privacy-Robustness-Utility Trilemma in Distributed Learning", ICML 2023), as ByzFL has it (LPD-EPFL/byzfl 69bd1ac,
byzfl/aggregators/aggregators.py): of all choices of n - f clients, the one whose updates vary least along their
direction of largest variance is averaged.

The largest eigenvalue of a choice's covariance is that of its centred Gram matrix, so that nobody reads d coordinates
for it. There are n over f choices: 45 for two of ten clients, 4,845 for four of twenty, and a round with more than
100,000 is refused.

Deviations and open points: eigenvalues are exact, where ByzFL takes one step of the power method from a random vector
for each choice, so that its answer is another one in each call. f is a share of the round's clients, at most
(n - 1) // 2. Of equal choices the first one counts, in the order of the clients. Variances are those of the trainable
parameters; BatchNorm statistics are averaged over the chosen, counters stay the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, check_minority, minority, uniform
from flame.round.types import ServerState, Updates, Verdict

MOST_CHOICES = 100_000  # about two seconds for 20 clients
AT_ONCE = 1 << 20  # elements of the matrices that are worked on together: 8 MB


@dataclass(frozen=True)
class SMEA:
    """The mean of the n - f clients that spread least."""

    malicious_share: float  # f / n that is assumed, [0, 0.5)

    def __post_init__(self) -> None:
        check_minority(self.malicious_share)

    def check_clients(self, clients: int) -> None:
        """A ValueError if there are too many choices to look at."""
        choices = math.comb(clients, minority(self.malicious_share, clients))
        if choices > MOST_CHOICES:
            raise ValueError(
                f"defense.malicious_share={self.malicious_share} is out of range for {clients} clients in a round: SMEA"
                f" would look at {choices:,} choices, and must have at most {MOST_CHOICES:,}; lower clients_per_round"
                " or the share, or take defense=caf"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The chosen clients share equally."""
        n = len(updates)
        self.check_clients(n)
        f = minority(self.malicious_share, n)
        chosen, spread = narrowest(updates.geometry.scope("weights_only").gram, n - f)
        shares = uniform(chosen)
        info = {"smea/f": float(f), "smea/largest_variance": spread}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)


def narrowest(gram: Tensor, count: int) -> tuple[Tensor, float]:
    """[n] bool, the `count` clients whose largest variance is smallest, and that variance; inner products [n, n]."""
    choices = torch.tensor(list(combinations(range(len(gram)), count)))  # [choices, count]
    parts = choices.split(max(1, AT_ONCE // count**2))
    spreads = torch.cat([largest_variances(gram[part[:, :, None], part[:, None, :]]) for part in parts])
    best = int(spreads.argmin())
    chosen = torch.zeros(len(gram), dtype=torch.bool)
    chosen[choices[best]] = True
    return chosen, float(spreads[best])


def largest_variances(grams: Tensor) -> Tensor:
    """[k] float64, largest eigenvalue of the covariance of the vectors behind each Gram matrix of [k, m, m]."""
    centred = grams - grams.mean(dim=1, keepdim=True)
    centred = centred - centred.mean(dim=2, keepdim=True)
    return torch.linalg.eigvalsh((centred + centred.mT) / 2)[:, -1].clamp_min(0) / grams.shape[1]
