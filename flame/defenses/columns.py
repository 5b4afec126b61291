"""Rules that act on each coordinate alone, a slab of columns at a time: there never is a second matrix of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SLAB_ELEMENTS = 1 << 20  # working set of one slab: 4 MB, whatever the number of clients


def columnwise(rows: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """[k], the rule's value for each column of `rows` [n, k]; the rule maps [width, n] (columns as rows) to [width]."""
    return torch.cat([rule(slab.T.contiguous()) for slab in slabs(rows)])


def slabs(rows: Tensor, n: int | None = None) -> tuple[Tensor, ...]:
    """`rows` cut into slabs of columns, as wide as those of a matrix with `n` rows."""
    return rows.split(max(1, SLAB_ELEMENTS // (n or len(rows))), dim=1)
