"""ARC, adaptive robust clipping (Allouah, Guerraoui, Gupta, Jellouli, Rizk and Stephan, arXiv 2405.14432, 2024) before
any other rule, as ByzFL has it (LPD-EPFL/byzfl 69bd1ac, byzfl/aggregators/preaggregators.py).

The k = floor(2 f / n (n - f)) longest updates are shortened to the length of the next one; the inner rule then
aggregates all n. The bound is one of the round's own lengths, so that nothing has to be tuned.

Deviations and open points: f is a share of the round's clients, at most (n - 1) // 2. Lengths are those of the
trainable parameters, which alone are clipped; BatchNorm statistics and counters are handed on as they are. A client's
clip factor is what both rules leave of its update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Generator, Tensor

from flame.defenses.base import Defense, check_minority, clip_to, minority
from flame.defenses.mixing import PreAggregation
from flame.geometry.products import Geometry, Products
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class ARC(PreAggregation):
    """The inner rule on updates of which none is much longer than the others."""

    malicious_share: float  # f / n that is assumed, [0, 0.5)
    rule: Defense  # what aggregates the clipped updates

    def __post_init__(self) -> None:
        check_minority(self.malicious_share)

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The inner rule's verdict on the clipped updates."""
        n, norms = len(updates), updates.geometry.norms("weights_only")
        f = minority(self.malicious_share, n)
        clipped = 2 * f * (n - f) // n
        bound = float(norms.sort().values[n - clipped - 1])
        factors = clip_to(bound, norms)
        verdict = self.rule(state, shortened(updates, factors), stream)
        inner = 1.0 if verdict.clip_factors is None else verdict.clip_factors
        info = {"arc/clip_bound": bound, "arc/clipped": float((factors < 1).sum())}
        return replace(verdict, info={**verdict.info, **info}, clip_factors=factors * inner)


def shortened(updates: Updates, factors: Tensor) -> Updates:
    """The updates with their trainable parameters times `factors` [n] in [0, 1]; inner products follow from theirs."""
    if bool((factors == 1).all()):
        return updates
    trainable = updates.layout.span("weights_only")
    rows = updates.rows.clone()
    rows[:, trainable] *= factors.float()[:, None]
    part = replace(updates, rows=rows, recorded=None)
    scaled = {
        name: Products(factors[:, None] * p.gram * factors, factors * p.along, p.base)
        if name in ("trunk", "head")
        else p
        for name, p in updates.geometry.blocks.items()
    }
    part.__dict__["geometry"] = Geometry(scaled)
    return part
