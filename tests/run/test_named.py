"""A defense by its name is what Hydra makes of the same file, whatever the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flame.defenses.flame import Flame
from flame.defenses.rfa import RFA
from flame.run.build import make
from flame.run.named import composed, named_defense, with_noise
from flame.run.place import CONF

NAMES = sorted(path.stem for path in (CONF / "defense").glob("*.yaml"))


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("name", NAMES)
def test_equals_hydra(name: str) -> None:
    node = compose(f"defense/{name}")
    assert composed(name) == OmegaConf.to_container(node.defense, resolve=False)
    assert named_defense(name, {}) == make(node, "defense")


def test_the_configs_are_those_of_the_checkout() -> None:
    assert Path(__file__).parents[2] / "conf" == CONF


def test_options_reach_a_part_and_choose_another() -> None:
    flame: Any = named_defense("flame_zhmzm", {"cluster": {"min_samples": 2}, "noise": {"factor": 0.5}})
    assert isinstance(flame, Flame) and flame.cluster.min_samples == 2 and flame.noise.level == 0.5
    assert flame.cluster.metric == "euclidean"  # the rest is the preset's
    bucketing: Any = named_defense("bucketing", {"rule": "rfa", "size": 3})
    assert isinstance(bucketing.rule, RFA) and bucketing.size == 3


@pytest.mark.parametrize(
    "name, level, place",
    [("flame_ymir", 0.2, ("noise", "factor")), ("weak_dp", 0.2, ("noise_std",)), ("crfl", 0, ("noise_std",))],
)
def test_noise_has_one_name_for_all_rules(name: str, level: float, place: tuple[str, ...]) -> None:
    value: Any = named_defense(name, {"noise": level})
    for key in place:
        value = getattr(value, key)
    assert value == level


def test_noise_in_the_place_of_epsilon_and_inside_another_rule() -> None:
    private: Any = named_defense("flame_weights_only", {"noise": {"factor": None, "epsilon": 3705, "delta": 0.001}})
    assert private.noise.level == pytest.approx(0.00102, rel=1e-2)
    node = with_noise({"noise": {"factor": None, "epsilon": 1.0, "delta": 0.1}}, 0.5, "x")
    assert node["noise"] == {"factor": 0.5, "epsilon": None, "delta": None}
    inner: Any = named_defense("bucketing", {"rule": "weak_dp", "noise": 0.0})
    assert inner.rule.noise_std == 0


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("flame_weight_only", {}, "defense=flame_weight_only is unknown: did you mean flame_weights_only"),
        ("../model/cnn", {}, "is unknown: must be one of afa, "),
        ("krum", {"malicous_share": 0.1}, "did you mean defense.malicious_share="),
        ("krum", {"keep": "three"}, "defense.keep='three' has the wrong type: must be a whole number or null"),
        ("krum", {"malicious_share": 2.0}, "defense.malicious_share=2.0 is out of range"),
        ("krum", {"noise": 0.1}, "noise=0.1 is out of range: defense=krum adds no noise"),
        ("weak_dp", {"noise": -1.0}, "defense.noise_std=-1.0 is out of range"),
        ("flame_weights_only", {"noise": "little"}, "defense.noise.factor='little' has the wrong type"),
        ("bucketing", {"rule": "krumm"}, "defense=krumm is unknown: did you mean krum"),
        ("krum", {"keep": "${clients}"}, r"defense.keep=\$\{clients\} is known to a run only"),
    ],
)
def test_what_is_wrong_is_said(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        named_defense(name, options)
