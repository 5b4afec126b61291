"""A model tried on two images before a run, so that what fails there is said with the layer's name and a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from flame.geometry.layout import StateLayout

SHRUNK = (
    "the image has shrunk too far there: take larger images (dataset.image_size), or a model with fewer strides and"
)
SHRUNK += " poolings (model=torchvision: model.stem=small)"
REMEDIES = (  # what torch says -> what helps
    (r"more than 1 (spatial element|value)", f"{SHRUNK}, or another norm"),
    (r"too small|can't be greater than|larger than|non-empty|padding size should be less", SHRUNK),
    (r"to have \d+ channels", "its number of inputs must be ${{dataset.channels}}, here {channels}"),
    (r"cannot be multiplied|same reduction dim", "its number of inputs must follow dataset.channels and image_size"),
    (r"positional argument", "forward must take a batch of images and nothing else"),
    (r"'indices'", "it reads tokens, and these are none: take a model of images, such as model=cnn"),
    (r"index out of range", "its number of tokens must be ${{dataset.tokens}}"),
    (r"dtype|[Ss]calar type|Expected .*conv", "{reads}"),
)
FLOAT = "images are float32, and so must its tensors be"
TOKENS = "these are tokens: take a model of tokens, such as model=lstm"
ALONE = (
    "Set client.batch_size >= 2, a partition that gives every client at least two images, and a defense's"
    " root_samples >= 2; or take a model whose norms do not need other images, such as GroupNorm"
)


def check_module(model: object, target: str) -> nn.Module:
    """The model; ValueError unless it is one whose state a row can hold."""
    if isinstance(model, nn.Module):
        StateLayout.of(model)
        return model
    kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    raise ValueError(f"model._target_={target} gave {kind}: must be a torch.nn.Module")


@torch.random.fork_rng(devices=[])
@torch.inference_mode()
def check_samples(model: nn.Module, x: Tensor, answer: tuple[int, ...], smallest_batch: int, of: str) -> None:
    """ValueError unless the model turns samples into finite logits and trains on the smallest batch.

    `x` [2, ...], as a model reads it; `answer` is the shape of a sample's logits, (classes,) or (classes, T); `of` says
    whose samples they are. BatchNorm refuses to train on a single value per channel: one image, once the strides have
    shrunk it to a pixel.
    """
    images = f"{'images' if x.dim() == 4 else 'samples'} of {of}"
    unfit = f"model does not fit the {images}, {tuple(x.shape[1:])}"
    tested = _attempt(model.eval(), x, unfit)
    learner = _copy(model).train()
    trained = _attempt(learner, x, f"{unfit}, in training")
    if smallest_batch == 1:
        _attempt(learner, x[:1], f"model cannot train on a batch of 1 image(s) of {of}", ALONE)
    for given, when in ((tested, ""), (trained, " in training")):
        if not isinstance(given, Tensor):
            raise ValueError(
                f"model gives a {type(given).__name__} for {images}{when}: must be a tensor of logits [B, classes];"
                " switch further outputs off (such as aux_logits)"
            )
        if given.shape != (wanted := (len(x), *answer)):
            raise ValueError(
                f"model gives {tuple(given.shape)} for {len(x)} {images}{when}: must be {wanted}; its number of outputs"
                " must follow the data, as by `num_classes: ${dataset.classes}` in its YAML"
            )
        _check_finite(given, f"model={type(model).__name__}", f"{len(x)} {images}{when}")


def _check_finite(logits: Tensor, model: str, images: str) -> None:
    """ValueError if a logit is NaN or infinite: training would lose every round."""
    if lost := int((~logits.isfinite()).sum()):
        kind = "NaN or infinite" if logits.isinf().any() else "NaN"
        raise ValueError(
            f"{model}: {lost} of {logits.numel()} logits are {kind} for {images}: must be finite. Look in its forward"
            " for a division by 0, a log or root of 0 or less, an exp without bound, and at its initial weights"
        )


def _attempt(model: nn.Module, x: Tensor, said: str, remedy: str = "") -> object:
    """What the model answers; a ValueError with the layer that failed, why, and what helps."""
    with entered(model) as layers:
        try:
            return model(x)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:  # what torch says of shapes and types
            reason = str(error).strip().partition("\n")[0]
            where = f"layer {layers[-1]}" if layers else "the model's own forward"
            known = (advice for pattern, advice in REMEDIES if re.search(pattern, reason))
            remedy = remedy or next(known, "").format(
                channels=x.shape[1], reads=FLOAT if x.is_floating_point() else TOKENS
            )
            raise ValueError(f"{said}: {where}: {reason}{remedy and f'. {remedy[0].upper()}{remedy[1:]}'}") from error


@contextmanager
def entered(model: nn.Module) -> Iterator[list[str]]:
    """The layers that a forward pass is in, from the outside in, as `features.0.1 (BatchNorm2d)`; without the model."""
    inside: list[str] = []
    handles = []
    for name, module in model.named_modules():
        label = f"{name} ({type(module).__name__})"
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, label=label: inside.append(label)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


def _copy(model: nn.Module) -> nn.Module:
    """A copy, as every process that trains makes one."""
    try:
        with torch.inference_mode(False):
            return deepcopy(model)
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"model={type(model).__name__} cannot be copied ({reason}): must keep nothing but modules, parameters,"
            " buffers, functions and plain values (no open file, lock or connection)"
        ) from error
