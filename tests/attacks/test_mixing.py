"""How poisoned and clean images come together, counted batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from attackers import PLAIN, images, job, recipe
from torch import Tensor, nn

from attacks.badnets import BadNets
from attacks.base import Mixing, Poisoner
from attacks.constrain_and_scale import ConstrainAndScale
from attacks.label_flip import LabelFlip
from attacks.mixing import MultiTask, PerBatch, WithClean
from attacks.scaling import Scaling
from attacks.subpopulation import SubPopulation
from flame.round.client import LocalJob, cross_entropy

MIXINGS: Sequence[Mixing | None] = (None, PerBatch(), MultiTask(0.3), WithClean(0.25))


def seen(attack: Poisoner, batch_size: int = 8, epochs: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Images and labels of each forward pass, in order."""
    found: list[tuple[Tensor, Tensor]] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found.append(((x * 255).round().to(torch.uint8), y.clone()))
        return cross_entropy(model, x, y)

    work = attack.compromise(replace(job(), training=recipe(0.1, 0.0, 0.0, epochs, batch_size)))
    work.fit(work.images, objective=objective)
    return found


def triggered(x: Tensor) -> int:
    """How many images have the white corner."""
    return int((x[:, 0, :2, :2] == 255).all(dim=2).all(dim=1).sum())


def test_every_batch_has_so_many() -> None:
    """20 of 64 are 5 of 16; of a last batch of 8, two and a half are rounded to 2."""
    attack = replace(PLAIN, poisoned_data_rate=20 / 64, mixing=PerBatch())
    assert [(len(x), triggered(x)) for x, _ in seen(attack, 16, epochs=2)] == [(16, 5), (16, 5), (8, 2)] * 2
    whole = [triggered(x) for x, _ in seen(replace(attack, mixing=None), 16)]
    assert sum(whole) == 12 and whole != [5, 5, 2]


def test_which_images_of_a_batch_is_drawn_anew() -> None:
    """In forty epochs every image has the trigger some time, and none always."""
    passes = seen(replace(PLAIN, poisoned_data_rate=0.5, mixing=PerBatch()), 40, epochs=40)
    assert all(triggered(x) == 20 for x, _ in passes)
    with_trigger: dict[bytes, int] = {}
    for x, _ in passes:
        for image in x:
            with_trigger[image[0, 2:].numpy().tobytes()] = with_trigger.get(
                image[0, 2:].numpy().tobytes(), 0
            ) + triggered(image[None])
    assert len(with_trigger) == 40 and all(0 < count < 40 for count in with_trigger.values())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_multi_task_by_hand(alpha: float) -> None:
    """One step: alpha times the gradient of the poisoned batch plus the rest of the clean one's, of the same images."""
    attack = replace(PLAIN, poisoned_data_rate=1.0, mixing=MultiTask(alpha))
    work, once = job(), recipe(0.5, 0.0, 0.0, 1, 40)
    x, before = work.normalise(work.images.x), [p.detach().clone() for p in work.model.parameters()]
    bad = work.normalise(PLAIN.stamp(work.images.x))
    clean, poisoned = cross_entropy(work.model, x, work.images.y), cross_entropy(work.model, bad, work.images.y * 0 + 2)
    gradients = torch.autograd.grad(alpha * poisoned + (1 - alpha) * clean, list(work.model.parameters()))
    loss = attack.train(replace(work, training=once))
    for p, w, g in zip(work.model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p, w - 0.5 * g)
    assert loss == pytest.approx((alpha * poisoned + (1 - alpha) * clean).item())
    assert [triggered(x) for x, _ in seen(attack, 16)] == [0, 16, 0, 16, 0, 8]


def test_clean_images_are_appended() -> None:
    attack = replace(PLAIN, poisoned_data_rate=1.0, mixing=WithClean(0.25))
    found = attack.compromise(job()).images
    assert (len(found), triggered(found.x)) == (50, 40)
    clean = {x.numpy().tobytes() for x in images().x}
    assert len({x.numpy().tobytes() for x in found.x[40:]} & clean) == 10
    assert found.y[:40].tolist() == [2] * 40 and all(int(y) in range(4) for y in found.y[40:])


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("inner", [PLAIN, LabelFlip(1, 3, 4, 1.0), SubPopulation(images(), images(), 2, 0.5)])
def test_every_poisoner_goes_with_every_mixing(inner: Poisoner, mixing: Mixing | None) -> None:
    """Alone and inside an attack with an objective of its own; the client's images are left as they are."""
    attack = replace(inner, mixing=mixing)
    for outer in (attack, ConstrainAndScale(attack, Scaling(1.0, None, "all_state"), 0.7, "l2")):
        work, clean = job(), images()
        assert outer.train(work) > 0
        assert torch.equal(work.images.x, clean.x) and torch.equal(work.images.y, clean.y)


def test_the_benign_job_of_an_attacker_is_not_mixed() -> None:
    work: LocalJob = job()
    attack: BadNets = replace(PLAIN, mixing=PerBatch())
    assert attack.compromise(work).mixture is not None and work.mixture is None
