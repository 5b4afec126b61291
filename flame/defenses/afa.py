"""AFA, adaptive federated averaging (Munoz-Gonzalez et al., 2019, arXiv 1909.05125, algorithm 1 and section 3).

Clients whose cosine to the current mean lies xi standard deviations from the median cosine, on the side of the mean of
the cosines, are dropped; the mean is taken again and xi grows by delta_xi, until nobody is dropped. Each client has a
Beta posterior over sending good updates: its expectation p_k weighs the mean, and once more than `block` of it lies
below 1/2 the client is out for good.

Deviations and open points: p_k alone weighs the mean, not p_k times the sample count that the client claims; it is that
of the rounds before, in the result as in the filter (three public codes count this round in for the result). Cosines
are those of whole local models on the trainable parameters, as in IBM's federated-learning-lib and in the AFA.py that
several repositories share; FLShield's code (helper.py at afe44744) has them of updates, as `of: update` does. The
standard deviation is the population's. Cosines closer than 1e-12 are the same number. BatchNorm statistics get the same
weights, counters stay the server's. Updates refused by the guard are no evidence against their sender. A round in which
all clients are blocked leaves the model as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.special import betainc
from torch import Generator, Tensor

from flame.defenses.base import average, check_choice
from flame.defenses.per_client import recall, remember
from flame.round.types import ServerState, Updates, Verdict

RECORD = "defense/afa"  # per client: good rounds, bad rounds
ROUNDING = 1e-12


@dataclass(frozen=True)
class AFA:
    """The mean of the similar, weighted by reputation."""

    of: str  # model: cosines of local models | update: of their differences to the global one
    xi: float  # standard deviations allowed at first, > 0
    delta_xi: float  # how much more in each pass, >= 0
    prior: float  # alpha_0 = beta_0 of the Beta distribution, > 0
    block: float  # posterior probability of being bad from which a client is blocked, (0.5, 1]

    def __post_init__(self) -> None:
        check_choice("of", self.of, ("model", "update"))
        for key, value, low, high in (
            ("xi", self.xi, 0, math.inf),
            ("prior", self.prior, 0, math.inf),
            ("block", self.block, 0.5, 1),
        ):
            if not low < value <= high or math.isinf(value):
                limits = f"in ({low}, {high}]" if math.isfinite(high) else f"> {low} and finite"
                raise ValueError(f"defense.{key}={value} is out of range: must be {limits}")
        if not 0 <= self.delta_xi < math.inf:
            raise ValueError(f"defense.delta_xi={self.delta_xi} is out of range: must be >= 0 (0.5 is usual)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The good clients of this round by reputation, and everyone's reputation after it."""
        record = recall(state.memory, RECORD, updates.ids, 2)  # [n, 2]
        good, bad = (self.prior + record.double()).unbind(dim=1)  # the Beta posterior's parameters
        active = torch.from_numpy(betainc(good.numpy(), bad.numpy(), 0.5)) <= self.block  # P(p_k < 1/2)
        trust = good / (good + bad)  # p_k
        accepted = self.similar(self.inner_products(updates), trust, active)
        shares = normalise(trust * accepted)
        verdicts = torch.stack([accepted, ~accepted], dim=1) & active[:, None]
        memory = remember(state.memory, RECORD, updates.ids, record + verdicts)
        row = average(state, updates, shares)
        return Verdict(replace(state, row=row, memory=memory), shares, {"afa/blocked": float((~active).sum())})

    def inner_products(self, updates: Updates) -> Tensor:
        """[n, n] float64 of what is compared."""
        p = updates.geometry.scope("weights_only")
        return p.gram if self.of == "update" else p.gram + p.along + p.along[:, None] + p.base

    def similar(self, inner: Tensor, trust: Tensor, active: Tensor) -> Tensor:
        """[n] bool, those of the active [n] that no pass drops."""
        accepted, xi, dropped = active.clone(), self.xi, active
        while bool(dropped.any()):
            s = cosines_to_mean(inner, normalise(trust * accepted))  # [n]
            pool = s[accepted]
            median, slack = pool.quantile(0.5), xi * pool.std(correction=0) + ROUNDING
            dropped = accepted & (s < median - slack if pool.mean() < median else s > median + slack)
            accepted, xi = accepted & ~dropped, xi + self.delta_xi
        return accepted


def cosines_to_mean(inner: Tensor, shares: Tensor) -> Tensor:
    """[n], cosine of each vector to the weighted mean of all, from inner products [n, n]; 0 for a zero vector."""
    along = inner @ shares
    lengths = (inner.diagonal().clamp_min(0) * (shares @ along).clamp_min(0)).sqrt()
    return torch.where(lengths > 0, along / lengths, 0.0)


def normalise(weights: Tensor) -> Tensor:
    """Weights [n] adding up to 1; all 0 if they are."""
    return weights / weights.sum() if bool(weights.any()) else weights
