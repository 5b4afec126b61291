"""Whoever made the data: what a run cannot take is refused in words, and nothing is normalised in place."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from attacks.badnets import BadNets
from flame.data.check import checked
from flame.data.datasets import digits
from flame.data.reading import normalise
from flame.data.samples import Dataset, Samples
from flame.run.build import ConfigError, build, make

FACTS = {"classes": 3, "channels": 1, "image_size": 4}
SEEN = torch.tensor([0, 1, 2, 0, 1, 2])


def pixels(count: int) -> torch.Tensor:
    return torch.arange(count * 16, dtype=torch.uint8).view(count, 1, 4, 4)


def good(**changes: Any) -> Dataset:
    train, test = Samples(pixels(6), SEEN), Samples(pixels(2), SEEN[:2])
    return replace(Dataset("mine", train, test, (0.5,), (0.25,), 3), **changes)


def images(x: Any = None, y: Any = None) -> Samples:
    return Samples(pixels(6) if x is None else x, SEEN if y is None else y)


def test_what_fits_passes_as_it_is_with_facts_as_tuples() -> None:
    made = good(mean=[0], std=torch.tensor([1.0]))
    found = checked(made, FACTS)
    assert (found.mean, found.std) == ((0.0,), (1.0,))
    assert found.train is made.train and found.test is made.test
    assert checked(made, {}).classes == 3  # a YAML that declares nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": images(x=pixels(6) / 255)},
            r"mine: train\.x is torch\.float32: must be torch\.uint8; only if they are in \[0, 1\]",
        ),
        ({"test": images(x=pixels(6).double())}, r"mine: test\.x is torch\.float64: must be torch\.uint8"),
        ({"train": images(x=pixels(6).int())}, r"train\.x is torch\.int32: .* only if pixels are in \[0, 255\]"),
        ({"train": images(x=pixels(6).to_sparse())}, r"train\.x is sparse \(torch\.sparse_coo\): must be dense"),
        ({"test": images(y=SEEN.to_sparse())}, r"test\.y is sparse"),
        ({"train": images(x=pixels(6).numpy())}, r"train\.x is a ndarray: must be a tensor \[N, C, H, W\]"),
        ({"train": (pixels(6), SEEN)}, r"mine: train is a tuple: must be flame\.data\.samples\.Samples"),
        ({"train": images(x=pixels(6)[:, 0])}, r"train\.x has the shape \(6, 4, 4\): must be \[N, C, H, W\]"),
        ({"train": images(x=pixels(6).to("meta"))}, r"train\.x is on meta: must be in the host's memory"),
        ({"train": images(y=SEEN.int())}, r"train\.y is torch\.int32: must be torch\.int64; .*\.to\(torch\.int64\)"),
        (
            {"train": images(y=SEEN.float())},
            r"train\.y is torch\.float32: must be torch\.int64; .*\.to",
        ),
        ({"train": images(y=SEEN[:, None])}, r"train\.y has the shape \(6, 1\): must be \[N\]"),
        ({"train": images(y=SEEN[:5])}, r"train has 6 samples and 5 labels"),
        ({"test": images(x=pixels(0), y=SEEN[:0])}, r"test has 0 samples and 0 labels: .* at least one"),
        ({"train": images(y=SEEN + 1)}, r"labels in \[1, 3\], dataset\.classes=3 allows \[0, 2\]: .*at least 4"),
        ({"train": images(y=SEEN - 1)}, r"labels in \[-1, 1\], dataset\.classes=3 allows \[0, 2\]: number .* 0$"),
        ({"train": images(y=SEEN % 2), "test": images()}, r"test has the classes \[2\], of which train has no image"),
        (
            {"train": images(x=pixels(18).view(6, 3, 4, 4))},
            r"dataset\.channels=1 .* its train images are \(3, 4, 4\).*on the command line",
        ),
        ({"test": images(x=pixels(6)[..., :2])}, r"dataset\.image_size=4 .* its test images are \(1, 4, 2\)"),
        ({"classes": 4}, r"dataset\.classes=3 does not fit mine, which has 4"),
        ({"mean": (0.5, 0.5)}, r"dataset\.mean=\(0\.5, 0\.5\) is out of range: must be 1 numbers in \[0, 1\]"),
        ({"mean": (127.5,)}, r"dataset\.mean=.* of pixels scaled to \[0, 1\]"),
        ({"mean": (float("nan"),)}, r"dataset\.mean=\(nan,\) is out of range"),
        ({"mean": None}, r"dataset\.mean=None is out of range"),
        ({"std": (0.0,)}, r"dataset\.std=\(0\.0,\) is out of range: must be 1 numbers in \(0, 1\]"),
        ({"std": (-0.25,)}, r"dataset\.std"),
        ({"std": (float("nan"),)}, r"dataset\.std"),
        ({"std": (63.75,)}, r"dataset\.std"),
        ({"std": ()}, r"dataset\.std"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(good(**changes), FACTS)


@pytest.mark.parametrize("classes", [10.0, "10", None, 1, 0, True])
def test_classes_are_counted(classes: Any) -> None:
    with pytest.raises(ValueError, match=rf"dataset=mine: classes={classes!r} is out of range: must be a whole number"):
        checked(good(classes=classes), {})


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"channels": 3}, r"dataset\.channels=3 with dataset\.image_size=4 does not fit mine: its train images"),
        ({"image_size": 28}, r"dataset\.channels=1 with dataset\.image_size=28 does not fit mine"),
        ({"classes": 9}, r"dataset\.classes=9 does not fit mine, which has 3"),
    ],
)
def test_what_the_yaml_declares_is_what_the_images_are(declared: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(good(), FACTS | declared)


def test_shapes_agree_where_nothing_is_declared() -> None:
    with pytest.raises(ValueError, match=r"its test images are \(1, 4, 2\).*train and test the same shape"):
        checked(good(test=images(x=pixels(6)[..., :2])), {})


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., DictConfig]) -> Callable[[object], DictConfig]:
    """`mine(made)`: the tiny run on what a function of the user's own, in a module of theirs, gives."""

    def config(made: object) -> DictConfig:
        module = types.ModuleType("users_data")
        module.load = lambda classes, channels, image_size: made  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "users_data", module)
        cfg = tiny().copy()
        cfg.dataset = {"_target_": "users_data.load", "classes": 10, "channels": 1, "image_size": 8}
        return cfg

    return config


