"""Neurotoxin: the projection onto what benign clients leave alone, by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import LAYOUT, PLAIN, normed_job, recipe, scene, vector
from hypothesis import given
from hypothesis import strategies as st

from attacks.neurotoxin import SEEN, Neurotoxin, bottom, clean_gradient
from attacks.snapshot import Snapshot
from flame.round.client import cross_entropy
from flame.round.seeding import generator


def test_bottom_by_hand() -> None:
    assert bottom(torch.tensor([3.0, 1, 2, 1, 5]), 0.4).tolist() == [False, True, False, True, False]
    assert bottom(torch.tensor([1.0, 1, 1]), 0.67).tolist() == [True, True, False]


@given(d=st.integers(1, 60), ratio=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_bottom_holds_the_smallest(d: int, ratio: float, seed: int) -> None:
    magnitude = torch.rand(d, generator=generator(seed, "moves"))
    keep = bottom(magnitude, ratio)
    assert int(keep.sum()) == round(ratio * d)
    if 0 < int(keep.sum()) < d:
        assert float(magnitude[keep].max()) <= float(magnitude[~keep].min())


def test_only_what_benign_clients_left_alone_moves() -> None:
    work = normed_job()
    start = Snapshot.of(work.model)
    d = start.layout.trainable
    step = torch.rand(d, generator=generator(0, "step")) - 0.5
    work = replace(work, memory={SEEN: start.row[:d] - step})
    Neurotoxin(PLAIN, 0.7, "update").train(work)
    change = (Snapshot.of(work.model).row - start.row)[:d] != 0
    largest = step.abs().argsort(descending=True)[: d - round(0.7 * d)]
    assert not bool(change[largest].any()) and int(change.sum()) > 0.5 * d


def test_with_all_coordinates_it_is_the_inner_attack() -> None:
    one, other = normed_job(), normed_job()
    Neurotoxin(PLAIN, 1.0, "gradient").train(one)
    PLAIN.train(other)
    assert torch.equal(Snapshot.of(one.model).row, Snapshot.of(other.model).row)


def test_a_first_round_looks_at_the_own_gradient() -> None:
    """One batch of all images: the gradient of the benign loss, in the layout's order; nothing is moved by looking."""
    work = replace(normed_job(), training=recipe(0.1, 0.0, 0.0, 1, 40))
    start = Snapshot.of(work.model)
    got = clean_gradient(work, start)
    after = Snapshot.of(work.model)
    assert torch.equal(after.row, start.row) and torch.equal(after.counters, start.counters)
    model = deepcopy(work.model).train()
    cross_entropy(model, work.normalise(work.images.x), work.images.y).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    wanted = torch.cat([gradients[e.key].flatten() for e in start.layout.entries if e.stop <= len(got)])
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
    update, gradient = (deepcopy(work) for _ in range(2))
    Neurotoxin(PLAIN, 0.5, "update").train(update)
    Neurotoxin(PLAIN, 0.5, "gradient").train(gradient)
    assert torch.equal(vector(update.model), vector(gradient.model))


def test_the_global_model_is_remembered() -> None:
    rows, around = torch.randn(2, 6, generator=generator(0, "rows")), scene(LAYOUT, [{}, {}])
    crafted = Neurotoxin(PLAIN, 0.5, "update").craft(rows, around, generator(0, "craft"))
    assert torch.equal(crafted.rows, rows) and torch.equal(crafted.memory[SEEN], around.state.row[:4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neurotoxin(PLAIN, 0.0, "update"), r"attack.ratio=0.0 .* in \(0, 1\]"),
        (lambda: Neurotoxin(PLAIN, 0.5, "weights"), "attack.observe='weights' .* one of update, gradient"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
