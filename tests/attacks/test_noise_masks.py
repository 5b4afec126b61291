"""3DFed's masks cancel, raise the energy of their outputs, and are those of a loop."""

from __future__ import annotations

import pytest
import torch
from test_threedfed import LAYOUT, D, K

from attacks.noise_masks import head_rows, noise_masks, with_head_rows
from flame.round.seeding import generator


@pytest.mark.parametrize("count", [2, 5])
def test_masks_cancel_and_raise_the_energy_of_their_outputs(count: int) -> None:
    update = torch.randn(5, 65, generator=generator(0, "update")) / 50
    bold, shy = (noise_masks(update, count, alpha, 0.01, generator(1, "masks")) for alpha in (0.9, 0.0))
    energy = [float((update + masks).abs().sum(2).mean()) for masks in (bold, shy)]
    assert energy[0] > 1.1 * float(update.abs().sum(1).mean()) and energy[0] > energy[1]
    assert float(bold.sum(0).norm()) < 1e-4 * float(bold.norm())


@pytest.mark.parametrize("alpha", [0.9, 0.5])
def test_masks_against_a_loop(alpha: float) -> None:
    """Each mask's loss as the module head has it, and SGD written out; without the sum's term it is off by 2 % or more.

    The sum is 0 at first, so that rounding decides that term's first slope: 0.05 %.
    """
    update = torch.randn(5, 65, generator=generator(0, "update")) / 50
    masks = torch.randn(5, 5, 65, generator=generator(1, "masks")) / 100
    masks, velocity, mu = masks - masks.mean(0), torch.zeros(5, 5, 65), 1.0
    for _ in range(30):
        masks.requires_grad_()
        together, losses = mu * 0.01 * masks.sum(0).norm(), []
        for mask in masks:
            energy = sum(0.1 / (update + mask)[j].abs().sum() for j in range(5))
            losses.append((alpha * energy + (1 - alpha) * 0.01 * mask.norm() + together) / (1 + mu))
        (slope,) = torch.autograd.grad(torch.stack(losses).sum(), masks)
        masks = masks.detach()
        velocity = 0.9 * velocity + slope + 5e-4 * masks
        masks = masks - 0.1 * velocity
        mu += 0.1 * float(masks.sum(0).norm())
    wanted = masks - masks.mean(0)
    got = noise_masks(update, 5, alpha, 0.01, generator(1, "masks"))
    assert float((got - wanted).norm()) < 0.005 * float(wanted.norm())


def test_rows_of_the_last_layer_there_and_back() -> None:
    row = torch.arange(float(D))
    rows = head_rows(row, LAYOUT)
    assert (rows[1] - K).tolist() == [6, 7, 8, 9, 10, 11, 25]
    assert torch.equal(with_head_rows(row, rows, LAYOUT), row)
    assert torch.equal(with_head_rows(row, rows + 1, LAYOUT)[K:], row[K:] + 1)
