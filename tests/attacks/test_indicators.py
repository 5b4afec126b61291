"""What 3DFed plants to read the server's answers: where, by hand, and the curvature against a Hessian."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attackers import job, normed_job, recipe
from test_threedfed import LAYOUT
from torch import Tensor

from attacks.indicators import ACCEPTED, CLIPPED, REJECTED, choose, curvature, quiet_layer, read
from attacks.snapshot import Snapshot
from flame.geometry.layout import StateLayout


def test_of_the_quietest_parameters_the_flattest_are_taken() -> None:
    """Two are needed, twenty are looked at: 0 to 19; the flattest of them are 7 and 3, whatever lies beyond."""
    bend = torch.ones(30)
    bend[[3, 7, 25]] = torch.tensor([0.2, 0.1, 0.0])
    assert choose(torch.arange(30.0), bend, 2).tolist() == [7, 3]
    with pytest.raises(ValueError, match=r"indicators=31 .*\[1, 30\]"):
        choose(torch.arange(30.0), bend, 31)


def test_answers_by_hand() -> None:
    """Ten clients, 2 planted: 0.2 arrives of a whole update, 0.1 of a halved one, 0.04 is what others may do."""
    planted = torch.full((4,), 2.0)
    answers = read(torch.tensor([0.2, 0.1, 0.04, 0.0]), planted, 10, 0.25)
    assert answers is not None and answers.tolist() == [ACCEPTED, CLIPPED, REJECTED, REJECTED]
    assert read(torch.tensor([0.2, -0.06, 0, 0]), planted, 10, 0.25) is None
    assert read(torch.tensor([2.2, 0, 0, 0]), planted, 10, 0.25) is None


def test_curvature_is_the_row_sum_of_the_hessian() -> None:
    work = replace(job(), training=recipe(0.1, 0.0, 0.0, 1, 40))
    before, (weight, bias) = Snapshot.of(work.model).row, work.model.parameters()

    def loss(w: Tensor) -> Tensor:
        x = work.normalise(work.images.x).flatten(1)
        return torch.nn.functional.cross_entropy(x @ w.view_as(weight).T + bias, work.images.y)

    hessian = torch.autograd.functional.hessian(loss, weight.detach().flatten())
    torch.testing.assert_close(curvature(work, work.images), hessian.sum(1).abs(), atol=1e-6, rtol=1e-3)
    assert torch.equal(Snapshot.of(work.model).row, before)


def test_indicators_are_in_the_last_convolution() -> None:
    assert quiet_layer(LAYOUT).key == "conv.weight"
    assert quiet_layer(StateLayout.of(normed_job().model)).key == "1.weight"
    assert quiet_layer(StateLayout.of(job().model)).key == "1.weight"  # nothing but a classifier
