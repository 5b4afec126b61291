"""What an attack changes: which samples, which labels, which rows."""

from __future__ import annotations

import torch
from torch import Tensor

from flame.data.samples import UNASKED, Samples

ROUNDING = 1e-6  # relative to a row's length: less is no difference in float32


def changed(before: Samples, after: Samples) -> Tensor:
    """[len(after)] bool, which samples after poisoning are others than before, have other labels, or are new."""
    n = min(len(before), len(after))
    pairs = ((before.x[:n], after.x[:n]), (before.y[:n], after.y[:n]))
    other = [(old != new).reshape(n, -1).any(1) for old, new in pairs] if n else []
    return torch.cat([*([other[0] | other[1]] if n else []), torch.ones(len(after) - n, dtype=torch.bool)])


def differing(y: Tensor, wanted: Tensor) -> Tensor:
    """[N] or [N, T] bool, which labels of `wanted` are asked for and others than those of `y`."""
    return (wanted != y) & (wanted != UNASKED)


def relabelled(y: Tensor, wanted: Tensor) -> Tensor:
    """[N] bool, which samples have such a label."""
    other = differing(y, wanted)
    return other if other.dim() == 1 else other.any(1)


def same_rows(sent: Tensor, rows: Tensor, trainable: int, mean: bool) -> Tensor:
    """[m] bool, who sends [m, d + b] its own of the rows [m, d + b] but for rounding; with `mean`, their mean will do.

    Weights and statistics are looked at apart: one may be the own, the other the mean.
    """
    alike = torch.ones(len(sent), dtype=torch.bool)
    for part in (slice(0, trainable), slice(trainable, None)):
        wanted = [rows[:, part], *([rows[:, part].mean(0, keepdim=True)] if mean else [])]
        off = [(sent[:, part] - other).norm(dim=1) <= ROUNDING * other.norm(dim=1) for other in wanted]
        alike &= torch.stack(off).any(0)
    return alike
