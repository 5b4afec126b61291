"""A3FL: the trigger that is searched for, by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import LAYOUT, PLAIN, a3fl, images, job, normed_job, scene, trigger_loss
from torch import nn

from attacks.a3fl import TRIGGER, similarity
from attacks.snapshot import Snapshot
from attacks.triggers import Painted, Square
from flame.seeding import generator


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_the_search_makes_the_trigger_work(balance: float) -> None:
    work, attack = normed_job(), a3fl(balance=balance)
    model, start = deepcopy(work.model), attack.current({}, work.images.x).values
    attack.train(work)
    found = work.notes[TRIGGER]
    assert found.shape == (1, 4) and float(found.min()) >= 0 and float(found.max()) <= 255
    assert trigger_loss(model, work, found) < trigger_loss(model, work, start) - 0.01
    assert start.tolist() == [[128.0] * 4]  # where it started is as it was


def test_one_signed_step_by_hand() -> None:
    """One batch and no rival: each value goes one step against the sign of its difference quotient."""
    work, fresh = job(), job()
    a3fl(search_epochs=1, step=3.0).train(work)
    for i, value in enumerate(work.notes[TRIGGER][0].tolist()):
        ends = torch.full((2, 1, 4), 128.0)
        ends[0, 0, i], ends[1, 0, i] = 118, 138
        slope = trigger_loss(fresh.model, fresh, ends[1]) - trigger_loss(fresh.model, fresh, ends[0])
        assert value == (125.0 if slope > 0 else 131.0)


def test_the_client_poisons_with_what_it_found_and_goes_on_from_it() -> None:
    work, attack = normed_job(), a3fl()
    plain = normed_job()
    attack.train(work)
    found = work.notes[TRIGGER]
    replace(PLAIN, trigger=Painted(attack.trigger, found)).train(plain)
    assert torch.equal(Snapshot.of(work.model).row, Snapshot.of(plain.model).row)
    again = normed_job(memory={TRIGGER: found})
    replace(attack, search_epochs=0).train(again)
    assert torch.equal(again.notes[TRIGGER], found) and not found.requires_grad


def test_the_mean_trigger_is_remembered() -> None:
    notes = [{TRIGGER: torch.full((1, 4), v)} for v in (100.0, 201.0)]
    rows = torch.ones(2, 6)
    crafted = a3fl().craft(rows, scene(LAYOUT, notes), generator(0, "craft"))
    assert torch.equal(crafted.rows, rows) and crafted.memory[TRIGGER].tolist() == [[150.5] * 4]


def test_every_channel_has_its_own_value() -> None:
    x = images().x.expand(-1, 3, -1, -1)
    values = torch.arange(12.0).view(3, 4)
    stamped = Painted(Square(2, 1, 1, 0), values).stamp(x)
    assert torch.equal(stamped[:, :, 1:3, 1:3].flatten(2), values.to(torch.uint8).expand(len(x), 3, 4))
    assert torch.equal(stamped[:, :, 3:], x[:, :, 3:]) and torch.equal(stamped[:, :, :, 3:], x[:, :, :, 3:])


def test_similarity_by_hand() -> None:
    """Cosines 0.6 and -1 of the weights; biases do not count."""
    one, other = (nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1)) for _ in range(2))
    for model, gradients in ((one, ([[1.0, 0]], [1.0], [[2.0]])), (other, ([[3.0, 4]], [-1.0], [[-1.0]]))):
        model[0].weight.grad, model[0].bias.grad, model[1].weight.grad = map(torch.tensor, gradients)
    assert similarity(one, other) == pytest.approx((0.6 - 1) / 2)
    assert similarity(one, nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: a3fl(step=0.0), "attack.step=0.0"),
        (lambda: a3fl(search_epochs=-1), "attack.search_epochs=-1"),
        (lambda: a3fl(rival_every=0), "attack.rival_every=0"),
        (lambda: a3fl(balance=-1.0), "attack.balance=-1.0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
