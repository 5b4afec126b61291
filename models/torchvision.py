"""torchvision's classification models by name, with a head for the data set's classes and a stem for its images.

Whatever torchvision.models.list_models(module=torchvision.models) lists. Keys of the state_dict stay torchvision's.
Nothing is downloaded: weights are random or come from a file.

Deviations from torchvision:
* The first convolution takes `in_channels`. If they are not 3, or the stem is small, it is a new one, at He's scale by
  outputs, as torchvision has it in most of its models; without 3 channels it cannot take a file's weights.
* `stem=small` is the usual change for images of 32 pixels: the first convolution has stride 1 and a kernel of at most
  3 x 3, and a max pooling right behind it is left out. Models that cut patches (ViT, Swin, ConvNeXt) have no such stem.
* Inception and GoogLeNet have no auxiliary heads, which answer in training alone.
"""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from models.weights import Weights, read_state_dict

STEMS = ("imagenet", "small")
log = logging.getLogger(__name__)


def by_name(
    name: str, in_channels: int, num_classes: int, image_size: int, stem: str, weights: str | None
) -> nn.Module:
    """[B, in_channels, image_size, image_size] normalised images -> [B, num_classes] logits.

    `weights`: None, or a file with a state_dict of this model (.pt, .pth, .safetensors). Its head and its first
    convolution are left out where their shapes differ; all else must fit.

    Raises:
        ValueError: there is no such model, it does not take images of this size, or the file does not fit it.
    """
    known = list_models(module=torchvision.models)
    if name not in known:
        meant = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or ["mobilenet_v3_small", "resnet18"]
        raise ValueError(
            f"model.name={name} is unknown: must be a classification model of torchvision {torchvision.__version__},"
            f" such as {', '.join(meant)}"
        )
    if stem not in STEMS:
        raise ValueError(f"model.stem={stem} is unknown: must be one of {', '.join(STEMS)}")
    try:
        model = get_model(name, weights=None, num_classes=num_classes, **_options(name, image_size))
    except (ValueError, AssertionError) as error:  # ViT and MaxViT are built for one size
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"dataset.image_size={image_size} does not fit model.name={name} ({reason}): must be a multiple of its"
            f" {'patch' if name.startswith('vit_') else 'grid'}, such as 224; vit_tiny takes small images"
        ) from error
    _fit_stem(model, name, in_channels, stem)
    if weights is not None:
        _load(model, Path(weights).expanduser())
    return model


def _options(name: str, size: int) -> dict[str, Any]:
    """What some builders want to know beside the number of classes."""
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit_"):
        return {"input_size": (size, size)}
    return {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _fit_stem(model: nn.Module, name: str, channels: int, stem: str) -> None:
    """Put another first convolution into the model if the channels or the stem ask for it."""
    place, first = _first_convolution(model)
    kernel, stride, padding = first.kernel_size[0], first.stride[0], first.padding[0]  # square, all of them
    if stem == "small":
        if stride == 1 or kernel == stride:
            begins = "a stride of 1" if stride == 1 else f"patches of {stride} x {stride}"
            raise ValueError(f"model.stem=small: {name} begins with {begins}, which it leaves alone: must be imagenet")
        kernel, stride, padding = 3, 1, 1
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
        if isinstance(layers[1][1], nn.MaxPool2d):
            _put(model, layers[1][0], nn.Identity())
    elif channels == first.in_channels:
        return
    new = nn.Conv2d(channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    _put(model, place, new)


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def _put(model: nn.Module, place: str, module: nn.Module) -> None:
    parent, _, name = place.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@torch.no_grad()
def _load(model: nn.Module, path: Path) -> None:
    """Copy a file's weights into the model; auxiliary heads in it are passed over, missing counters stay 0."""
    given, _ = read_state_dict(path, "model.weights")
    own = model.state_dict()  # live tensors
    _check(own, given, path, free={_first_convolution(model)[0], list(own)[-1].rpartition(".")[0]})
    kept = [key for key, tensor in own.items() if key not in given or given[key].shape != tensor.shape]
    for key in own.keys() - kept:
        own[key].copy_(given[key])
    log.info("model.weights=%s: %s keep their initialisation", path, ", ".join(kept) or "none of the weights")


def _check(own: Weights, given: Weights, path: Path, free: set[str]) -> None:
    """ValueError unless a file's tensors are the model's, but for the shapes of the layers in `free`."""

    def fits(key: str, tensor: Tensor) -> bool:
        if key not in given:
            return key.endswith("num_batches_tracked")
        alike = given[key].is_floating_point() == tensor.is_floating_point() and not given[key].is_complex()
        return alike and (given[key].shape == tensor.shape or key.rpartition(".")[0] in free)

    wrong = [key for key, tensor in own.items() if not fits(key, tensor)]
    wrong += [key for key in given if key not in own and not key.lower().startswith("aux")]
    if wrong:
        raise ValueError(
            f"model.weights={path} does not fit model.name: {', '.join(wrong[:5])} is missing, unexpected or misshapen"
            " there; must be what torch.save(MODEL.state_dict(), path) writes for that model of torchvision"
        )
    if broken := [key for key in own.keys() & given.keys() if not bool(given[key].float().isfinite().all())]:
        raise ValueError(f"model.weights={path} is not finite in {sorted(broken)[0]}: take another file")
