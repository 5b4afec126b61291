"""Attacks around attacks: every hook reaches the innermost, and so does what does not fit the data set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attackers import PLAIN, dataset, images, trained
from labs import Liar

from attacks.alie import ALIE
from attacks.around import Around
from attacks.base import Attack
from attacks.edge_case import EdgeCase
from attacks.label_flip import LabelFlip
from attacks.none import NoAttack
from attacks.semantic import Semantic
from flame.round.seeding import generator


def test_attacks_around_attacks_pass_every_hook_on() -> None:
    inner = EdgeCase(3, 2, None, 0.5, 2, 0.5)
    armed, rest = Around(Around(inner)).prepare(dataset(), generator(0, "prepare"))
    direct, direct_rest = inner.prepare(dataset(), generator(0, "prepare"))
    assert torch.equal(rest.train.x, direct_rest.train.x)
    got, wanted = (one.backdoor_set(one.examined(images())) for one in (armed, direct))
    assert got is not None and wanted is not None and torch.equal(got.x, wanted.x)
    (less, got), (_, wanted) = (one.rehearsal(images(), 0.5, generator(0, "rehearsal")) for one in (armed, direct))
    assert got is not None and wanted is not None and torch.equal(got.x, wanted.x) and type(less) is Around
    with pytest.raises(ValueError, match="ALIE needs two"):
        Around(Around(ALIE(1.5))).check_round(5, range(1, 2))
    assert torch.equal(trained(armed)[1], trained(direct)[1])
    flip = Around(LabelFlip(1, 3, 4, 1.0))
    assert torch.equal(flip.target(torch.arange(4)), torch.tensor([0, 3, 2, 3]))
    assert torch.equal(flip.poison(images(), generator(0, "poison")).y, flip.target(images().y))
    assert torch.equal(Around(PLAIN).stamp(images().x), PLAIN.stamp(images().x))
    losses = torch.rand(1, 2, 3, generator=generator(0, "losses"))
    assert torch.equal(Around(Around(Liar())).report(losses), 10 * losses)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (replace(PLAIN, target_class=4), r"attack.target_class=4 is out of range: must be in \[0, 3\]"),
        (replace(PLAIN, source_class=-1), "attack.source_class=-1"),
        (LabelFlip(9, 1, 4, 0.5), "attack.source_class=9"),
        (EdgeCase(4, 1, None, 0.1, 1, 0.5), "attack.source_class=4"),
        (EdgeCase(1, 2, None, 0.01, 1, 0.5), "attack.share=0.01 of the 10 training images of class 1 is 0"),
        (Semantic(1, 2, {"made up": {"train": [40], "held_out": [1]}}, 0.1, 0.5), "attack.positions.made up.tr"),
    ],
)
def test_settings_that_do_not_fit_the_data_set(attack: Attack, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Around(attack).prepare(dataset(), generator(0, "prepare"))


def test_nothing_goes_around_no_attack() -> None:
    with pytest.raises(ValueError, match=r"attack\.backdoor=NoAttack attacks nobody, and nor would Around"):
        Around(NoAttack()).prepare(dataset(), generator(0, "prepare"))
    with pytest.raises(ValueError, match="NoAttack attacks nobody"):
        Around(Around(NoAttack())).prepare(dataset(), generator(0, "prepare"))
