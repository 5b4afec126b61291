"""Scaling of crafted updates, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attackers import LAYOUT, scene

from attacks.scaling import Scaling


def test_scaling_by_hand() -> None:
    """n = 6, m = 2: gamma = 3; the last two columns, running mean and variance, stay or grow as the scope says."""
    rows = torch.tensor([[3.0, 4, 0, 0, 1, -1], [0, 0, 0, 1, 2, 3]])
    scaled = Scaling(None, None, "weights_only").apply(rows, scene(LAYOUT, [], 6))
    assert scaled.tolist() == [[9, 12, 0, 0, 1, -1], [0, 0, 0, 3, 2, 3]]
    assert torch.equal(Scaling(None, None, "all_state").apply(rows, scene(LAYOUT, [], 6)), 3 * rows)
    bounded = Scaling(None, 10.0, "all_state").apply(rows, scene(LAYOUT, [], 6))  # 10 / 5 = 2 < 3 for the first only
    assert bounded.tolist() == [[6, 8, 0, 0, 2, -2], [0, 0, 0, 3, 6, 9]]
    shortened = Scaling(7.0, 2.5, "weights_only").apply(rows, scene(LAYOUT, [], 6))
    assert shortened.tolist() == [[1.5, 2, 0, 0, 1, -1], [0, 0, 0, 2.5, 2, 3]]
    assert rows[0, 0] == 3


def test_a_bound_leaves_a_zero_update_alone() -> None:
    assert not Scaling(None, 1.0, "all_state").apply(torch.zeros(1, 6), scene(LAYOUT, [], 6)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scaling(0.0, None, "all_state"), r"attack.scaling.gamma=0.0 .* null \(n / m\) or > 0"),
        (lambda: Scaling(None, -1.0, "all_state"), "attack.scaling.norm_bound=-1.0"),
        (lambda: Scaling(None, None, "head"), "attack.scaling.scope='head'"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
