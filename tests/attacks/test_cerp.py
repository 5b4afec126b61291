"""CerP: the trigger that is tuned in its ball, and the two controls that keep colluders inconspicuous."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import START, honest, job, model_row, normed_job, scene, trigger_loss

from attacks.badnets import BadNets
from attacks.cerp import CerP, likeness
from attacks.collusion import others
from attacks.snapshot import Snapshot
from attacks.triggers import Painted
from flame.geometry.layout import StateLayout
from flame.round.seeding import generator


def cerp(**changes: Any) -> CerP:
    return replace(CerP(START, 2, None, 0.5, False, 0.5, 5.0, 0.0, 0.0), **changes)


def test_a_step_of_the_trigger_is_the_gradient() -> None:
    """One batch; the slope from difference quotients over 20 grey levels."""
    work = job()
    found = cerp().search(work)[0]
    for i, value in enumerate(found.tolist()):
        ends = torch.full((2, 1, 4), 128.0)
        ends[0, 0, i], ends[1, 0, i] = 118, 138
        slope = (trigger_loss(work.model, work, ends[1]) - trigger_loss(work.model, work, ends[0])) / 20
        assert value - 128 == pytest.approx(-0.5 * 255**2 * slope, rel=0.05)


def test_the_trigger_stays_in_its_ball() -> None:
    found = cerp(lr=50.0, radius=0.1).search(normed_job())
    assert float((found - 128).norm()) == pytest.approx(25.5, rel=1e-4)


def test_without_its_controls_it_is_badnets_with_the_found_trigger() -> None:
    work, plain = normed_job(), normed_job()
    cerp().train(work)
    BadNets(Painted(START, work.notes[CerP.key]), 2, None, 0.5, False).train(plain)
    assert torch.equal(model_row(work), model_row(plain))


def test_it_keeps_near_the_benign_model() -> None:
    distances = []
    for alpha in (0.0, 0.3):
        work = normed_job()
        d, wanted = StateLayout.of(work.model).trainable, honest(work).row
        cerp(alpha=alpha).train(work)
        distances.append(float((model_row(work) - wanted)[:d].norm()))
    assert distances[1] < 0.8 * distances[0]


def test_likeness_by_hand() -> None:
    """Cosines 1 for the weights and -1 for the biases of one layer."""
    model = torch.nn.Linear(2, 2)
    layout = StateLayout.of(model)
    row = torch.cat([3 * model.weight.detach().flatten(), -model.bias.detach()])
    assert float(likeness(model, row, layout).detach()) == pytest.approx(0, abs=1e-6)


def test_colluders_remember_each_other_and_grow_unlike() -> None:
    """Client 5 has two friends; with beta it ends less like them than without."""
    work = normed_job()
    start = Snapshot.of(work.model)
    rows = torch.randn(3, len(start.row), generator=generator(0, "rows"))
    values = torch.full((1, 4), 90.0)
    notes = [{CerP.key: values, "client": torch.tensor(i)} for i in (3, 5, 8)]
    told = cerp().craft(rows, scene(start.layout, notes), generator(0, "craft"))
    assert torch.equal(told.rows, rows) and torch.equal(told.memory[CerP.key], values)
    friends = others(replace(work, memory=told.memory), CerP.key, start.layout.trainable)
    sent = scene(start.layout, notes).state.row + rows
    assert torch.equal(friends, sent[[0, 2], : start.layout.trainable])
    likenesses = []
    for beta in (0.0, 1.0):
        again = normed_job(memory=told.memory)
        cerp(beta=beta).train(again)
        likenesses.append(sum(float(likeness(again.model, f, start.layout).detach()) for f in friends))
    assert likenesses[1] < likenesses[0] - 0.1


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (cerp, "lr", 0.0),
        (cerp, "beta", -1.0),
    ],
)
def test_settings_out_of_range(make: Callable, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"attack\.{key}={value} is out of range"):
        make(**{key: value})
