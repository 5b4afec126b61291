"""Between a defense's aggregate and the next model: the server's optimiser, and what becomes of BatchNorm's statistics.

The change of the trainable parameters that a defense asks for, Delta, is taken for a gradient (Reddi et al., "Adaptive
Federated Optimization", ICLR 2021, Algorithm 2), whatever the defense. m, v are kept in `ServerState.memory`.

    momentum   m = beta m + Delta                                G + lr m  (FedAvgM, Hsu et al., 2019)
    adagrad    v = v + Delta^2                                   G + lr m / (sqrt(v) + tau)
    adam       v = beta2 v + (1 - beta2) Delta^2                 likewise
    yogi       v = v - (1 - beta2) Delta^2 sign(v - Delta^2)     likewise

The last three have m = beta1 m + (1 - beta1) Delta, no bias correction, and v starts at tau^2, as in the paper, which
asks for v >= tau^2 (Flower starts at 0). What a defense did to the counters stays.

Statistics (running mean and variance), under any defense: `mean`, what the defense made of them; `keep`, the server's;
`pooled`, the mean and variance of the union of what the accepted clients saw, where `mean` forgets that their means
differ; `local`, every client trains on with its own (SiloBN, Andreux et al., 2020; FedBN, Li et al., ICLR 2021, keeps
BatchNorm's weight and bias, too), and the global model, which is evaluated, has the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, Updates, Verdict

STATISTICS = ("mean", "keep", "pooled", "local")
OWN = "server/statistics"  # memory: [clients, b] float32, each client's own running means and variances
MINE = "client/statistics"  # what a client is told of them, [b]
MOST_OWN = 1 << 30  # bytes of them: a checkpoint holds all, and writes them every time
Memory = Mapping[str, Tensor]
Rule = Callable[[Tensor, Memory], tuple[Tensor, Memory]]  # Delta [d], memory -> direction [d], its new memory


@dataclass(frozen=True)
class Server:
    """The next state from a verdict."""

    rule: Rule | None  # None: Delta itself
    lr: float  # server learning rate, > 0; 1 without a rule: the defense's aggregate, to the bit
    statistics: str  # mean | keep | pooled | local

    def __post_init__(self) -> None:
        _require(0 < self.lr < math.inf, "lr", self.lr, "> 0")
        if self.statistics not in STATISTICS:
            raise ValueError(f"server.statistics={self.statistics!r} is unknown: must be {', '.join(STATISTICS)}")

    def __call__(self, before: ServerState, updates: Updates, verdict: Verdict) -> ServerState:
        """The state that the next round starts from; the old model where a step would not be finite."""
        after, d = verdict.state, updates.layout.trainable
        row = after.row.clone()
        memory: Memory = {}
        if self.rule is not None or self.lr != 1:
            step = after.row[:d] - before.row[:d]
            if self.rule is not None:
                step, memory = self.rule(step, after.memory)
            row[:d] = before.row[:d] + self.lr * step
        row = self._with_statistics(row, before, updates, verdict)
        if self.statistics == "local":
            memory = {**memory, OWN: _remembered(after.memory[OWN], updates)}
        if not bool(row.isfinite().all()):
            return replace(after, row=before.row)
        return replace(after, row=row, memory={**after.memory, **memory})

    def _with_statistics(self, row: Tensor, before: ServerState, updates: Updates, verdict: Verdict) -> Tensor:
        span = statistics_span(updates.layout)
        if self.statistics == "keep":
            row[span] = before.row[span]
        elif self.statistics == "pooled" and bool(verdict.accepted.any()):
            row[span] = pooled(updates, verdict)
        return row

    def prepared(self, initial: ServerState, layout: StateLayout, clients: int) -> ServerState:
        """The first state, with room for what the server remembers.

        Raises:
            ValueError: the model has no BatchNorm statistics to keep, or they are too many to keep for every client.
        """
        span = statistics_span(layout)
        width = span.stop - span.start
        if self.statistics == "mean":
            return initial
        if not width:
            raise ValueError(
                f"server.statistics={self.statistics} is for models with BatchNorm, and this one has no running"
                " statistics: must be mean"
            )
        if self.statistics != "local":
            return initial
        if clients * width * 4 > MOST_OWN:
            raise ValueError(
                f"server.statistics=local keeps {width} numbers for each of clients={clients}, {clients * width * 4:,}"
                f" bytes in memory and in every checkpoint: must be at most {MOST_OWN:,}; lower clients"
            )
        own = initial.row[span].expand(clients, -1).clone()  # [clients, b]
        return replace(initial, memory={**initial.memory, OWN: own})


@dataclass(frozen=True)
class Momentum:
    """FedAvgM (Hsu, Qi and Brown, arXiv 1909.06335)."""

    beta: float  # in [0, 1)

    def __post_init__(self) -> None:
        _require(0 <= self.beta < 1, "beta", self.beta, "in [0, 1)")

    def __call__(self, delta: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """m, and what it was made of."""
        m = delta + self.beta * memory["server/m"] if "server/m" in memory else delta
        return m, {"server/m": m}


@dataclass(frozen=True)
class Adaptive:
    """FedAdagrad, FedAdam, FedYogi (Reddi et al., Algorithm 2)."""

    second: str  # how v follows the squares: adagrad | adam | yogi
    beta1: float  # in [0, 1)
    beta2: float  # in [0, 1); adagrad has none
    tau: float  # > 0

    def __post_init__(self) -> None:
        _require(self.second in SECOND, "second", self.second, f"one of {', '.join(SECOND)}")
        for key in ("beta1", "beta2"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "in [0, 1)")
        _require(0 < self.tau < math.inf, "tau", self.tau, "> 0")

    def __call__(self, delta: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """m / (sqrt(v) + tau), and m and v."""
        m = (1 - self.beta1) * delta + self.beta1 * memory.get("server/m", torch.zeros_like(delta))
        v = SECOND[self.second](memory.get("server/v", torch.full_like(delta, self.tau**2)), delta.square(), self.beta2)
        return m / (v.sqrt() + self.tau), {"server/m": m, "server/v": v}


SECOND: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {  # v [d], Delta^2 [d], beta2 -> v [d]
    "adagrad": lambda v, squares, beta2: v + squares,
    "adam": lambda v, squares, beta2: beta2 * v + (1 - beta2) * squares,
    "yogi": lambda v, squares, beta2: v - (1 - beta2) * squares * torch.sign(v - squares),
}


def statistics_span(layout: StateLayout) -> slice:
    """The columns of running_mean and, behind them, running_var; empty without BatchNorm."""
    spans = layout.spans
    if "running_mean" not in spans or "running_var" not in spans:
        return slice(0, 0)
    return slice(spans["running_mean"].start, spans["running_var"].stop)


def pooled(updates: Updates, verdict: Verdict) -> Tensor:
    """[b] mean and variance of the union: the mean of the variances plus the variance of the means.

    Clients count as the defense weighs them. Exact where a client's statistics are those of its data; BatchNorm's are a
    moving mean over batches, with the unbiased variance of each.
    """
    span = statistics_span(updates.layout)
    kept = verdict.accepted
    share = (verdict.weights[kept] / verdict.weights[kept].sum())[:, None]  # [k, 1] float64
    means, variances = (updates.base[span] + updates.rows[kept, span]).double().chunk(2, dim=1)  # [k, b / 2]
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0).clamp_min(0)  # as the guard floors all others
    return torch.cat([mean, variance]).float()


def told(memory: Memory, client: int, compromised: bool) -> Memory:
    """What of the memory goes to a client: the attack's to a compromised one, and each its own statistics [b]."""
    kept = {key: value for key, value in memory.items() if compromised and key.startswith("attack/")}
    own = memory.get(OWN)  # the server's own training data, behind the last client, have none
    return kept if own is None or client >= len(own) else {**kept, MINE: own[client]}


def with_own_statistics(row: Tensor, layout: StateLayout, memory: Memory) -> Tensor:
    """The row [d + b] that a client starts from: the global one, with its own statistics where it keeps them."""
    if MINE not in memory:
        return row
    row = row.clone()
    row[statistics_span(layout)] = memory[MINE]
    return row


def _remembered(own: Tensor, updates: Updates) -> Tensor:
    """The statistics of this round's clients, accepted or not: they keep their own."""
    span = statistics_span(updates.layout)
    usable, _ = updates.guarded
    own = own.clone()
    own[updates.ids[usable]] = updates.base[span] + updates.rows[usable, span]
    return own


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"server.{key}={value} is out of range: must be {allowed}")
