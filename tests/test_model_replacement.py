"""Model replacement: what is left of the average."""

from __future__ import annotations

import torch
from attackers import LAYOUT, PLAIN, scene

from attacks.model_replacement import ModelReplacement
from attacks.scaling import Scaling
from flame.seeding import generator


def test_replacement_replaces_the_average() -> None:
    """Three benign clients that send nothing and one attacker: the mean is the attacker's update."""
    rows = torch.tensor([[1.0, -2, 3, 4, 5, -6]])
    attack = ModelReplacement(PLAIN, Scaling(None, None, "all_state"))
    crafted = attack.craft(rows, scene(LAYOUT, [], 4), generator(0, "craft")).rows
    assert torch.equal(torch.cat([crafted, torch.zeros(3, 6)]).mean(0), rows[0])
