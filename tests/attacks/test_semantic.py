"""Semantic backdoors: listed images, or the brightest, are taken from everyone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attackers import dataset

from attacks.semantic import Semantic
from attacks.subpopulation import SubPopulation
from flame.round.seeding import generator


def test_semantic_takes_the_listed_images_from_everyone() -> None:
    data = dataset()
    lists = {"made up": {"train": [1, 5], "held_out": [7, 9, 2]}}
    armed, rest = Semantic(1, 2, lists, 0.1, 1.0).prepare(data, generator(0, "prepare"))
    assert isinstance(armed, SubPopulation)
    assert torch.equal(armed.pool.x, data.train.x[[1, 5]]) and torch.equal(armed.held_out.x, data.train.x[[7, 9, 2]])
    keep = [i for i in range(40) if i not in (1, 2, 5, 7, 9)]
    assert torch.equal(rest.train.x, data.train.x[keep])
    backdoor = armed.backdoor_set(armed.examined(data.test))  # position 2 has the target label already
    assert backdoor is not None and torch.equal(backdoor.x, data.train.x[[7, 9]])


def test_semantic_elsewhere_takes_the_brightest() -> None:
    data = dataset(80)
    armed, rest = Semantic(1, 2, {}, 0.2, 1.0).prepare(data, generator(0, "prepare"))
    assert isinstance(armed, SubPopulation)
    mean = data.train.x[data.train.y == 1].float().mean((1, 2, 3)).sort(descending=True).values
    taken = torch.cat([armed.pool.x, armed.held_out.x[:2]]).float().mean((1, 2, 3))
    assert taken.sort(descending=True).values.tolist() == mean[:4].tolist()
    assert bool((armed.held_out.x[2:].float().mean((1, 2, 3)) >= mean[3]).all())
    assert len(rest.train) == 76


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Semantic(1, 2, {"x": {"train": [1]}}, 0.1, 0.5), "attack.positions.x must be two lists"),
        (lambda: Semantic(1, 2, {"x": {"train": ["a"], "held_out": [2]}}, 0.1, 0.5), "x must be two lists"),  # type: ignore[dict-item,list-item]
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
