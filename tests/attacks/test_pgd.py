"""PGD: local training ends in the ball, by the shortest way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attackers import PLAIN, UNSCALED, trained

from attacks.constrain_and_scale import ConstrainAndScale
from attacks.pgd import PGD


@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_pgd_ends_on_the_ball(radius: float) -> None:
    before, after = trained(PGD(PLAIN, UNSCALED, radius), epochs=5, batch_size=8, momentum=0.9)
    assert float((after - before).norm()) == pytest.approx(radius, rel=1e-4)


def test_pgd_projects_a_step_onto_its_own_direction() -> None:
    before, free = trained(PLAIN)
    _, after = trained(PGD(PLAIN, UNSCALED, 0.05))
    step = free - before
    assert float(step.norm()) > 0.05
    torch.testing.assert_close(after, before + 0.05 * step / step.norm(), atol=1e-6, rtol=0)


def test_pgd_in_a_wide_ball_and_constrain_with_alpha_1_are_plain_training() -> None:
    _, free = trained(PLAIN, epochs=2, batch_size=8)
    for attack in (PGD(PLAIN, UNSCALED, 1e6), ConstrainAndScale(PLAIN, UNSCALED, 1.0, "l2")):
        assert torch.equal(trained(attack, epochs=2, batch_size=8)[1], free)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(PLAIN, UNSCALED, 0.0), "attack.radius=0.0 is out of range: must be > 0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
