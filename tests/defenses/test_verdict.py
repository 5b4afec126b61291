"""A verdict that is not about the round it was asked about is refused, whoever wrote the defense."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_defenses import a_round, stream
from torch import Generator

from flame.defenses.base import defend
from flame.round.types import ServerState, Updates, Verdict


@pytest.mark.parametrize("field", ["weights", "clip_factors", "row", "counters"])
@pytest.mark.parametrize("length", [1, 4])
def test_a_verdict_of_the_wrong_length_is_refused(field: str, length: int) -> None:
    """One weight for three updates would be spread over all of them without a word."""
    updates = a_round([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    state = ServerState(updates.base, updates.base_counters)

    def wrong(state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        third = torch.full((3,), 1 / 3, dtype=torch.float64)
        short = torch.ones(length, dtype=torch.float64)
        if field in ("row", "counters"):
            return Verdict(replace(state, **{field: getattr(state, field).new_zeros(length)}), third)
        return replace(Verdict(state, third, clip_factors=third), **{field: short})

    with pytest.raises(ValueError, match=rf"verdict has .*{field} of shape \({length},?\): must be \("):
        defend(wrong, state, updates, stream())
