"""The server's optimisers beside references worked in NumPy, and what becomes of BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Start
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flame.defenses.base import defend
from flame.defenses.fedavg import FedAvg
from flame.federation import rounds
from flame.geometry.layout import StateLayout
from flame.round.checkpoint import read_checkpoint, write_checkpoint
from flame.round.seeding import generator
from flame.round.server import OWN, Adaptive, Momentum, Server, pooled, statistics_span, told, with_own_statistics
from flame.round.types import ServerState, Updates, Verdict, digest
from flame.run.build import ConfigError, build

PLAIN = Server(None, 1.0, "mean")
OPTIMISERS = ("momentum", "adagrad", "adam", "yogi")


def reference(name: str, lr: float, deltas: list[np.ndarray]) -> np.ndarray:
    """Where ten lines of NumPy, in float64, end from 0."""
    x, m, v = (np.zeros_like(deltas[0]) for _ in range(3))
    v += 1e-6  # tau^2
    for delta in deltas:
        if name == "momentum":
            m = 0.9 * m + delta
            x = x + lr * m
            continue
        beta1 = 0.0 if name == "adagrad" else 0.9
        m = beta1 * m + (1 - beta1) * delta
        squares = delta**2
        v = {
            "adagrad": v + squares,
            "adam": 0.99 * v + 0.01 * squares,
            "yogi": v - 0.01 * squares * np.sign(v - squares),
        }[name]
        x = x + lr * m / (np.sqrt(v) + 1e-3)
    return x


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_beside_a_reference_with_a_resume_in_the_middle(
    name: str, tiny: Compose, updates: Callable[..., tuple[ServerState, Updates]], tmp_path: Any
) -> None:
    server = build(tiny(f"server={name}")).server
    state, sent = updates(0, 3)
    d, start = sent.layout.trainable, state.row.clone()
    stream = torch.Generator().manual_seed(1)
    deltas = [0.01 * torch.randn(d, generator=stream) for _ in range(6)]
    for number, delta in enumerate(deltas):
        asked = replace(state, row=torch.cat([state.row[:d] + delta, state.row[d:]]))
        seen = asked.row[:d] - state.row[:d]  # what float32 leaves of it
        deltas[number] = seen
        state = server(state, replace(sent, base=state.row), Verdict(asked, torch.ones(3).double() / 3))
        if number == 2:
            state, _ = read_checkpoint(write_checkpoint(tmp_path, state, "x"))
    wanted = reference(name, server.lr, [delta.double().numpy() for delta in deltas])
    np.testing.assert_allclose((state.row[:d] - start[:d]).double().numpy(), wanted, atol=1e-6 * len(deltas))


def test_plain_is_the_aggregate_to_the_bit_and_a_rate_scales_the_step(
    updates: Callable[..., tuple[ServerState, Updates]],
) -> None:
    state, sent = updates(0, 3)
    asked = replace(state, row=state.row + sent.rows.mean(0), counters=state.counters + 5)
    verdict = Verdict(asked, torch.ones(3).double() / 3)
    assert digest(PLAIN(state, sent, verdict)) == digest(asked)
    half, d = Server(None, 0.5, "mean")(state, sent, verdict), sent.layout.trainable
    assert torch.equal(half.row[:d], state.row[:d] + 0.5 * (asked.row[:d] - state.row[:d]))
    assert torch.equal(half.row[d:], asked.row[d:]) and torch.equal(half.counters, asked.counters)


def test_keep_leaves_the_statistics_alone(updates: Callable[..., tuple[ServerState, Updates]]) -> None:
    state, sent = updates(0, 3)
    asked = replace(state, row=state.row + 1)
    kept, span = (
        Server(None, 1.0, "keep")(state, sent, Verdict(asked, torch.ones(3).double() / 3)),
        statistics_span(sent.layout),
    )
    assert span.stop > span.start and torch.equal(kept.row[span], state.row[span])
    assert torch.equal(kept.row[: span.start], asked.row[: span.start])


@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_pooled_is_the_variance_of_the_joined_data(sizes: list[int], seed: int) -> None:
    """BatchNorm's own definition: a layer with momentum 1 that has seen a client's data holds its mean and variance."""
    stream = torch.Generator().manual_seed(seed)
    layer = nn.BatchNorm1d(4, momentum=1.0)
    layout = StateLayout.of(layer)
    (base,), (counters,) = layout.zeros(1)
    layout.flatten(layer.state_dict(), base, counters)
    rows, local = layout.zeros(len(sizes))
    data = [torch.randn(size, 4, generator=stream) + 3 * torch.randn(4, generator=stream) for size in sizes]
    for i, x in enumerate(data):
        layer(x)
        layer.running_var *= (len(x) - 1) / len(x)  # it holds the unbiased one
        layout.flatten(layer.state_dict(), rows[i], local[i])
    share = torch.tensor(sizes).double() / sum(sizes)
    ids = torch.arange(len(sizes))
    sent = Updates(
        layout, base, counters, ids, rows - base, local, torch.tensor(sizes), torch.zeros(len(sizes)).double()
    )
    found = pooled(sent, Verdict(ServerState(base, counters), share))
    joined = torch.cat(data)
    wanted = torch.cat([joined.mean(0), joined.var(0, unbiased=False)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_pooled_forgets_the_rejected(updates: Callable[..., tuple[ServerState, Updates]]) -> None:
    state, sent = updates(0, 3)
    weights = torch.tensor([0.5, 0.0, 0.5]).double()
    asked = Verdict(state, weights)
    changed = sent.rows.clone()
    changed[1] += 7
    assert torch.equal(pooled(sent, asked), pooled(replace(sent, rows=changed), asked))


def test_no_client_makes_a_pooled_variance_negative(updates: Callable[..., tuple[ServerState, Updates]]) -> None:
    """The guard leaves a negative variance to the defense, and floors the mean; the union's is floored, too."""
    state, sent = updates(0, 3)
    rows, span = sent.rows.clone(), sent.layout.spans["running_var"]
    rows[2, span] = -1e4
    sent = replace(sent, rows=rows)
    verdict = defend(FedAvg("uniform"), state, sent, generator(0, "defense"))
    assert bool(verdict.accepted.all()) and verdict.info["guard/implausible"] == 1
    for statistics in ("mean", "pooled"):
        after = Server(None, 1.0, statistics)(state, sent, verdict)
        assert bool((after.row[span] == 0).all()), statistics


