"""Noise masks of 3DFed (Li et al., IEEE S&P 2023): colluders that send one update add noise to it that makes them look
different from each other and moves outputs other than the target, and that cancels in the mean.

Minimised for each mask, all by SGD at the same time, in the rows of the last layer that it may touch:

    (alpha sum_j 0.1 / UP_j + (1 - alpha) 0.01 ||mask|| + mu 0.01 ||sum of the masks||) / (1 + mu)

UP_j, the update energy of output j, is the sum of magnitudes of its row, mask included; the multiplier mu starts at 1
and grows by `ASCENT` times ||sum of the masks|| (dual ascent). Constants: the authors' code for MNIST and CIFAR-10.

Deviation: the masks are centred once more at the end; 30 steps leave a sum of the size of the masks where the last
layer is small, and with it a common direction that the mean keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from flame.geometry.layout import Entry, StateLayout

STEPS = 30
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
ENERGY, SIZE, BALANCE = 0.1, 0.01, 0.01  # weights of the three terms
ASCENT = 0.1


def noise_masks(update: Tensor, count: int, alpha: float, std: float, stream: Generator) -> Tensor:
    """[count, r, f] masks for the rows [r, f] of an update, from normal noise of that spread, centred."""
    masks = torch.randn(count, *update.shape, generator=stream) * std
    masks = (masks - masks.mean(0)).requires_grad_()
    optimizer, multiplier = torch.optim.SGD([masks], LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY), 1.0
    for _ in range(STEPS):
        energy = (update + masks).abs().sum(2).clamp_min(torch.finfo(update.dtype).tiny)  # [count, r]
        own = alpha * ENERGY * (1 / energy).sum() + (1 - alpha) * SIZE * masks.flatten(1).norm(dim=1).sum()
        together = count * multiplier * BALANCE * masks.sum(0).norm()
        optimizer.zero_grad()
        ((own + together) / (1 + multiplier)).backward()
        optimizer.step()
        multiplier += ASCENT * float(masks.detach().sum(0).norm())
    return masks.detach() - masks.detach().mean(0)


def head_entries(layout: StateLayout) -> Sequence[Entry]:
    """Weight and bias of the last layer."""
    return [e for e in layout.entries if e.block == "head"]


def head_rows(row: Tensor, layout: StateLayout) -> Tensor:
    """[classes, f] weights and bias of each output, of an update [d] or [d + b]; a copy."""
    return torch.cat([row[e.start : e.stop].view(e.shape[0], -1) for e in head_entries(layout)], dim=1)


def with_head_rows(row: Tensor, rows: Tensor, layout: StateLayout) -> Tensor:
    """The update with other rows [classes, f] of the last layer; a copy."""
    out, column = row.clone(), 0
    for e in head_entries(layout):
        width = (e.stop - e.start) // e.shape[0]
        out[e.start : e.stop] = rows[:, column : column + width].flatten()
        column += width
    return out
