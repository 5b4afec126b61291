"""MASA against its authors' arithmetic in float64: what each model loses while it unlearns, and who is rejected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labs import Tiny, honest, laboratory
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from flame.defenses.masa import MASA, deviations
from flame.geometry.layout import StateLayout
from flame.round.types import Updates

RULE = MASA(root_samples=12, share=0.7, epochs=2, lr=0.5, momentum=0.9, clip_norm=0.5, threshold=1.0)
NET = Tiny(inputs=4, hidden=6, classes=3)
LAYOUT = StateLayout.of(NET)
D = LAYOUT.trainable


def some(n: int, seed: int, size: float = 0.2) -> Updates:
    """Clients whose updates have different lengths."""
    base = 0.5 * torch.randn(LAYOUT.size, generator=stream(seed))
    base[D:] = 1
    rows = size * torch.linspace(0.5, 2, n)[:, None] * torch.randn(n, LAYOUT.size, generator=stream(seed + 100))
    return a_round(rows, LAYOUT, base, lab=laboratory(NET, (1, 2, 2), honest(n), classes=3))


def authors_loss(model: Tensor, x: Tensor, y: Tensor, order: list[Tensor], per_epoch: int) -> float:
    """`train_step_unlearning` of JiiahaoXU/MASA, 2 epochs of it, in float64; momentum and clipping written out."""
    net = Tiny(inputs=4, hidden=6, classes=3)
    LAYOUT.load(net.state_dict(), model, torch.tensor([3]))
    net = net.double().train()
    parameters = list(net.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    total, epoch_losses = 0.0, list[float]()
    for i, batch in enumerate(order):
        loss = F.cross_entropy(net(x[batch]), y[batch])
        epoch_losses.append(loss.item())
        grads = torch.autograd.grad(-loss, parameters)
        norm = sum((g**2).sum() for g in grads) ** 0.5
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, grads, strict=True):
                v.mul_(0.9).add_(g * min(1.0, float(0.5 / (norm + 1e-6))))
                p.sub_(0.5 * v)
        if (i + 1) % per_epoch == 0:
            total, epoch_losses = total + float(np.mean(epoch_losses)), []
    return total


def test_the_authors_arithmetic_rejects_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.defenses.masa.BATCH", 7)
    rejecting = 0
    for seed in range(20):
        updates = some(4 + seed % 3, seed)
        lab: Any = updates.lab
        order = RULE.order(12, stream())
        assert [len(batch) for batch in order] == [7, 5] * 2
        assert all(sorted(torch.cat(order[i : i + 2]).tolist()) == list(range(12)) for i in (0, 2))
        x, y = (lab.root.x.double() / 255 - 0.5) / 0.25, lab.root.y
        mean = updates.rows.double().mean(0)
        mixtures = [(updates.base + 0.7 * row.double() + 0.3 * mean).float() for row in updates.rows]
        losses = [authors_loss(mixture, x, y, order, 2) for mixture in mixtures]
        scores = (np.array(losses) - np.median(losses)) / np.std(losses)
        assert RULE.lost(lab, mixtures[0], order) == pytest.approx(losses[0], rel=1e-4)
        verdict = answer(RULE, updates)
        assert verdict.accepted.tolist() == (scores < 1).tolist()
        assert verdict.info == {"masa/broken": 0.0, "masa/highest_score": pytest.approx(scores.max(), rel=1e-3)}
        wanted = updates.base + updates.rows[verdict.accepted].mean(0)
        torch.testing.assert_close(verdict.state.row, wanted, rtol=1e-5, atol=1e-5)
        rejecting += not verdict.accepted.all()
    assert rejecting >= 15


def test_deviations_by_hand() -> None:
    nan, inf = torch.nan, torch.inf
    assert_close(
        deviations(torch.tensor([1.0, 2, 3, 10]).double()), *(x / 3.5355339059 for x in (-1.5, -0.5, 0.5, 7.5))
    )
    assert deviations(torch.tensor([nan, 1, inf, 3]).double()).tolist() == [inf, -1, inf, 1]
    assert deviations(torch.tensor([2.0, 2, nan]).double()).tolist() == [0, 0, inf]
    assert deviations(torch.tensor([nan, nan]).double()).tolist() == [inf, inf]


def test_who_is_broken_is_rejected_and_if_all_are_the_model_stays() -> None:
    updates = some(5, 0)
    alone = replace(RULE, share=1.0)  # nobody is in anybody's mixture
    updates.rows[2, :D] = 1e30
    assert not answer(alone, updates).accepted[2] and answer(alone, updates).accepted.sum() >= 2
    verdict = answer(RULE, updates)
    assert not verdict.accepted.any() and torch.equal(verdict.state.row, updates.base)


def test_statistics_play_no_part() -> None:
    updates = some(6, 3)
    before = answer(RULE, updates)
    updates.rows[0, D:] += 5
    assert torch.equal(
        answer(replace(RULE, share=1.0), updates).weights, answer(replace(RULE, share=1.0), some(6, 3)).weights
    )
    assert answer(RULE, updates).info == before.info


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(RULE, root_samples=1), "defense.root_samples=1"),
        (lambda: replace(RULE, share=1.1), "defense.share=1.1"),
        (lambda: replace(RULE, epochs=0), "defense.epochs=0"),
        (lambda: replace(RULE, momentum=1.0), "defense.momentum=1.0"),
        (lambda: replace(RULE, lr=0.0), "defense.lr=0.0"),
        (lambda: answer(RULE, a_round([[0, 0, 0]])), r"defense=masa tries models.*no laboratory"),
    ],
)
def test_what_does_not_fit_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
