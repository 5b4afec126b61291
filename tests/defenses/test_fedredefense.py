"""FedREDefense against its authors' arithmetic in float64, written out for one small net: errors, images, decisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from labs import Tiny, honest, laboratory
from test_defenses import a_round, answer, stream
from torch import Tensor

from flame.defenses.fedredefense import BANNED, FIRST, IDS, PARTS, FedREDefense
from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, Updates

RULE = FedREDefense(
    per_class=1,
    steps=2,
    first_iterations=3,
    iterations=2,
    rate=0.5,
    lr_images=1.0,
    lr_labels=1.0,
    lr_rate=0.05,
    threshold=0.93,
)
NET = Tiny(inputs=4, hidden=5, classes=3)
LAYOUT = StateLayout.of(NET)
D = LAYOUT.trainable


def outputs(w: list[Tensor], x: Tensor) -> Tensor:
    """`Tiny` in training: its four parameters, on images [N, 1, 2, 2]."""
    h = x.flatten(1) @ w[0].T
    h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt() * w[1] + w[2]
    return h @ w[3].T + w[4]


def cut(vector: Tensor) -> list[Tensor]:
    shapes = [p.shape for p in NET.parameters()]
    parts = vector.split([s.numel() for s in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def stepped(flat: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
    soft = torch.softmax(y, dim=1)
    loss = torch.mean(-soft * torch.log_softmax(outputs(cut(flat), x), dim=1))
    return flat - lr * torch.autograd.grad(loss, flat, create_graph=True)[0]


def authors_search(g: Tensor, w: Tensor, parts: list[Tensor], iterations: int) -> tuple[float, list[Tensor]]:
    """`synthesize_single` of xyq7's image_synthesizer.py, on flat parameters, with SGD written out."""
    values, speeds = [p.double().clone() for p in parts], [torch.zeros_like(p).double() for p in parts]
    loss = float("nan")
    for _ in range(iterations):
        free = [v.requires_grad_() for v in values]
        flat = g.double().clone().requires_grad_()
        for _ in range(2):
            flat = stepped(flat, *free)
        ratio = (((flat - w) ** 2).sum() + 1e-9) / (((g.double() - w) ** 2).sum() + 1e-9)
        loss = ratio.item()
        if loss < 0.93:
            break
        grads = torch.autograd.grad(ratio, free)
        speeds = [0.5 * s + d for s, d in zip(speeds, grads, strict=True)]
        values = [(v - lr * s).detach() for v, lr, s in zip(values, (1.0, 1.0, 0.05), speeds, strict=True)]
    return loss, [v.detach() for v in values]


def some(seed: int, round: int = 0, base: Tensor | None = None) -> Updates:
    """Four clients: two have taken a step or two on images of their own, one sends noise, one goes back."""
    g = stream(seed + 100 * round)
    if base is None:
        base = torch.randn(LAYOUT.size, generator=g)
        base[D:] = 1
    rows = 0.05 * torch.randn(4, LAYOUT.size, generator=g)
    for i in (0, 1, 3):
        flat = base[:D].double().requires_grad_()
        for _ in range(1 + i % 2):
            x, y = torch.randn(9, 1, 2, 2, generator=g).double(), 5 * torch.randn(9, 3, generator=g).double()
            flat = stepped(flat, x, y, torch.tensor(0.5))
        rows[i, :D] = ((flat.detach() - base[:D]) * (-1 if i == 3 else 1)).float()
    lab = laboratory(NET, (1, 2, 2), honest(4), classes=3)
    return a_round(rows, LAYOUT, base, ids=torch.tensor([4, 9, 2, 0]), lab=lab)


def test_the_authors_arithmetic_rejects_the_same() -> None:
    """Two rounds each: the second goes on from the images of the first, and whoever was rejected stays out."""
    rejected = later = 0
    for seed in range(10):
        updates = some(seed)
        state = ServerState(updates.base, updates.base_counters)
        images, kept, out = None, dict[int, list[Tensor]](), set[int]()
        for round in range(2):
            verdict = RULE(state, updates, stream(seed))
            images = verdict.state.memory[FIRST] if images is None else images
            assert torch.equal(verdict.state.memory[FIRST], images)
            for i, client in enumerate(updates.ids.tolist()):
                if client in out:
                    continue
                start = kept.get(client) or [images, torch.zeros(3, 3), torch.tensor(0.5)]
                w = updates.base[:D].double() + updates.rows[i, :D]
                error, kept[client] = authors_search(updates.base[:D], w, start, 2 if client in kept else 3)
                assert abs(error - 0.93) > 1e-4  # no tie
                if error > 0.93:
                    out.add(client)
                    later += round
            assert verdict.accepted.tolist() == [c not in out for c in updates.ids.tolist()]
            memory = verdict.state.memory
            assert memory[BANNED].tolist() == sorted(out) and memory[IDS].tolist() == sorted(kept)
            for k, key in enumerate(PARTS.values()):
                wanted = torch.stack([kept[c][k] for c in sorted(kept)])
                assert float((memory[key] - wanted).norm() / wanted.norm()) < 0.01  # float32 through four searches
            good = verdict.accepted
            mean = updates.base + updates.rows[good].mean(0) if bool(good.any()) else updates.base
            torch.testing.assert_close(verdict.state.row, mean, rtol=1e-5, atol=1e-5)
            updates = some(seed, 1, updates.base)
            state = replace(verdict.state, row=updates.base)
        rejected += len(out)
    assert 7 < rejected < 33 and later >= 2, (rejected, later)


def test_who_sends_nothing_cannot_be_rebuilt_and_a_broken_model_concerns_nobody_else() -> None:
    updates = some(3)
    before = answer(RULE, updates).accepted
    updates.rows[0] = 0
    updates.rows[1, :D] = 1e30
    after = answer(RULE, updates).accepted
    assert not after[:2].any() and torch.equal(after[2:], before[2:])


def test_without_anyone_the_model_stays() -> None:
    updates = some(1)
    verdict = answer(replace(RULE, threshold=1e-6), updates)
    assert torch.equal(verdict.state.row, updates.base) and verdict.info["fedredefense/banned"] == 4


def test_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = some(1)
    monkeypatch.setattr(type(updates.lab), "noise", lambda *_: torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="tokens, which have no gradient"):
        answer(RULE, updates)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(RULE, per_class=0), "defense.per_class=0"),
        (lambda: replace(RULE, threshold=0.0), "defense.threshold=0.0"),
        (lambda: answer(RULE, a_round([[0, 0, 0]])), r"defense=fedredefense tries models.*no laboratory"),
    ],
)
def test_what_does_not_fit_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
