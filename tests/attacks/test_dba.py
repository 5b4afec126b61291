"""DBA: each attacker stamps its part of the trigger, the test set has the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import LAYOUT, UNSCALED, images, job, scene

from attacks.dba import DBA
from attacks.scaling import Scaling
from attacks.triggers import Bars
from flame.round.seeding import generator


def test_each_dba_client_trains_on_its_own_part_and_the_whole_is_tested() -> None:
    bars = Bars(size=2, gap=1, row=0, column=0, value=255)
    attack = DBA(bars, 2, None, 1.0, False, parts=4, scaling=UNSCALED)
    white = [attack.compromise(replace(job(), client=client)).images.x[0, 0] == 255 for client in range(8)]
    whole = attack.stamp(images().x)[0, 0] == 255
    assert all(int(part.sum()) == 2 for part in white) and int(whole.sum()) == 8
    assert torch.equal(torch.stack(white[:4]).sum(0), whole.long())  # disjoint, together the whole
    assert all(torch.equal(white[client], white[client + 4]) for client in range(4))


def test_the_update_is_scaled() -> None:
    rows = torch.randn(2, 6, generator=generator(0, "rows"))
    attack = DBA(Bars(1, 0, 0, 0, 1), 2, None, 0.5, False, 4, Scaling(3.0, None, "all_state"))
    assert torch.equal(attack.craft(rows, scene(LAYOUT, [{}, {}]), generator(0, "craft")).rows, 3 * rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DBA(Bars(1, 0, 0, 0, 1), 2, None, 0.5, False, 0, UNSCALED), "attack.parts=0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
