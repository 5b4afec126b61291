"""Who sends nothing hostile, by hand: what was changed in the data, and what was sent beside what is honest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attackers import LAYOUT, PLAIN, images, job, scene
from torch import Tensor

from attacks.alie import ALIE
from attacks.base import Attack
from attacks.differences import changed, same_rows
from attacks.label_flip import LabelFlip
from flame.data.samples import Samples
from flame.round.types import Notes

ROWS = torch.tensor([[1.0, 2, 3, 4, 1, 1], [3.0, 2, 1, 0, 3, 5]])  # mean (2, 2, 2, 2 | 2, 3)
NOTHING, SOME = {"poisoned": torch.tensor(0)}, {"poisoned": torch.tensor(3)}


def test_images_that_were_changed_are_counted() -> None:
    clean = images()
    flipped = Samples(clean.x, clean.y.clone())
    flipped.y[:3] = 3
    stamped = Samples(PLAIN.stamp(clean.x), clean.y)
    counts = [int(changed(clean, other).sum()) for other in (clean, flipped, stamped)]
    assert counts == [0, 3, 40]
    longer = Samples(torch.cat([clean.x, clean.x[:7]]), torch.cat([clean.y, clean.y[:7]]))
    assert changed(clean, longer).nonzero().flatten().tolist() == list(range(40, 47))


def test_a_client_notes_how_many_images_it_poisons() -> None:
    """Half of 40; none of class 1 where it has none, whatever its attack wants of the others."""
    work = job()
    PLAIN.compromise(work)
    assert int(work.notes["poisoned"]) == 20
    without = replace(job(), images=images()[images().y != 1])
    LabelFlip(1, 3, 4, 1.0).compromise(without)
    assert int(without.notes["poisoned"]) == 0


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (ROWS, [True, True]),
        (ROWS * (1 + 1e-7), [True, True]),
        (ROWS.mean(0).repeat(2, 1), [True, True]),
        (torch.cat([ROWS.mean(0)[:4].repeat(2, 1), ROWS[:, 4:]], 1), [True, True]),  # statistics as trained
        (ROWS.flip(0), [False, False]),
        (torch.tensor([[1.0, 2, 3, 4, 1, 1], [3.0, 2, 1, 0.1, 3, 5]]), [True, False]),
        (torch.tensor([[1.0, 2, 3, 4, 1, 2], [3.0, 2, 1, 0, 3, 5]]), [False, True]),  # statistics tell
        (2 * ROWS, [False, False]),
    ],
)
def test_rows_that_an_honest_client_could_send(sent: Tensor, wanted: list[bool]) -> None:
    assert same_rows(sent, ROWS, 4, mean=True).tolist() == wanted


@pytest.mark.parametrize(
    ("notes", "wanted"),
    [
        ([NOTHING, NOTHING], [True, True]),
        ([NOTHING, SOME], [True, False]),  # the data were poisoned
        ([{}, NOTHING], [False, True]),  # nothing is known of them
        (
            [SOME | {"benign": ROWS[0]}, SOME | {"benign": ROWS[0]}],
            [True, False],
        ),  # what would have been honest is known
    ],
)
def test_what_is_honest_is_known_from_the_notes(notes: list[Notes], wanted: list[bool]) -> None:
    assert Attack().idle(ROWS, ROWS, scene(LAYOUT, notes)).tolist() == wanted


@pytest.mark.parametrize(("z", "idle"), [(1.5, [False, False]), (1e-9, [True, True])])
def test_colluders_without_a_spread_are_idle(z: float, idle: list[bool]) -> None:
    around = scene(LAYOUT, [NOTHING, NOTHING])
    sent = ALIE(z).craft(ROWS, around, torch.Generator()).rows
    assert ALIE(z).idle(sent, ROWS, around).tolist() == idle
    alone = scene(LAYOUT, [NOTHING])
    assert ALIE(z).idle(ALIE(z).craft(ROWS[:1], alone, torch.Generator()).rows, ROWS[:1], alone).tolist() == [True]
