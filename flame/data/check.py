"""Whether a data set is what a run takes, whoever made it: looked at once, before anything else of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flame.data.samples import Dataset, Holders, LabelledImages

FLOATS = (
    "only if they are in [0, 1] make them with (x * 255).round().to(torch.uint8); dataset.mean and dataset.std do the"
    " rest"
)
NO_NAME = ',"#'  # of CSV, and of those who read it
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
    what = _called(made, facts)
    for part in ("train", "test"):
        check_images(f"{what}: {part}", getattr(made, part), made.classes)
    _check_facts(made, facts)
    if strangers := sorted(_labels(made.test) - _labels(made.train)):
        raise ValueError(
            f"{what}: test has the classes {strangers[:10]}, of which train has no image: nobody could"
            " learn them; leave their images out of test"
        )
    channels = made.train.x.shape[1]
    mean, std = (_numbers(made, key, channels) for key in ("mean", "std"))
    check_holders(what, made.holders, len(made.train))
    return replace(made, mean=mean, std=std)


def check_images(what: str, images: object, classes: int) -> None:
    """A ValueError that begins with `what` unless these are one or more images with labels in [0, classes)."""
    if not isinstance(images, LabelledImages):
        raise ValueError(f"{what} is a {type(images).__name__}: must be flame.data.samples.LabelledImages")
    x, y = images.x, images.y
    for name, tensor, dtype, dims in (("x", x, torch.uint8, "[N, C, H, W]"), ("y", y, torch.int64, "[N]")):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what}.{name} is a {type(tensor).__name__}: must be a tensor {dims} of {dtype}")
        if tensor.dtype != dtype:
            pixels = FLOATS if tensor.is_floating_point() else WHOLE
            remedy = pixels if name == "x" else f"convert it with .to({dtype})"
            raise ValueError(f"{what}.{name} is {tensor.dtype}: must be {dtype}; {remedy}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{what}.{name} is sparse ({tensor.layout}): must be dense, as .to_dense() gives it")
        if tensor.dim() != dims.count(",") + 1:
            raise ValueError(f"{what}.{name} has the shape {tuple(tensor.shape)}: must be {dims}")
        if tensor.device.type != "cpu":
            raise ValueError(f"{what}.{name} is on {tensor.device}: must be in the host's memory, as .cpu() gives it")
    if not len(x) == len(y) > 0:
        raise ValueError(f"{what} has {len(x)} images and {len(y)} labels: must be as many of both, and at least one")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        more = f", and set dataset.classes to at least {high + 1}" if high >= classes else ""
        raise ValueError(
            f"{what}.y has labels in [{low}, {high}], dataset.classes={classes} allows [0, {classes - 1}]: number the"
            f" classes from 0{more}"
        )


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


def evaluation_sets(dataset: Dataset, backdoor: LabelledImages | None) -> dict[str, LabelledImages]:
    """What every evaluation looks at, once the images that an attack has had its hands on are looked at here.

    Raises:
        ValueError: as `check_images`.
    """
    clean = {"clean": dataset.test}
    check_images("attack.prepare: train", dataset.train, dataset.classes)
    check_images("attack.prepare: test", dataset.test, dataset.classes)
    if not backdoor:
        return clean
    check_images("attack.backdoor_set", backdoor, dataset.classes)
    return {**clean, "backdoor": backdoor}


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
    channels, size = facts.get("channels"), facts.get("image_size")
    for part, images in (("train", dataset.train), ("test", dataset.test)):
        shape = tuple(images.x.shape[1:])
        wanted = tuple(has if fact is None else fact for fact, has in zip((channels, size, size), shape, strict=True))
        if shape != wanted or shape != tuple(dataset.train.x.shape[1:]):
            raise ValueError(
                f"dataset.channels={channels} with dataset.image_size={size} does not fit {dataset.name}: its {part}"
                f" images are {shape} (channels, height, width); set both keys to that, on the command line or in its"
                " YAML, and give train and test the same shape, of one height and width"
            )


def _numbers(dataset: Dataset, key: str, channels: int) -> tuple[float, ...]:
    """`mean` or `std`, one per channel, of pixels scaled to [0, 1]."""
    given = getattr(dataset, key)
    try:
        values = tuple(map(float, given))
    except (TypeError, ValueError):  # null, text
        values = ()
    if len(values) != channels or not all(0 <= value <= 1 for value in values) or (key == "std" and 0 in values):
        raise ValueError(
            f"dataset.{key}={given} is out of range: must be {channels} numbers in {'(' if key == 'std' else '['}0, 1],"
            " one per channel, of pixels scaled to [0, 1]"
        )
    return values


def _labels(images: LabelledImages) -> set[int]:
    """The labels that occur."""
    return set(images.y.unique().tolist())
