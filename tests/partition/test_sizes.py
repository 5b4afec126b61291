"""Unequal clients: every image once, sizes of the laws that are promised, and their mixes those of all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.data.samples import Shards
from flame.partition.sizes import iid_imbalanced, quantity_skew

RULES: dict[str, Callable[..., Shards]] = {
    "dirichlet": partial(quantity_skew, alpha=1.0, exponent=None, min_size=2),
    "power law": partial(quantity_skew, alpha=None, exponent=0.8, min_size=2),
    "log-normal": partial(iid_imbalanced, sigma=0.5, min_size=2),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), images=st.integers(100, 400), clients=st.integers(1, 12))
def test_every_image_once(name: str, seed: int, images: int, clients: int) -> None:
    labels = torch.arange(images) % 3
    shards, again = (RULES[name](labels, clients, generator(seed)) for _ in range(2))
    assert torch.equal(shards.index.sort().values, torch.arange(images))
    assert len(shards) == clients and int(shards.sizes.min()) >= 2
    assert torch.equal(shards.index, again.index) and torch.equal(shards.offsets, again.offsets)


def test_the_power_law_by_hand() -> None:
    """1 : 1/2 : 1/3 of 1,100 images; who is the largest is drawn."""
    orders = set()
    for seed in range(20):
        shards = quantity_skew(torch.zeros(1100).long(), 3, generator(seed), alpha=None, exponent=1.0, min_size=1)
        assert sorted(shards.sizes.tolist()) == [200, 300, 600]
        orders.add(tuple(shards.sizes.tolist()))
    assert len(orders) == 6
    equal = quantity_skew(torch.zeros(40).long(), 4, generator(), alpha=None, exponent=0.0, min_size=1)
    assert equal.sizes.tolist() == [10] * 4


def test_dirichlet_sizes_have_the_variance_of_theory() -> None:
    """A share of Dir(alpha) over n clients has the variance (n - 1) / (n ** 2 * (n * alpha + 1))."""
    labels, n, alpha = torch.zeros(100_000).long(), 5, 0.7
    deal = partial(quantity_skew, labels, n, alpha=alpha, exponent=None, min_size=1)
    shares = torch.stack([deal(generator(seed)).sizes.double() / len(labels) for seed in range(150)])
    theory = (n - 1) / (n**2 * (n * alpha + 1))
    assert float(shares.var(correction=0)) == pytest.approx(theory, rel=0.2)  # 750 shares, their mean is 1 / n


def test_log_normal_sizes_have_the_spread_of_sigma() -> None:
    """The normalisation takes a common summand from all logarithms."""
    sizes = iid_imbalanced(torch.zeros(2_000_000).long(), 1000, generator(), sigma=0.4, min_size=1).sizes
    logs = sizes.double().log()
    assert float(logs.std()) == pytest.approx(0.4, rel=0.08)  # of 1,000: the standard error is 2 %
    z = (logs - logs.mean()) / logs.std()
    assert abs(float((z**3).mean())) < 0.3  # the logarithm is symmetric
    assert iid_imbalanced(torch.zeros(40).long(), 4, generator(), sigma=0.0, min_size=1).sizes.tolist() == [10] * 4


def test_labels_do_not_matter() -> None:
    deal = partial(RULES["dirichlet"], clients=4)
    assert torch.equal(
        deal(torch.zeros(200).long(), generator=generator()).index,
        deal(torch.arange(200) % 9, generator=generator()).index,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": None}, r"partition\.alpha=None with partition\.exponent=None: set one of them"),
        ({"exponent": 1.0}, r"partition\.alpha=0\.5 with partition\.exponent=1\.0: set one of them"),
        (
            {"alpha": 1e-4},
            r"min_size=10 was not reached in 1000 draws with partition\.alpha=0\.0001.*raise part",
        ),
        ({"alpha": None, "exponent": 9.0}, r"not reached .* partition\.exponent=9\.0.*: lower partition\.exponent"),
        ({"min_size": 40}, r"clients=4 with at least 40 samples each need 160 of N=100 samples"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"alpha": 0.5, "exponent": None, "min_size": 10, **changes}
    with pytest.raises(ValueError, match=message):
        quantity_skew(torch.zeros(100).long(), 4, generator(), **settings)