def test_local_clients_go_on_with_their_own(tiny: Compose, start: Start) -> None:
    with start(tiny("server.statistics=local", "attack=none")) as (fed, state):
        records = list(rounds(fed, state, 3))
    layout, span = records[0].updates.layout, statistics_span(records[0].updates.layout)
    before, after = state.memory[OWN], records[0].after.memory[OWN]
    took_part = torch.zeros(len(before), dtype=torch.bool).index_fill(0, records[0].cohort.ids, True)
    assert before.shape == (10, span.stop - span.start)
    assert torch.equal(after[~took_part], before[~took_part]) and not bool(
        (after[took_part] == before[took_part]).all(1).any()
    )
    client = int(records[0].cohort.ids[0])
    row = with_own_statistics(records[0].after.row, layout, told(records[0].after.memory, client, False))
    assert torch.equal(row[span], after[client]) and torch.equal(row[: span.start], records[0].after.row[: span.start])
    with start(tiny("attack=none")) as (fed, state):
        assert digest(list(rounds(fed, state, 3))[-1].after) != digest(records[-1].after)


@pytest.mark.parametrize(
    "change", ["server=yogi", "server.statistics=local", "server.statistics=pooled", "server=momentum"]
)
def test_engines_give_the_same_bits(change: str, tiny: Compose, start: Start) -> None:
    hashes = set()
    for engine in ("sequential", "pool"):
        with start(tiny(change, f"engine={engine}")) as (fed, state):
            hashes.add(digest(list(rounds(fed, state, 2))[-1].after))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("server.lr=0",), r"server\.lr=0.* must be > 0"),
        (("server.lr=-1",), r"server\.lr=-1.* must be > 0"),
        (("server=momentum", "server.rule.beta=1"), r"server\.rule\.beta=1.* must be in \[0, 1\)"),
        (("server=adam", "server.rule.tau=0"), r"server\.rule\.tau=0.* must be > 0"),
        (("server=adam", "server.rule.second=sgd"), r"server\.rule\.second=sgd.* must be one of adagrad, adam, yogi"),
        (("server.statistics=mine",), r"server\.statistics='mine' is unknown: must be mean, keep, pooled, local"),
        (("server.statistics=pooled", "model.norm=group"), r"server\.statistics=pooled is for models with BatchNorm"),
        (("server.statistics=local", "memo.dir=x"), r"memo\.dir=x .*leave one of the two out"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_round(changes: tuple[str, ...], said: str, tiny: Compose) -> None:
    with pytest.raises(ConfigError, match=said):
        build(tiny(*changes))


def test_own_statistics_have_a_price_that_is_said(updates: Callable[..., tuple[ServerState, Updates]]) -> None:
    state, sent = updates(0, 3)
    with pytest.raises(ValueError, match=r"server\.statistics=local keeps \d+ numbers for each of clients=1000000000"):
        Server(None, 1.0, "local").prepared(state, sent.layout, 10**9)


def test_a_step_that_is_not_finite_keeps_the_old_model(updates: Callable[..., tuple[ServerState, Updates]]) -> None:
    state, sent = updates(0, 3)
    verdict = Verdict(replace(state, row=state.row + 1e30), torch.ones(3).double() / 3)
    after = Server(Momentum(0.9), 1e30, "mean")(state, sent, verdict)
    assert torch.equal(after.row, state.row)
    assert Adaptive("adam", 0.9, 0.99, 1e-3).second == "adam"
