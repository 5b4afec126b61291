"""BackdoorIndicator against its authors' arithmetic in float64, round by round: what is planted and who is rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from labs import Tiny, honest, laboratory
from test_defenses import a_round, assert_close, stream
from torch import Tensor, nn

from flame.defenses.indicator import BATCH, IMAGES, LABELS, STATISTICS, Indicator, Planting, per_label
from flame.defenses.nnm import NNM
from flame.federation import rounds
from flame.geometry.layout import StateLayout
from flame.round.types import Lab, ServerState, Updates

PLANTING = Planting(epochs=6, lr=0.2, momentum=0.9, weight_decay=0.0005, milestones=[2, 4], gamma=0.8, mu=0.1)
RULE = Indicator(images=2 * BATCH, threshold=0.6, start=0, planting=PLANTING)
NET = Tiny(inputs=4, hidden=6, classes=3)
LAYOUT = StateLayout.of(NET)
D = LAYOUT.trainable


def first(seed: int) -> tuple[ServerState, Lab]:
    """A global model and its laboratory."""
    row = 0.3 * torch.randn(LAYOUT.size, generator=stream(seed))
    row[LAYOUT.spans["running_var"]] = 1 + row[LAYOUT.spans["running_var"]].abs()
    return ServerState(row, torch.tensor([3])), laboratory(NET, (1, 2, 2), honest(8), classes=3)


def sent(seed: int, rule: Indicator = RULE) -> tuple[ServerState, ServerState, Lab]:
    state, lab = first(seed)
    return state, rule.sends(state, lab, stream(seed)), lab


def answered(state: ServerState, lab: Lab, rows: Tensor) -> Updates:
    """Updates `rows` [n, d + b] of what was sent."""
    return a_round(rows, LAYOUT, state.row, lab=lab[torch.arange(len(rows))])


def wide(row: Tensor) -> nn.Module:
    """The model of a row, in float64."""
    net = Tiny(inputs=4, hidden=6, classes=3)
    LAYOUT.load(net.state_dict(), row, torch.tensor([3]))
    return net.double()


def authors_planting(row: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """[d] and [b], parameters and statistics after `_global_watermark_injection` of ybdai7's IndicatorServer.py."""
    net = wide(row).train()
    g = [p.detach().clone() for p in net.parameters()]
    velocity = [torch.zeros_like(p) for p in g]
    lr = 0.2
    for epoch in range(6):
        for b in range(2):
            out = net(x[64 * b : 64 * b + 64])
            apart = sum(((p - q) ** 2).sum() for p, q in zip(net.parameters(), g, strict=True))
            loss = F.cross_entropy(out, y[64 * b : 64 * b + 64])
            if float(apart.detach()) > 0:
                loss = loss + 0.1 / 2 * apart**0.5
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, v, grad in zip(net.parameters(), velocity, grads, strict=True):
                    v.mul_(0.9).add_(grad + 0.0005 * p)
                    p.sub_(lr * v)
        if epoch + 1 in (2, 4):
            lr *= 0.8
    flat = torch.zeros(LAYOUT.size)
    LAYOUT.flatten(net.state_dict(), flat, torch.zeros(1).long())
    return flat[:D], flat[D:]


