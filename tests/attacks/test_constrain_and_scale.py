"""Constrain-and-scale: two steps of its loss by hand, and what the constraint is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attackers import PLAIN, UNSCALED, job, trained, vector
from torch import Tensor

from attacks.constrain_and_scale import ConstrainAndScale
from flame.round.client import cross_entropy


@pytest.mark.parametrize("anomaly", ["l2", "cosine"])
def test_two_steps_of_constrain_and_scale_by_hand(anomaly: str) -> None:
    """Full batches: w1 = G - lr * a * g(G), since L_ano has no gradient at G, then the whole of equation 4."""
    alpha, lr, work = 0.6, 0.5, job()
    poisoned, start = PLAIN.compromise(work).images, vector(work.model)
    x = work.normalise(poisoned.x)

    def gradient(w: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(w, work.model.parameters())
        loss = cross_entropy(work.model, x, poisoned.y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(work.model.parameters()))])

    w1 = start - lr * alpha * gradient(start)
    if anomaly == "l2":
        pull = (w1 - start) / (w1 - start).norm()
    else:  # d(1 - cos)/dw = -(G / |w||G| - cos w / |w|^2)
        norms, cosine = w1.norm() * start.norm(), w1 @ start / (w1.norm() * start.norm())
        pull = -(start / norms - cosine * w1 / w1.norm() ** 2)
    w2 = w1 - lr * (alpha * gradient(w1) + (1 - alpha) * pull)
    _, after = trained(ConstrainAndScale(PLAIN, UNSCALED, alpha, anomaly), epochs=2)
    torch.testing.assert_close(after, w2, atol=2e-5, rtol=0)


def test_the_constraint_shortens_the_update() -> None:
    norms = []
    for alpha in (1.0, 0.7, 0.3):
        before, after = trained(ConstrainAndScale(PLAIN, UNSCALED, alpha, "l2"), epochs=5, lr=0.05)
        norms.append(float((after - before).norm()))
    assert norms[0] > norms[1] > norms[2] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstrainAndScale(PLAIN, UNSCALED, 1.1, "l2"), "attack.alpha=1.1"),
        (lambda: ConstrainAndScale(PLAIN, UNSCALED, 0.5, "l1"), "attack.anomaly='l1' .* one of l2, cosine"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
