"""3DFed's masks raise the energy of their outputs, nearly cancel, and are those of a loop like the authors'."""

from __future__ import annotations

import pytest
import torch
from test_threedfed import LAYOUT, D, K
from torch import Tensor

from attacks.noise_masks import Weights, head_rows, noise_masks, with_head_rows
from flame.round.seeding import generator

CIFAR, MNIST = Weights(0.1, 0.03, 0.01), Weights(0.1, 0.08, 0.1)  # of the authors' code


def masks(update: Tensor, count: int, a: float, weights: Weights) -> Tensor:
    return noise_masks(update, count, a, 0.01, weights, generator(1, "masks"))


@pytest.mark.parametrize("count", [2, 5])
def test_masks_raise_the_energy_of_their_outputs_and_nearly_cancel(count: int) -> None:
    """With the stronger balance of MNIST the sum of 2 or 5 masks is a third of one of them at most."""
    update = torch.randn(5, 65, generator=generator(0, "update")) / 50
    bold, shy = (masks(update, count, a, MNIST) for a in (0.9, 0.0))
    energy = [float((update + drawn).abs().sum(2).mean()) for drawn in (bold, shy)]
    assert energy[0] > 1.1 * float(update.abs().sum(1).mean()) and energy[0] > energy[1]
    assert float(bold.sum(0).norm()) < float(bold[0].norm()) / 3


def test_masks_are_centred_before_they_are_moved_and_not_after() -> None:
    """With next to no weights all that moves them is the decay, which keeps a sum of 0; with CIFAR's, a sum is left."""
    update = torch.randn(5, 65, generator=generator(0, "update")) / 50
    still = masks(update, 3, 0.5, Weights(0, 0, 0))
    assert float(still.sum(0).norm()) < 1e-5 * float(still.norm())
    assert float(masks(update, 3, 0.5, CIFAR).sum(0).norm()) > 0.5 * float(masks(update, 3, 0.5, CIFAR)[0].norm())


@pytest.mark.parametrize("weights", [CIFAR, MNIST, Weights(0.0005, 0.03, 0.01)])
@pytest.mark.parametrize("a", [0.9, 0.5])
def test_masks_against_a_loop(a: float, weights: Weights) -> None:
    """Losses are taken back one after the other, each before its mask's step, so that slopes of the sum add up.

    The sum is 0 at first, so that rounding decides that term's first slope.
    """
    update = torch.randn(5, 65, generator=generator(0, "update")) / 50
    drawn = torch.randn(4, 5, 65, generator=generator(1, "masks")) * 0.01
    each = [mask.clone().requires_grad_() for mask in drawn - drawn.mean(0)]
    steps, mu = [torch.optim.SGD([mask], 0.1, momentum=0.9, weight_decay=5e-4) for mask in each], 1.0
    for _ in range(30):
        for mask in each:
            mask.grad = None
        total = torch.stack([1.0 * mask for mask in each]).sum(0)  # copies: else all would share one gradient's memory
        together, losses = mu * weights.balance * total.norm(), []
        for mask in each:
            energy = sum(weights.energy / (update[j] + mask[j]).abs().sum() for j in range(5))
            losses.append((a * energy + (1 - a) * weights.size * mask.norm() + together) / (1 + mu))
        for loss, step in zip(losses, steps, strict=True):
            loss.backward(retain_graph=True)
            step.step()
        mu += 0.1 * float(torch.stack(each).detach().sum(0).norm())
    wanted = torch.stack(each).detach()
    got = masks(update, 4, a, weights)
    assert float((got - wanted).norm()) < 0.005 * float(wanted.norm())


def test_rows_of_the_last_layer_there_and_back() -> None:
    row = torch.arange(float(D))
    rows = head_rows(row, LAYOUT)
    assert (rows[1] - K).tolist() == [6, 7, 8, 9, 10, 11, 25]
    assert torch.equal(with_head_rows(row, rows, LAYOUT), row)
    assert torch.equal(with_head_rows(row, rows + 1, LAYOUT)[K:], row[K:] + 1)
