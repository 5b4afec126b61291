"""Public sets of image files inside zip files: GTSRB and Tiny ImageNet, decoded once and kept as tensors.

The zip files are torchvision's (`torchvision/datasets/gtsrb.py`), for Tiny ImageNet, which torchvision has not, the
course's own. They are compared with their md5 and read where they lie. Neither set was ever loaded by this project's
tests, which write small files of the same format.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import ZipFile

import torch

from flame.data.archive import ZipSource, content, opened, stream
from flame.data.cache import FOLDER, LENGTH, cached
from flame.data.facts import given_or_found
from flame.data.pictures import File, Look, complaints, decoded
from flame.data.samples import Dataset, Samples

GTSRB_URL = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
GTSRB = {  # the md5 of torchvision 0.29.1, torchvision/datasets/gtsrb.py
    "train": ZipSource(
        "gtsrb/GTSRB-Training_fixed.zip",
        f"{GTSRB_URL}/GTSRB-Training_fixed.zip",
        "513f3c79a4c5141765e10e952eaa2478",
    ),
    "test": ZipSource(
        "gtsrb/GTSRB_Final_Test_Images.zip",
        f"{GTSRB_URL}/GTSRB_Final_Test_Images.zip",
        "c7e4e6327067d32654124b0fe9e82185",
    ),
    "truth": ZipSource(
        "gtsrb/GTSRB_Final_Test_GT.zip",
        f"{GTSRB_URL}/GTSRB_Final_Test_GT.zip",
        "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
    ),
}
TINY_IMAGENET = {  # the md5 that public loaders give, such as avalanche's
    "all": ZipSource(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
    )
}
Sources = Mapping[str, ZipSource]


class Listed(NamedTuple):
    """One image file and its class."""

    file: File
    label: int


def gtsrb(
    root: str,
    download: bool,
    resize: str,
    cache: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int,
    channels: int,
    image_size: int,
    *,
    sources: Sources = GTSRB,
) -> Dataset:
    """German traffic signs (Stallkamp et al., Neural Networks 2012), brought to one size; conf/dataset/gtsrb.yaml.

    Raises FileNotFoundError if a zip file is not there, OSError if it is another, ValueError for a setting.
    """
    zips = {part: opened("gtsrb", source, Path(root).expanduser(), download) for part, source in sources.items()}
    train = [
        Listed(stream(zips["train"], name), int(PurePosixPath(name).parts[2]))
        for name in sorted(zips["train"].namelist())
        if name.startswith("GTSRB/Training/") and name.endswith(".ppm")
    ]
    lines = content(zips["truth"], "GT-final_test.csv").decode().splitlines()
    test = [
        Listed(stream(zips["test"], f"GTSRB/Final_Test/Images/{row['Filename']}"), int(row["ClassId"]))
        for row in csv.DictReader(lines, delimiter=";", skipinitialspace=True)
    ]
    look = Look(channels, image_size, resize)
    return _made("gtsrb", train, test, look, _home(root, cache), sources, mean, std, classes)


def tiny_imagenet(
    root: str,
    download: bool,
    resize: str,
    cache: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int,
    channels: int,
    image_size: int,
    *,
    sources: Sources = TINY_IMAGENET,
) -> Dataset:
    """Tiny ImageNet (Stanford CS231n): its training images, and its validation images as the test set.

    Classes are numbered in the order of their WordNet ids, as torchvision's ImageFolder numbers them. The test images
    of the zip file have no labels and are left out. Errors as for GTSRB.
    """
    archive = opened("tiny_imagenet", sources["all"], Path(root).expanduser(), download)
    top = "tiny-imagenet-200"
    number = {wnid: i for i, wnid in enumerate(sorted(content(archive, f"{top}/wnids.txt").decode().split()))}
    train = [
        Listed(stream(archive, name), number[PurePosixPath(name).parts[2]])
        for name in sorted(archive.namelist())
        if name.startswith(f"{top}/train/") and name.endswith(".JPEG")
    ]
    test = _annotated(archive, f"{top}/val", number)
    look = Look(channels, image_size, resize)
    return _made("tiny_imagenet", train, test, look, _home(root, cache), sources, mean, std, classes)


def _annotated(archive: ZipFile, folder: str, number: Mapping[str, int]) -> list[Listed]:
    """The images that a file of annotations names: file, class and a box, between tabs."""
    lines = content(archive, f"{folder}/val_annotations.txt").decode().splitlines()
    rows = [line.split("\t") for line in lines]
    return [Listed(stream(archive, f"{folder}/images/{row[0]}"), number[row[1]]) for row in rows]


def _home(root: str, cache: str | None) -> Path:
    """Where the decoded images are kept."""
    return Path(root).expanduser() / FOLDER if cache is None else Path(cache).expanduser()


def _made(
    name: str,
    train: Sequence[Listed],
    test: Sequence[Listed],
    look: Look,
    home: Path,
    sources: Sources,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int,
) -> Dataset:
    """All images decoded, or read from where they are kept; known data, so that one that cannot be read is an error."""
    both = [*train, *test]
    known = hashlib.sha256(repr(([source.md5 for source in sources.values()], look)).encode()).hexdigest()[:LENGTH]
    kind = f"{name}-{look.channels}x{look.size}-{look.resize}"
    images = cached(home, kind, known, partial(decoded, [each.file for each in both], look))
    for told, remedy in complaints(images, lambda number: f"no. {number}", "get the zip file again"):
        raise OSError(f"dataset={name}: {told}; {remedy}")
    y = torch.tensor([each.label for each in both])
    parts = (slice(0, len(train)), slice(len(train), len(both)))
    learnt, tested = (Samples(images.x[part], y[part]) for part in parts)
    return Dataset(name, learnt, tested, *given_or_found(mean, std, learnt.x), classes)
