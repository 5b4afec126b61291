"""Model replacement: what is left of the average; and its opposite, an update that is shortened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attackers import LAYOUT, PLAIN, scene
from omegaconf import DictConfig

from attacks.model_replacement import ModelReplacement
from attacks.scaling import Scaling
from flame.round.seeding import generator
from flame.run.build import make


def test_replacement_replaces_the_average() -> None:
    """Three benign clients that send nothing and one attacker: the mean is the attacker's update."""
    rows = torch.tensor([[1.0, -2, 3, 4, 5, -6]])
    attack = ModelReplacement(PLAIN, Scaling(None, None, "all_state"))
    crafted = attack.craft(rows, scene(LAYOUT, [], 4), generator(0, "craft")).rows
    assert torch.equal(torch.cat([crafted, torch.zeros(3, 6)]).mean(0), rows[0])


@pytest.mark.parametrize(
    ("option", "sent"),
    [
        ("shrunk", [1, -2, 3, 4, 5, -6]),
        ("shrunk_weights", [1, -2, 3, 4, 20, -24]),
        ("shrunk_forged", [1, -2, 3, 4, 20, -24]),
    ],
)
def test_a_quarter_of_an_update(compose: Callable[..., DictConfig], option: str, sent: list[float]) -> None:
    """The last two columns are BatchNorm's running mean and variance."""
    attack = make(compose(f"attack={option}"), "attack")
    rows = torch.tensor([[4.0, -8, 12, 16, 20, -24]])
    assert attack.craft(rows, scene(LAYOUT, [], 4), generator(0, "craft")).rows.tolist() == [sent]
