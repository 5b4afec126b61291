"""Whether a data set is what a run takes, whoever made it: looked at once, before anything else of the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flame.data.samples import UNASKED, Dataset, Holders, Samples

FLOATS = (
    "only if they are in [0, 1] make them with (x * 255).round().to(torch.uint8); dataset.mean and dataset.std do the"
    " rest"
)
NO_NAME = ',"#'  # of CSV, and of those who read it
IMAGES = ((torch.uint8,), "[N, C, H, W]")
TOKENS = ((torch.int16, torch.int32, torch.int64), "[N, T]")
FEATURES = ((torch.float32,), "[N, F]")
SHAPES = {"images": ("channels", "image_size", "image_size"), "tokens": ("length",), "features": ("features",)}
AXES = {"images": "channels, height, width", "tokens": "tokens of a text", "features": "features of a row"}
WHOLE = "convert it with .to(torch.uint8) only if pixels are in [0, 255]"


def checked(made: object, facts: Mapping[str, Any]) -> Dataset:
    """The data set that a `_target_` made, with mean and std as tuples of floats.

    `facts` is its YAML: where that says `classes`, `channels` or `image_size`, from which models are built, the images
    must agree. Nothing is converted: a guess about pixels that is wrong would train, to chance.

    Raises:
        ValueError: it is none, or it does not fit its facts; the sentence names what and the remedy.
    """
    if not isinstance(made, Dataset):
        raise ValueError(
            f"dataset._target_={facts.get('_target_')} gave a {type(made).__name__}: must be flame.data.samples.Dataset"
        )
    if type(made.classes) is not int or made.classes < 2:
        raise ValueError(f"dataset={made.name}: classes={made.classes!r} is out of range: must be a whole number >= 2")
    what, size = _called(made, facts), None if made.vocabulary is None else len(made.vocabulary)
    for part in ("train", "test"):
        check_samples(f"{what}: {part}", getattr(made, part), made.classes, size)
    _check_facts(made, facts)
    if strangers := sorted(_labels(made.test) - _labels(made.train)) if made.train.y.dim() == 1 else []:
        raise ValueError(
            f"{what}: test has the classes {strangers[:10]}, of which train has no image: nobody could"
            " learn them; leave their images out of test"
        )
    mean, std = (_numbers(made, key) for key in ("mean", "std"))
    check_holders(what, made.holders, len(made.train))
    return replace(made, mean=mean, std=std)


def check_samples(what: str, samples: object, classes: int, vocabulary: int | None = None) -> None:
    """A ValueError that begins with `what` unless these are one or more samples with labels in [0, classes).

    They are images, rows of features or, with the size of a `vocabulary`, its tokens (`flame/data/samples.py`).
    """
    if not isinstance(samples, Samples):
        raise ValueError(f"{what} is a {type(samples).__name__}: must be flame.data.samples.Samples")
    x, y = samples.x, samples.y
    kind = IMAGES if vocabulary is None else TOKENS
    if vocabulary is None and isinstance(x, Tensor) and x.dtype == torch.float32 and x.dim() == 2:
        kind = FEATURES
    _check_tensor(f"{what}.x", x, *kind)
    labels = "[N, T]" if vocabulary is not None and isinstance(y, Tensor) and y.dim() == 2 else "[N]"
    _check_tensor(f"{what}.y", y, (torch.int64,), labels)
    if not len(x) == len(y) > 0:
        raise ValueError(f"{what} has {len(x)} samples and {len(y)} labels: must be as many of both, and at least one")
    _check_labels(what, y, classes)
    if kind is FEATURES and (lost := int((~x.isfinite()).sum())):
        raise ValueError(f"{what}.x has {lost} numbers that are NaN or infinite: must be finite; fill or drop them")
    if vocabulary is not None:
        _check_tokens(what, samples, vocabulary)


def _check_tensor(what: str, tensor: object, dtypes: tuple[torch.dtype, ...], dims: str) -> None:
    """Of one of the dtypes, dense, of so many axes, and in the host's memory."""
    wanted = " or ".join(map(str, dtypes))
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{what} is a {type(tensor).__name__}: must be a tensor {dims} of {wanted}")
    if tensor.dtype not in dtypes:
        pixels = FLOATS if tensor.is_floating_point() else WHOLE
        remedy = pixels if dtypes == (torch.uint8,) else f"convert it with .to({dtypes[-1]})"
        raise ValueError(f"{what} is {tensor.dtype}: must be {wanted}; {remedy}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{what} is sparse ({tensor.layout}): must be dense, as .to_dense() gives it")
    if tensor.dim() != dims.count(",") + 1:
        raise ValueError(f"{what} has the shape {tuple(tensor.shape)}: must be {dims}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{what} is on {tensor.device}: must be in the host's memory, as .cpu() gives it")


def _check_labels(what: str, y: Tensor, classes: int) -> None:
    """Classes from 0 on, and something asked of every sample."""
    asked = y[y != UNASKED]
    if silent := int((y.reshape(len(y), -1) == UNASKED).all(1).sum()):
        raise ValueError(f"{what}.y asks nothing of {silent} samples ({UNASKED} is no class): leave them out")
    low, high = int(asked.min()), int(asked.max())
    if low < 0 or high >= classes:
        more = f", and set dataset.classes to at least {high + 1}" if high >= classes else ""
        raise ValueError(
            f"{what}.y has labels in [{low}, {high}], dataset.classes={classes} allows [0, {classes - 1}]: number the"
            f" classes from 0{more}"
        )


