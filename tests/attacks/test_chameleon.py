"""Chameleon: the contrastive loss by hand, and who learns first."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import PLAIN, images, normed_job, recipe

from attacks.chameleon import Chameleon, contrastive_loss, features
from attacks.snapshot import Snapshot


def chameleon(weight: float = 6.0) -> Chameleon:
    return Chameleon(PLAIN, 2, weight, 0.5, recipe(0.05, 0.9, 0.0, 3, 20))


def test_contrastive_loss_by_hand() -> None:
    """Three unit features, the first two of one label at cosine 0.6, the third alone and opposite to the first."""
    f = torch.tensor([[1.0, 0], [0.6, 0.8], [-1, 0]])
    first = -math.log(math.exp(0.6 / 0.5) / (math.exp(0.6 / 0.5) + math.exp(-1 / 0.5)))
    second = -math.log(math.exp(0.6 / 0.5) / (math.exp(0.6 / 0.5) + math.exp(-0.6 / 0.5)))
    loss = contrastive_loss(f, torch.tensor([4, 4, 2]), torch.tensor([1.0, 3, 5]), 0.5)
    assert float(loss) == pytest.approx((first + 3 * second) / 3, rel=1e-5)


def test_the_encoder_learns_first_and_the_classifier_second() -> None:
    work, half = normed_job(), normed_job()
    start = Snapshot.of(work.model)
    chameleon().train(work)
    chameleon().adapt(PLAIN.compromise(half))
    trunk, head = start.layout.spans["trunk"], start.layout.spans["head"]
    done, adapted = Snapshot.of(work.model).row, Snapshot.of(half.model).row
    assert torch.equal(done[trunk], adapted[trunk]) and not torch.equal(done[trunk], start.row[trunk])
    assert torch.equal(adapted[head], start.row[head]) and not torch.equal(done[head], start.row[head])
    assert all(p.requires_grad for p in work.model.parameters())


def test_poisoned_images_are_nearer_to_facilitators_than_to_interferers() -> None:
    """The mean cosine of triggered images to the target class minus that to their own class, around step 1."""
    work, y = normed_job(), images().y
    stamped, own = PLAIN.stamp(work.images.x[y != 2]), y[y != 2]

    @torch.no_grad()
    def margin() -> float:
        f, g = (features(work.model.eval(), work.normalise(x)) for x in (stamped, work.images.x))
        cosines = f @ g.T
        return float(cosines[:, y == 2].mean() - cosines[own[:, None] == y].mean())

    before = margin()
    replace(chameleon(), contrast=recipe(0.2, 0.9, 0.0, 8, 20)).adapt(PLAIN.compromise(work))
    assert abs(before) < 0.05 and margin() > 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chameleon(weight=0.0), "attack.weight=0.0"),
        (lambda: replace(chameleon(), temperature=0.0), "attack.temperature=0.0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
