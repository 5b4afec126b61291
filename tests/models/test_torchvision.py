"""torchvision's models by name: heads, stems, files; on torch's device meta wherever no number is asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import list_models, mobilenet_v3_small, squeezenet1_1

from flame.geometry.layout import StateLayout
from models.torchvision import by_name

SPECIAL = ("googlenet", "mobilenet_v3_small", "squeezenet1_1", "vit_b_32")  # the rest is slow
REST = [name for name in list_models(module=torchvision.models) if not name.startswith(("regnet", *SPECIAL))]
FIRST = {"resnet18": "conv1", "densenet121": "features.conv0", "mobilenet_v3_small": "features.0.0"}
FIRST |= {"googlenet": "conv1.conv"}
POOL = {"resnet18": "maxpool", "densenet121": "features.pool0", "googlenet": "maxpool1"}


def hollow(name: str, channels: int = 1, size: int = 32, stem: str = "imagenet") -> nn.Module:
    with torch.device("meta"):
        return by_name(name, channels, 7, size, stem, None)


@pytest.mark.parametrize("name", [*SPECIAL, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_every_family_takes_its_classes_and_channels(name: str) -> None:
    """At torchvision's own size, in training as well; the head is the last block. RegNet cannot be made on meta."""
    model, x = hollow(name, size=224), torch.empty(2, 1, 224, 224, device="meta")
    for training in (True, False):
        assert model.train(training)(x).shape == (2, 7)
    heads = [e for e in StateLayout.of(model).entries if e.block == "head"]
    assert {e.shape[0] for e in heads} == {7}


def test_with_three_channels_and_its_own_stem_a_model_is_torchvision_s() -> None:
    theirs = by_name("squeezenet1_1", 3, 7, 64, "imagenet", None)
    own = squeezenet1_1(num_classes=7)
    assert repr(theirs) == repr(own) and list(theirs.state_dict()) == list(own.state_dict())


@pytest.mark.parametrize("name", FIRST)
def test_a_small_stem_keeps_the_size(name: str) -> None:
    model = hollow(name, stem="small")
    first = model.get_submodule(FIRST[name])
    assert (first.kernel_size, first.stride, first.padding, first.in_channels) == ((3, 3), (1, 1), (1, 1), 1)
    if name in POOL:
        assert isinstance(model.get_submodule(POOL[name]), nn.Identity)
        assert isinstance(hollow(name).get_submodule(POOL[name]), nn.MaxPool2d)


def test_a_new_first_convolution_has_he_s_scale() -> None:
    """std sqrt(2 / (outputs * kernel)), of 64 * 1 * 3 * 3 = 576 numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = by_name("resnet18", 1, 2, 32, "small", None).get_parameter("conv1.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "size", "stem", "said"),
    [
        ("mobilenet", 32, "imagenet", r"model.name=mobilenet is unknown: .*mobilenet_v2"),
        ("x", 32, "imagenet", r"model.name=x is unknown: .*such as mobilenet_v3_small, resnet18"),
        ("resnet18", 32, "tiny", r"model.stem=tiny is unknown: must be one of imagenet, small"),
        ("swin_t", 32, "small", r"model.stem=small: swin_t begins with patches of 4 x 4, .* must be imagenet"),
        ("vgg11", 32, "small", r"model.stem=small: vgg11 begins with a stride of 1"),
        ("vit_b_16", 28, "imagenet", r"dataset.image_size=28 does not fit model.name=vit_b_16 .*multiple of its patch"),
        ("maxvit_t", 32, "imagenet", r"dataset.image_size=32 does not fit model.name=maxvit_t .*such as 224"),
    ],
)
def test_what_cannot_be_is_said(name: str, size: int, stem: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hollow(name, size=size, stem=stem)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of squeezenet for five classes: small, without counters."""
    return squeezenet1_1(num_classes=5).state_dict()


def loaded(path: Path, classes: int = 5, channels: int = 3) -> dict[str, Tensor]:
    return by_name("squeezenet1_1", channels, classes, 32, "imagenet", str(path)).state_dict()


def test_weights_come_from_a_file(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": weights}, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        found = loaded(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_head_and_stem_may_differ(weights: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(weights, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO):
        found = loaded(tmp_path / "a.pt", classes=3, channels=1)
    kept = {"features.0.weight", "classifier.1.weight", "classifier.1.bias"}
    assert {key for key, value in weights.items() if not torch.equal(found[key], value)} == kept
    assert "features.0.weight, classifier.1.weight, classifier.1.bias keep their initialisation" in caplog.text


def test_a_file_without_counters_and_with_auxiliary_heads_is_taken(tmp_path: Path) -> None:
    state = mobilenet_v3_small(num_classes=2).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save({**old, "aux1.fc.weight": torch.zeros(2)}, tmp_path / "a.pt")
    found = by_name("mobilenet_v3_small", 3, 2, 32, "imagenet", str(tmp_path / "a.pt")).state_dict()
    assert all(torch.equal(found[key], value) for key, value in old.items())


def test_files_that_do_not_fit(weights: dict[str, Tensor], tmp_path: Path) -> None:
    odd = weights["features.3.squeeze.weight"]
    for change, said in [
        ({"features.3.squeeze.weight": odd[:2]}, r"model.weights=.* does not fit .*: features.3.squeeze.weight is"),
        ({"features.3.squeeze.weight": odd.to(torch.complex64)}, r"does not fit .*: features.3.squeeze.weight is"),
        ({"more.weight": odd}, r"more.weight is missing, unexpected or misshapen"),
        ({"features.3.squeeze.bias": torch.full((16,), torch.nan)}, r"is not finite in features.3.squeeze.bias"),
    ]:
        torch.save({**weights, **change}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=said):
            loaded(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"model.weights=.*none.pt: there is no such file"):
        loaded(tmp_path / "none.pt")
    (tmp_path / "b.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model.weights=.* is not a whole safetensors file"):
        loaded(tmp_path / "b.safetensors")