def own(change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Dataset:
    """The digits as a user might hand them over."""
    made = digits([0.3], [0.4], 10, 1, 8)
    train, test = (Samples(change(part.x), part.y) for part in (made.train, made.test))
    return Dataset("mine", train, test, made.mean, made.std, 10)


def test_a_function_of_the_user_s_own_is_checked_before_the_run(mine: Callable[[object], DictConfig]) -> None:
    build(mine(own()))
    floats = own(lambda x: x / 255)
    before = floats.test.x.clone()
    with pytest.raises(ConfigError, match=r"dataset=mine: train\.x is torch\.float32: must be torch\.uint8"):
        build(mine(floats))
    assert torch.equal(floats.test.x, before)
    with pytest.raises(ConfigError, match=r"dataset\._target_=users_data\.load gave a tuple: must be .*Dataset"):
        build(mine((1, 2)))


def test_images_of_an_attack_are_checked(tiny: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BadNets, "stamp", lambda self, x: x / 255)
    with pytest.raises(ConfigError, match=r"attack\.backdoor_set\.x is torch\.float32: must be torch\.uint8"):
        build(tiny())


def test_floats_are_not_normalised_let_alone_in_place() -> None:
    x = torch.full((2, 1, 4, 4), 0.5)
    with pytest.raises(TypeError, match=r"images are torch\.float32: must be torch\.uint8"):
        normalise(x, (0.5,), (0.25,))
    assert bool((x == 0.5).all())


def test_stored_pixels_stay_as_they_are() -> None:
    x = pixels(3)
    before = x.clone()
    normalise(x, (0.5,), (0.25,))
    assert torch.equal(x, before)


def facts_of(cfg: DictConfig) -> Mapping[str, Any]:
    return {str(key): value for key, value in cfg.dataset.items()}


def test_ours_pass(tiny: Callable[..., DictConfig]) -> None:
    assert checked(digits([0.3], [0.4], 10, 1, 8), facts_of(tiny())).classes == 10


def test_null_for_a_list_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("users_data")
    module.load = lambda mean: tuple(mean)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_data", module)
    part = OmegaConf.create({"dataset": {"_target_": "users_data.load", "mean": None}})
    with pytest.raises(ConfigError, match=r"^dataset: .* wrong type, .*'NoneType' .* its YAML says what it takes$"):
        make(part, "dataset")