@pytest.mark.parametrize("seed", range(24))
def test_the_authors_arithmetic_plants_and_decides_the_same(seed: int) -> None:
    before, after, lab = sent(seed)
    x, y = after.memory[IMAGES], after.memory[LABELS]
    normal = (x.double() / 255 - 0.5) / 0.25
    parameters, statistics = authors_planting(before.row, normal, y)
    torch.testing.assert_close(after.row[:D], parameters, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(after.memory[STATISTICS], statistics, atol=2e-3, rtol=1e-3)
    assert torch.equal(after.row[D:], before.row[D:])  # the statistics from before go out

    size = torch.linspace(0, 0.6, 8)[:, None]  # the more a client trains, the more it forgets
    updates = answered(after, lab, size * torch.randn(8, LAYOUT.size, generator=stream(seed + 50)))
    best = []
    for model in updates.models:
        net = wide(torch.cat([model[:D], after.memory[STATISTICS]])).eval()
        right = net(normal).argmax(dim=1) == y
        best.append(max(float(right[y == c].double().mean()) for c in range(3)))
    verdict = RULE(after, updates, stream())
    assert verdict.accepted.tolist() == [b < 0.6 for b in best]
    assert verdict.info == {"indicator/planted": 1.0, "indicator/highest": pytest.approx(max(best))}
    kept = verdict.accepted
    wanted = updates.models[kept].mean(0) if bool(kept.any()) else after.row
    torch.testing.assert_close(verdict.state.row, wanted)


def test_who_answers_one_label_to_everything_knows_it() -> None:
    """And if all are rejected, the model stays as it was sent."""
    _, state, lab = sent(1)
    rows = torch.zeros(4, LAYOUT.size)
    rows[2:, LAYOUT.spans["head"]] = -state.row[LAYOUT.spans["head"]]
    updates = answered(state, lab, rows)
    known = RULE.known(state, updates)
    assert known[2:].tolist() == [1, 1] and 0.5 < float(known[0]) < 0.6
    verdict = RULE(state, updates, stream())
    assert verdict.weights.tolist() == [0.5, 0.5, 0, 0] and verdict.info["indicator/highest"] == 1.0
    verdict = replace(RULE, threshold=0.5)(state, updates, stream())
    assert not verdict.accepted.any() and torch.equal(verdict.state.row, state.row)


def test_per_label_by_hand() -> None:
    right, y = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1]]).bool(), torch.tensor([0, 0, 2, 2])
    assert_close(per_label(right, y).flatten(), 0.5, 0, 1, 0, 0, 0.5)


def test_images_and_labels_stay_and_labels_are_even() -> None:
    _, state, lab = sent(0)
    again = RULE.sends(state, lab, stream(9))
    assert torch.equal(again.memory[IMAGES], state.memory[IMAGES])
    assert torch.equal(again.memory[LABELS], state.memory[LABELS])
    assert state.memory[LABELS].bincount().tolist() == [43, 43, 42]
    assert not torch.equal(sent(1)[1].memory[IMAGES], state.memory[IMAGES])


def test_before_the_start_and_after_divergence_nobody_is_judged() -> None:
    state, early, lab = sent(0, replace(RULE, start=1))
    assert torch.equal(early.row, state.row) and not early.memory
    _, planted, _ = sent(0)
    wild = replace(RULE, planting=replace(PLANTING, lr=1e30))
    broken = wild.sends(planted, lab, stream())
    assert torch.equal(broken.row, planted.row) and STATISTICS not in broken.memory
    verdict = RULE(broken, answered(broken, lab, torch.zeros(3, LAYOUT.size)), stream())
    assert verdict.info["indicator/planted"] == 0 and bool(verdict.accepted.all())


def test_the_clients_start_from_what_is_sent(tiny: Callable, start: Callable) -> None:
    """And a rule around it sends what it sends."""
    quick = ("defense=indicator", "defense.planting.epochs=1", "defense.images=64", "attack=none")
    with start(tiny(*quick)) as (fed, state):
        one, two = rounds(fed, state, 2)
        assert torch.equal(one.updates.base, one.before.row) and not torch.equal(one.before.row, state.row)
        assert not torch.equal(two.before.row, one.after.row) and IMAGES in two.after.memory
        assert one.metrics["indicator/planted"] == 1
        wrapped = replace(fed, defense=NNM(0.2, fed.defense))
        (other,) = rounds(wrapped, state, 1)
        assert torch.equal(other.before.row, one.before.row)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(RULE, images=1), "defense.images=1"),
        (lambda: replace(RULE, threshold=0.0), "defense.threshold=0.0"),
        (lambda: replace(RULE, start=-1), "defense.start=-1"),
        (lambda: replace(PLANTING, epochs=0), "defense.planting.epochs=0"),
        (lambda: replace(PLANTING, lr=0.0), "defense.planting.lr=0.0"),
        (lambda: replace(PLANTING, gamma=1.1), "defense.planting.gamma=1.1"),
        (lambda: replace(PLANTING, mu=-1.0), "defense.planting.mu=-1.0"),
        (
            lambda: RULE(sent(0)[1], replace(a_round(torch.zeros(2, LAYOUT.size), LAYOUT), lab=None), stream()),
            r"defense=indicator tries models.*no laboratory",
        ),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
