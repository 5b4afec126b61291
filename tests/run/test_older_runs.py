"""Configs that older versions have recorded, in today's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flame.run.build import make
from flame.run.older import modern
from flame.run.record import read_config

SGD = {"_target_": "flame.client.LocalSGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "epochs": 1}
RECIPE = {
    "_target_": "flame.round.client.LocalTraining",
    "lr": 0.05,
    "optimizer": {"_target_": "flame.round.optimizers.SGD", "momentum": 0.9, "weight_decay": 0.0},
    "epochs": 1,
}


@pytest.mark.parametrize(
    ("older", "today"),
    [
        ({"epochs": 2}, {"client": {"epochs": 2}}),
        ({"epochs": None, "local_lr": None}, {"client": {"epochs": 1, "lr": 0.05}}),
        ({"backdoor": {"epochs": 3, "local_lr": 0.1}}, {"backdoor": {"client": {"epochs": 3, "lr": 0.1}}}),
        ({"lr": 0.025, "fit_epochs": 3}, {"lr": 0.025, "fit_epochs": 3}),
        ({"rival": SGD, "epochs": None}, {"rival": RECIPE, "client": {"epochs": 1}}),
        ({"sgd": SGD}, {"client": RECIPE}),
        ({"client": {"epochs": 2}}, {"client": {"epochs": 2}}),
    ],
)
def test_an_attackers_training_is_found(older: dict[str, Any], today: dict[str, Any]) -> None:
    assert modern({"seed": 1, "client": SGD, "attack": older}) == {"seed": 1, "client": RECIPE, "attack": today}
    assert modern({"seed": 1, "client": RECIPE, "attack": today})["attack"] == today


def test_what_is_no_config_is_left() -> None:
    assert modern({"seed": 1}) == {"seed": 1} and modern({"attack": "x"}) == {"attack": "x"}


def test_an_older_attack_is_made_from_its_file(tmp_path: Path) -> None:
    """As the report does, to deal a recorded run's images again."""
    trigger = {"_target_": "attacks.triggers.Square", "size": 2, "row": 0, "column": 0, "value": 255}
    badnets = {"_target_": "attacks.badnets.BadNets", "trigger": trigger, "target_class": 5, "source_class": None}
    older = {**badnets, "poisoned_data_rate": 0.5, "append": False, "epochs": 2, "local_lr": 0.1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"client": SGD, "attack": older}))
    assert make(read_config(tmp_path / "config.yaml"), "attack").poisoned_data_rate == 0.5
