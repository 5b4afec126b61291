"""What attackers of the server send: generators for test_hostile.py and torture.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

import torch
from labs import Tiny, laboratory
from labs import honest as nobody
from rules import defense
from torch import Generator

from flame.defenses.base import defend
from flame.geometry.layout import StateLayout
from flame.round.seeding import generator
from flame.round.types import ServerState, Updates, Verdict

NET = Tiny(inputs=2, hidden=3, classes=4)
LAYOUT = StateLayout.of(NET)
VARIANCES = LAYOUT.spans["running_var"]
COUNTER_LIMITS = torch.iinfo(torch.int64)


def start_state(stream: Generator) -> ServerState:
    """A global model with running variances around 1."""
    row = 0.3 * torch.randn(LAYOUT.size, generator=stream)
    row[VARIANCES] = 0.5 + torch.rand(3, generator=stream)
    return ServerState(row, torch.tensor([40]), round=3)


def honest(state: ServerState, n: int, stream: Generator) -> Updates:
    """n clients whose updates look like training: small, with a common direction, running variances kept positive."""
    common = 0.05 * torch.randn(LAYOUT.size, generator=stream)
    rows = common + 0.02 * torch.randn(n, LAYOUT.size, generator=stream)
    rows[:, VARIANCES] = rows[:, VARIANCES].clamp_min(-0.5 * state.row[VARIANCES].clamp_max(1))
    counters = state.counters + torch.randint(1, 9, (n, 1), generator=stream)
    samples = torch.randint(1, 60, (n,), generator=stream)
    root = common.clone()
    ids = torch.randperm(40, generator=stream)[:n].sort().values
    losses, lab = torch.ones(n, dtype=torch.float64), laboratory(NET, (1, 1, 2), nobody(n), classes=4)
    return Updates(LAYOUT, state.row, state.counters, ids, rows, counters, samples, losses, root, lab=lab)


def _column(value: float) -> Callable[[Updates, int, int], None]:
    def write(updates: Updates, i: int, other: int) -> None:
        updates.rows[i, (7 * i + other) % LAYOUT.size] = value

    return write


def _row(value: float) -> Callable[[Updates, int, int], None]:
    def write(updates: Updates, i: int, other: int) -> None:
        updates.rows[i] = value

    return write


def _like(factor: float) -> Callable[[Updates, int, int], None]:
    def write(updates: Updates, i: int, other: int) -> None:
        updates.rows[i] = updates.rows[other]
        updates.rows[i, LAYOUT.span("weights_only")] *= factor

    return write


def _counter(value: int) -> Callable[[Updates, int, int], None]:
    def write(updates: Updates, i: int, other: int) -> None:
        updates.counters[i] = value

    return write


def _negative_variance(updates: Updates, i: int, other: int) -> None:
    updates.rows[i, VARIANCES] = -updates.base[VARIANCES] - 1e-3


def _away(updates: Updates, i: int, other: int) -> None:
    updates.rows[i] = -updates.base  # the client's model is all zeros


Trick = Callable[[Updates, int, int], None]  # writes client i, knowing client `other`
REFUSED: dict[str, Trick] = {  # what the guard must take out, for any defense
    "nan": _column(float("nan")),
    "all nan": _row(float("nan")),
    "inf": _column(float("inf")),
    "minus inf": _row(float("-inf")),
    "1e38": _row(1e38),
    "largest float": _column(3.402823e38),
    "1e20": _column(-1e20),
    "counter at the maximum": _counter(COUNTER_LIMITS.max),
    "counter at the minimum": _counter(COUNTER_LIMITS.min),
}
ALLOWED: dict[str, Trick] = {  # odd, yet nothing that arithmetic cannot do
    "negative running_var": _negative_variance,
    "counter backwards": _counter(39),
    "zeros": _row(0.0),
    "minus zeros": _row(-0.0),
    "denormal": _row(1e-42),
    "one denormal": _column(1.4e-45),
    "1e10": _column(1e10),
    "duplicate": _like(1.0),
    "exact negative": _like(-1.0),
    "scaled by 1e6": _like(1e6),
    "scaled by 1e-30": _like(1e-30),
    "model of zeros": _away,
}
TRICKS = REFUSED | ALLOWED


def hostile(updates: Updates, tricks: dict[int, str]) -> Updates:
    """The round with client i doing `tricks[i]`; the others are left as they are."""
    spoilt = replace(updates, rows=updates.rows.clone(), counters=updates.counters.clone())
    for i, name in tricks.items():
        TRICKS[name](spoilt, i, (i + 1) % len(spoilt))
    return spoilt


def check(verdict: Verdict, state: ServerState, updates: Updates) -> None:
    """What holds for every defense after every round."""
    assert verdict.state.row.shape == state.row.shape and verdict.state.row.dtype == torch.float32
    assert bool(verdict.state.row.isfinite().all()), "the global model is not finite"
    assert bool((verdict.state.row[VARIANCES] >= 0).all()), "a running variance is negative"
    assert bool((verdict.state.counters >= 0).all()), "a counter is negative"
    assert verdict.weights.shape == (len(updates),) and bool(verdict.weights.isfinite().all())
    bad = ~updates.rows.isfinite().all(1)
    assert not bool(verdict.accepted[bad].any()), "a client with NaN or Inf was accepted"
    assert verdict.info["guard/nonfinite"] == float(bad.sum())
    storage = updates.rows.untyped_storage().data_ptr()
    for name, value in {"row": verdict.state.row, **verdict.state.memory}.items():
        assert value.untyped_storage().data_ptr() != storage, f"{name} is a view of the updates, which are overwritten"


def hostile_rounds(count: int, names: list[str], seed: int) -> int:
    """Play `count` rounds, in chains of 5 that share a state and its memory; how many ended as they must."""
    survived, turns = 0, cycle(names)
    chain: Iterator[int] = iter(())
    for number in range(count):
        draw, stream = random.Random(f"{seed}/{number}"), generator(seed, "hostile", number)
        if next(chain, None) is None:
            chain, name, state = iter(range(4)), next(turns), start_state(stream)
        n = draw.randint(1, 12)
        tricks = {i: draw.choice(list(TRICKS)) for i in range(n) if draw.random() < draw.choice((0.2, 0.45, 1.0))}
        updates = hostile(honest(state, n, stream), tricks)
        try:
            verdict = defend(defense(name), state, updates, stream)
            check(verdict, state, updates)
            state, survived = replace(verdict.state, round=state.round + 1), survived + 1
        except Exception as error:  # counted, whatever it is
            print(f"{name}, round {number} of seed {seed}, {n} clients, {tricks}: {type(error).__name__}: {error}")
    return survived
