"""Step 3 and 4: norms, the bound S_t, and what is scaled to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flame.defenses.base import check_choice, clip_to
from flame.geometry.layout import BLOCKS, COUNTERS, SCOPES, scope_blocks
from flame.round.types import Updates


@dataclass(frozen=True)
class Clip:
    """The clip bound S_t and its use."""

    reference: str  # norms and scaling are about the global model | the coordinate_median of this round's models
    scope: str  # the blocks whose norm counts
    apply_to: str  # the blocks that are scaled, or nothing
    over: str  # all: median over all clients | accepted: over the accepted only
    median: str  # midpoint of the two middle values | lower of them
    index: str  # client: scaled by its own norm | position: the k-th accepted by the norm at position k of the round
    epsilon: float  # >= 0, added to e_i before S_t is divided by it

    def __post_init__(self) -> None:
        check_choice("clip.reference", self.reference, tuple(REFERENCES))
        check_choice("clip.scope", self.scope, tuple(SCOPES))
        check_choice("clip.apply_to", self.apply_to, (*SCOPES, "nothing"))
        check_choice("clip.over", self.over, ("all", "accepted"))
        check_choice("clip.median", self.median, ("midpoint", "lower"))
        check_choice("clip.index", self.index, tuple(INDICES))
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"defense.clip.epsilon={self.epsilon} is out of range: must be in [0, 1), Algorithm 1: 0")

    def centre(self, updates: Updates) -> Updates:
        """The same models as differences from the reference."""
        return REFERENCES[self.reference](updates)

    def norms(self, updates: Updates) -> Tensor:
        """[n] float64, e_i."""
        return updates.geometry.norms(self.scope)

    def bound(self, norms: Tensor, accepted: Tensor) -> float:
        """S_t, the median norm."""
        pool = norms if self.over == "all" else norms[accepted]
        return float(pool.quantile(0.5, interpolation=self.median))

    def factors(self, norms: Tensor, bound: float, accepted: Tensor) -> Tensor:
        """[n] float64 in [0, 1], min(1, S_t / e_i); 1 for an update of length 0."""
        return INDICES[self.index](clip_to(bound, norms + self.epsilon), accepted)

    def per_block(self, factors: Tensor) -> dict[str, Tensor]:
        """For each block the factors [n] that its columns are scaled by: 1 where nothing is clipped."""
        scaled = () if self.apply_to == "nothing" else scope_blocks(self.apply_to)
        return {b: factors if b in scaled else torch.ones_like(factors) for b in (*BLOCKS, COUNTERS)}


def _about_coordinate_median(updates: Updates) -> Updates:
    """The base moves, the models stay; base counters become float64 and may end in .5."""
    models = updates.models
    centre, counters = _middle(models), _middle(updates.counters.double())
    return replace(updates, base=centre, rows=models - centre, base_counters=counters)


def _middle(values: Tensor) -> Tensor:
    """[d] the midpoint median of each column; `quantile` refuses more than 16 million values."""
    n, ranked = len(values), values.sort(0).values
    return (ranked[(n - 1) // 2] + ranked[n // 2]) / 2


def _by_position(factors: Tensor, accepted: Tensor) -> Tensor:
    slipped = torch.ones_like(factors)
    slipped[accepted] = factors[: int(accepted.sum())]
    return slipped


REFERENCES: Mapping[str, Callable[[Updates], Updates]] = {
    "global": lambda updates: updates,
    "coordinate_median": _about_coordinate_median,
}
INDICES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "client": lambda factors, accepted: factors,
    "position": _by_position,
}
