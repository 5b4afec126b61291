"""`engine.aggregate_on=device`: another arithmetic for the same decisions. The device is the CPU here: the code is the
same on any, in float64 and in chunks of its own, where the host has float32 and other chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from omegaconf import DictConfig

from flame.defenses.base import defend
from flame.federation import Round, play
from flame.geometry.products import Products, weighted_sum
from flame.round.device import CPU, copied
from flame.round.seeding import generator
from flame.round.types import ServerState, Updates
from flame.run.build import make

WITHIN = 1e-6  # of the largest value: a float32 sum over a round's clients
DISTANCE = 1e-8  # of a cosine distance; float32 products about a centre resolve squared differences to 1e-7
Made = Callable[..., tuple[ServerState, Updates]]
Compose = Callable[..., DictConfig]


@pytest.mark.parametrize("name", ["flame_weights_only", "flame_all_state", "fedavg", "multi_krum", "norm_clip"])
@pytest.mark.parametrize("n", [3, 10])
def test_verdicts_are_the_hosts(compose: Compose, updates: Made, name: str, n: int) -> None:
    """With the same noise, which is drawn on the host: what is left is rounding."""
    defense = make(compose("dataset=digits", f"defense={name}"), "defense")
    state, sent = updates(seed=n, n=n)
    sent = replace(sent, rows=sent.rows * torch.linspace(0.5, 2, n)[:, None])  # so that some are clipped
    host, device = (
        defend(defense, state, replace(sent, aggregate_on=where), generator(0, "defense")) for where in (None, CPU)
    )
    assert torch.equal(host.accepted, device.accepted)
    assert torch.allclose(host.weights, device.weights, rtol=1e-12)
    scale = float((host.state.row - state.row).abs().max())
    assert scale > 0 and float((host.state.row - device.state.row).abs().max()) <= WITHIN * scale


def test_recorded_rounds_are_decided_alike(history: list[Round], compose: Compose) -> None:
    defense = make(compose("dataset=digits"), "defense")
    for record in history:
        there = replace(record.updates, aggregate_on=CPU, rows=record.updates.rows.clone())
        found = defend(defense, record.before, there, generator(0, "defense", record.number))
        assert torch.equal(found.accepted, record.verdict.accepted)
        noise, other = (v.info["flame/noise_std"] for v in (found, record.verdict))
        assert noise == pytest.approx(other, rel=1e-9)


def test_products_in_float64_are_those_of_the_host() -> None:
    """Of a matrix that the host multiplies in float32: 17 million numbers, clients 1 % apart."""
    stream = torch.Generator().manual_seed(0)
    base = torch.randn(1_700_000, generator=stream)
    rows = torch.randn(1_700_000, generator=stream) + 0.3 * torch.randn(10, 1_700_000, generator=stream)
    host, device = Products.measure(base, rows), Products.measure(base, rows, wide=1 << 22)
    assert float((host.cosine_distances() - device.cosine_distances()).abs().max()) < DISTANCE
    assert torch.allclose(host.gram, device.gram, rtol=1e-6) and not torch.equal(host.gram, device.gram)


def test_the_weighted_sum_by_hand(updates: Made) -> None:
    _, sent = updates(seed=0, n=4)
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]])
    assert weighted_sum(torch.tensor([0.5, 0.25, 2.0]).double(), rows).tolist() == [1.25, 4.25]
    weights, span = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), slice(3, 9)
    there = replace(sent, aggregate_on=CPU).weighted(weights, span)
    assert there.dtype == torch.float32
    assert torch.equal(there, (weights @ sent.rows[:, span].double()).float())


def test_a_copy_never_outlives_its_rows(updates: Made) -> None:
    _, sent = updates(seed=0, n=4)
    there = replace(sent, aggregate_on=CPU)
    before = there.geometry.norms("all_state")
    twice = replace(there, rows=there.rows * 2)
    assert torch.allclose(twice.geometry.norms("all_state"), 2 * before)
    keep = torch.tensor([True, False, True, True])
    assert torch.equal(there.select(keep).copied, sent.rows[keep])


def test_a_run_has_the_engines_choice(tiny: Compose, start: Callable) -> None:
    with start(tiny("engine.aggregate_on=device")) as (fed, state):
        assert play(fed, state).updates.aggregate_on == CPU
    with start(tiny("defense=fltrust", "engine.aggregate_on=device")) as (fed, state):  # the server trains, too
        assert play(fed, state).updates.aggregate_on == CPU


def test_updates_that_do_not_fit_are_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000, 0))
    with pytest.raises(OSError, match=r"updates of a round take 0\.01 GB, and 0\.00 GB are free on cuda: take engine"):
        copied(torch.zeros(1000, 2500), torch.device("cuda"))
