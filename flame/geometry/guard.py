"""The guard before all defenses: which updates arithmetic can be done with."""

from __future__ import annotations

from torch import Tensor

from flame.geometry.layout import StateLayout

LARGEST_STEP = 1 << 31  # batches in one round; beyond it, sums of counters overflow
TOLERANCE = 1e-6  # below 0, a running_var is rounding
LARGEST_NORM = 1e15  # a longer update overflows float32 once squared and summed; no training produces one


def guard(
    layout: StateLayout, base: Tensor, rows: Tensor, steps: Tensor, norms: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """[n] bool, the updates that arithmetic can be done with, and counts of those that it cannot.

    Refused are NaN and Inf (guard/nonfinite), an update too long for float32 and a counter too far away for int64
    (guard/oversized). A negative running_var or a counter that went backwards, which no training sends, is counted
    (guard/implausible) and left to the defense, as public code does: a scaled update can contain it. The global
    model's running_var is floored afterwards.

    `base` [d + b] is the global row, `rows` [n, d + b] are differences to it with lengths `norms` [n] float64, in which
    a NaN or Inf anywhere in a row shows; `steps` [n, c] float64, where nothing wraps around, are the counters' ones.
    """
    finite = norms.isfinite()
    small = (norms <= LARGEST_NORM) & (steps.abs() <= LARGEST_STEP).all(1)
    span = layout.spans.get("running_var", slice(0, 0))
    implausible = (base[span] + rows[:, span] < -TOLERANCE).any(1) | (steps < 0).any(1)
    return finite & small, {
        "guard/nonfinite": float((~finite).sum()),
        "guard/oversized": float((finite & ~small).sum()),
        "guard/implausible": float((finite & small & implausible).sum()),
    }
