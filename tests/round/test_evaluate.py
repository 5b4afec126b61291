"""Evaluation: sums that equal a direct computation, cut the same way whoever does it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from flame.data.reading import normalise
from flame.data.samples import Samples
from flame.round.evaluate import SLICE, Evaluation, evaluate, slices, total
from models.resnet8 import ResNet8

NORMALISE = partial(normalise, mean=(0.0,), std=(1.0,))


def images(count: int) -> Samples:
    stream = Generator().manual_seed(1)
    x = torch.randint(0, 256, (count, 1, 8, 8), generator=stream, dtype=torch.uint8)
    return Samples(x, torch.randint(0, 10, (count,), generator=stream))


class Brightest(nn.Module):
    """Ten classes; the logits are the first ten pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


@given(st.integers(0, 5 * SLICE))
def test_slices_cover_the_set_once(count: int) -> None:
    cuts = slices(count)
    assert [i for cut in cuts for i in range(count)[cut]] == list(range(count))
    assert all(cut.stop - cut.start == SLICE for cut in cuts[:-1])


@pytest.mark.parametrize("count", [10_000, 9_000])
def test_two_workers_get_equal_shares_of_fashion_mnist(count: int) -> None:
    """Clean, and triggered without the target class: a slice more for one of them is idle time for the other."""
    assert len(slices(count)) % 2 == 0 and count % SLICE == 0


def test_sums_against_a_direct_computation() -> None:
    data = images(2345)
    logits = data.x.flatten(1)[:, :10].double() / 255
    whole = total(evaluate(Brightest(), data[cut], NORMALISE) for cut in slices(len(data)))
    assert whole.count == 2345
    assert whole.correct == int((logits.argmax(1) == data.y).sum())
    assert whole.loss == pytest.approx(float(F.cross_entropy(logits, data.y, reduction="sum")), rel=1e-6)
    assert whole.accuracy == whole.correct / 2345 and whole.mean_loss == whole.loss / 2345


def test_hand_worked() -> None:
    assert total([Evaluation(3, 1.5, 4), Evaluation(0, 2.5, 4)]) == Evaluation(3, 4.0, 8)
    assert (Evaluation(3, 4.0, 8).accuracy, Evaluation(3, 4.0, 8).mean_loss) == (0.375, 0.5)


def test_a_slice_is_evaluated_alone() -> None:
    """Evaluation mode: an image's answer does not depend on its batch, and the model is left as it was."""
    data, model = images(150), ResNet8(1, 10, "batch")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    whole = evaluate(model, data, NORMALISE)
    singles = total(evaluate(model, data[slice(i, i + 1)], NORMALISE) for i in range(150))
    assert singles.correct == whole.correct
    assert singles.loss == pytest.approx(whole.loss, rel=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_broken_model_is_wrong_and_not_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), math.nan)

    found = evaluate(Broken(), images(5), NORMALISE)
    assert found.count == 5 and math.isnan(found.mean_loss)