def _check_tokens(what: str, samples: Samples, vocabulary: int) -> None:
    """Of the vocabulary, and labels for all of a text or for each token."""
    x, y = samples.x, samples.y
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"{what}.x has tokens in [{low}, {high}] of a vocabulary of {vocabulary}: must be in [0, {vocabulary - 1}]"
        )
    if y.dim() == 2 and y.shape != x.shape:
        raise ValueError(f"{what}.y has the shape {tuple(y.shape)}: must be [N] or that of x, {tuple(x.shape)}")


def check_holders(what: str, holders: object, images: int) -> None:
    """A ValueError that begins with `what` unless these are None, or the holders of so many training images."""
    if holders is None:
        return
    if not isinstance(holders, Holders):
        raise ValueError(f"{what}: holders is a {type(holders).__name__}: must be flame.data.samples.Holders, or None")
    of, names = holders.of, holders.names
    if not isinstance(of, Tensor) or of.dtype != torch.int64 or of.dim() != 1 or of.device.type != "cpu":
        raise ValueError(f"{what}: holders.of must be a tensor [N] of torch.int64 in the host's memory")
    if len(of) != images:
        raise ValueError(
            f"{what}: holders.of has {len(of)} entries for {images} training images: must be one each;"
            " Dataset.narrowed takes images away with their holders"
        )
    check_names(holders.told_by or f"{what}: holders.names", names)
    if images and not 0 <= int(of.min()) <= int(of.max()) < len(names):
        raise ValueError(
            f"{what}: holders.of is in [{int(of.min())}, {int(of.max())}] for {len(names)} names: must be in"
            f" [0, {len(names) - 1}]; number the holders from 0"
        )


def check_names(what: str, names: object) -> None:
    """A ValueError that begins with `what` unless these are distinct names that can stand in a column of a CSV file."""
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} must be a tuple of text, one for each")
    for name in names:
        if not name.strip() or name != name.strip() or not name.isprintable() or set(name) & set(NO_NAME):
            raise ValueError(f"{what} has {name!r}: must be printable text, without the characters {NO_NAME}")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{what} has {twice!r} twice: must be distinct")


def evaluation_sets(dataset: Dataset, backdoor: Samples | None) -> dict[str, Samples]:
    """What every evaluation looks at, once the samples that an attack has had its hands on are looked at here.

    Raises:
        ValueError: as `check_samples`.
    """
    size = None if dataset.vocabulary is None else len(dataset.vocabulary)
    looked_at = {"prepare: train": dataset.train, "prepare: test": dataset.test, "backdoor_set": backdoor}
    for name, samples in looked_at.items():
        if samples is not None:
            check_samples(f"attack.{name}", samples, dataset.classes, size)
    return {"clean": dataset.test} | ({"backdoor": backdoor} if backdoor else {}) | dataset.test.apart()


def _called(dataset: Dataset, facts: Mapping[str, Any]) -> str:
    """The data set, and the file or folder that it is from, where its YAML has one."""
    place = next((f", dataset.{key}={facts[key]}" for key in ("path", "root") if facts.get(key)), "")
    return f"dataset={dataset.name}{place}"


def _check_facts(dataset: Dataset, facts: Mapping[str, Any]) -> None:
    """What the YAML declares, which models are built from, is what the images are."""
    declared = facts.get("classes", dataset.classes)
    if declared != dataset.classes:
        raise ValueError(
            f"dataset.classes={declared} does not fit {dataset.name}, which has {dataset.classes}: set it to that"
        )
    given, shape = SHAPES[dataset.kind], tuple(dataset.train.x.shape[1:])
    facts_of = [facts.get(key) for key in given]
    for part, samples in (("train", dataset.train), ("test", dataset.test)):
        own = tuple(samples.x.shape[1:])
        wanted = tuple(has if fact is None else fact for fact, has in zip(facts_of, own, strict=True))
        if own != wanted or own != shape:
            said = " with ".join(f"dataset.{key}={facts.get(key)}" for key in dict.fromkeys(given))
            raise ValueError(
                f"{said} does not fit {dataset.name}: its {part} {dataset.kind} are {own} ({AXES[dataset.kind]}); set"
                f" {'both keys' if len(given) > 1 else 'it'} to that, on the command line or in its YAML, and give"
                f" train and test the same shape{', of one height and width' if dataset.kind == 'images' else ''}"
            )
    known = dataset.vocabulary and len(dataset.vocabulary)
    if facts.get("tokens", known) != known:
        raise ValueError(
            f"dataset.tokens={facts['tokens']} does not fit {dataset.name}, whose vocabulary has {known}: set it to"
            " that"
        )


def _numbers(dataset: Dataset, key: str) -> tuple[float, ...]:
    """`mean` or `std`: one per channel, of pixels scaled to [0, 1]; one per feature; none of tokens."""
    given, kind = getattr(dataset, key), dataset.kind
    count = 0 if kind == "tokens" else dataset.train.x.shape[1]
    try:
        values = tuple(map(float, given))
    except (TypeError, ValueError):  # null, text
        values = ()
    high = 1 if kind == "images" else math.inf
    low = 0 if key == "std" or kind == "images" else -math.inf
    if len(values) != count or not all(low <= value <= high for value in values) or (key == "std" and 0 in values):
        shape = {
            "images": f"{count} numbers in {'(' if key == 'std' else '['}0, 1], one per channel, of pixels scaled to"
            " [0, 1]",
            "features": f"{count} {'positive ' if key == 'std' else ''}numbers, one per feature",
            "tokens": "(), as tokens are read as they are",
        }
        raise ValueError(f"dataset.{key}={given} is out of range: must be {shape[kind]}")
    return values


def _labels(images: Samples) -> set[int]:
    """The labels that occur."""
    return set(images.y.unique().tolist())
