"""Noise masks of 3DFed (Li et al., IEEE S&P 2023): colluders that send one update add noise to it that makes them look
different from each other and moves outputs other than the target, and that nearly cancels in the mean.

Minimised for each mask, all by SGD at the same time, in the rows of the last layer that it may touch:

    (a energy sum_j 1 / UP_j + (1 - a) size ||mask|| + mu balance ||sum of the masks||) / (1 + mu)

UP_j, the update energy of output j, is the sum of magnitudes of its row, mask included; the multiplier mu starts at 1
and grows by `ASCENT` times ||sum of the masks|| (dual ascent). The masks are centred once, before the first step.

All is as in the authors' code (haoyangliASTAPLE/3DFed at 6e0e8ec: attacks/components/mask.py, attacks/
loss_functions.py). There the losses of a group are taken back one after the other, each followed by its mask's step, so
that the slope of the sum has been added up k times when the k-th mask of a group steps: it counts k times here, too.

Deviation: a group of fewer colluders than the others has as many masks as colluders (there it has all, and leaves some
unused).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flame.geometry.layout import Entry, StateLayout
from flame.round.optimizers import BareSGD

STEPS = 30
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
ASCENT = 0.1


@dataclass(frozen=True)
class Weights:
    """Of the three terms; absolute, so that what they do depends on the width of the last layer."""

    energy: float  # >= 0
    size: float  # >= 0
    balance: float  # >= 0


def noise_masks(update: Tensor, count: int, a: float, std: float, weights: Weights, stream: Generator) -> Tensor:
    """[count, r, f] masks for the rows [r, f] of an update, from normal noise of that spread, centred."""
    masks = torch.randn(count, *update.shape, generator=stream) * std
    masks = (masks - masks.mean(0)).requires_grad_()
    optimizer, multiplier = BareSGD([masks], LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY), 1.0
    times, tiny = torch.arange(1.0, count + 1), torch.finfo(update.dtype).tiny
    for _ in range(STEPS):
        energy = (update + masks).abs().sum(2).clamp_min(tiny)  # [count, r]
        own = a * weights.energy * (1 / energy).sum() + (1 - a) * weights.size * masks.flatten(1).norm(dim=1).sum()
        total = masks.detach().sum(0)
        slope = total / total.norm().clamp_min(tiny)  # of ||sum of the masks||, for each of them
        together = multiplier * weights.balance * ((masks * slope).sum((1, 2)) * times).sum()
        optimizer.zero_grad()
        ((own + together) / (1 + multiplier)).backward()
        optimizer.step()
        multiplier += ASCENT * float(masks.detach().sum(0).norm())
    return masks.detach()


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
