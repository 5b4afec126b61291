"""A3FL: the trigger that is searched for, by hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import LAYOUT, PLAIN, START, a3fl, images, job, normed_job, recipe, scene, trigger_loss
from torch import Tensor, nn

from attacks.a3fl import TRIGGER, similarity
from attacks.snapshot import Snapshot
from attacks.triggers import Painted, Square
from flame.round.client import cross_entropy
from flame.round.seeding import generator


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_the_search_makes_the_trigger_work(balance: float) -> None:
    work, attack = normed_job(), a3fl(balance=balance)
    model, start = deepcopy(work.model), attack.current({}, work.images.x).values
    attack.train(work)
    found = work.notes[TRIGGER]
    assert found.shape == (1, 4) and float(found.min()) >= 0 and float(found.max()) <= 255
    assert trigger_loss(model, work, found) < trigger_loss(model, work, start) - 0.01
    assert start.tolist() == [[128.0] * 4]  # where it started is as it was


def found(**changes: Any) -> Tensor:
    """[1, 4] the trigger of a client that takes steps of 3 on one batch."""
    work = job()
    a3fl(step=3.0, rival=recipe(0.1, 0.0, 0.0, 1, 40), **changes).train(work)
    return work.notes[TRIGGER]


def stepped(loss: Callable[[Tensor], float], values: Tensor) -> Tensor:
    """[1, 4] each value one step of 3 against the sign of the loss's difference quotient."""
    ends = [(values + sign * 10 * one[None]) for one in torch.eye(4) for sign in (1, -1)]
    slopes = torch.tensor([loss(up) - loss(down) for up, down in zip(ends[::2], ends[1::2], strict=True)])
    return values - 3 * slopes.sign()


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(cross_entropy(model, x, y), list(model.parameters()))


def test_one_signed_step_by_hand() -> None:
    """No rival: against the global model's loss alone."""
    fresh = job()
    wanted = stepped(lambda values: trigger_loss(fresh.model, fresh, values), torch.full((1, 4), 128.0))
    assert torch.equal(found(search_epochs=1), wanted)


def test_the_second_step_is_against_the_rival_too() -> None:
    """L + lambda L_rival: a rival one step of SGD away, lambda from the cosine of the gradients before and in it."""
    work, rival, y = job(), job().model, images().y
    start, first = torch.full((1, 4), 128.0), found(search_epochs=1)
    stamped = [work.normalise(Painted(START, values).stamp(work.images.x)) for values in (start, first)]
    own, unlearning = gradients(work.model, stamped[0], torch.full_like(y, 2)), gradients(rival, stamped[1], y)
    with torch.no_grad():
        for p, g in zip(rival.parameters(), unlearning, strict=True):
            p -= 0.1 * g
    cosine = float(own[0].flatten() @ unlearning[0].flatten() / (own[0].norm() * unlearning[0].norm()))

    def second(balance: float) -> Tensor:
        def loss(values: Tensor) -> float:
            return sum(w * trigger_loss(m, work, values) for w, m in ((1, work.model), (balance * cosine, rival)))

        return stepped(loss, first)

    for balance in (0.0, 0.5, 100.0):
        assert torch.equal(found(search_epochs=2, balance=balance), second(balance))
    assert not torch.equal(second(0.0), second(100.0))


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
