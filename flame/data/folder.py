"""`dataset=folder`: images of one's own, a folder for each class.

    ROOT/train/cat/1.png  ROOT/test/cat/9.png   dataset.test_share=null
    ROOT/cat/1.png                              dataset.test_share=0.2, of each class, drawn by dataset.split_seed

Classes are numbered in the order of their names, whole numbers by value ("2" before "10"; torchvision's ImageFolder
sorts them as text). A class folder may have folders in it. Names that begin with a dot are not looked at.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from flame.data.cache import FOLDER, cached, key
from flame.data.facts import check_said, given_or_found
from flame.data.pictures import ENDINGS, NAMED, Decoded, Look, complaints, decoded, few, seen
from flame.data.samples import Dataset, Samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The image files under a folder of classes, class after class."""

    names: list[str]  # of the classes
    paths: list[Path]  # [N]
    y: Tensor  # [N] int64


def folder(
    root: str | None,
    test_share: float | None,
    split_seed: int,
    resize: str,
    corrupt: str,
    cache: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int | None,
    channels: int | None,
    image_size: int | None,
) -> Dataset:
    """The images under `root`, decoded once and kept in `cache` (null: in `root`); conf/dataset/folder.yaml says more.

    Raises:
        ValueError: a setting is out of range, or the folders or images are not what it says they are.
        FileNotFoundError: there is no such folder.
    """
    if corrupt not in ("refuse", "skip"):
        raise ValueError(f"dataset.corrupt={corrupt} is unknown: must be refuse or skip")
    place = _root(root)
    found, tested = _found(place, test_share)
    _check_facts(place, found, classes, channels, image_size)
    assert channels is not None and image_size is not None
    look = Look(channels, image_size, resize)
    paths = found.paths + (tested.paths if tested else [])
    kind = f"{look.channels}x{look.size}-{look.resize}"
    home = place / FOLDER if cache is None else Path(cache).expanduser()
    images = cached(home, kind, key(paths, repr(look)), partial(decoded, paths, look))
    y = torch.cat([found.y, tested.y]) if tested else found.y
    held_out = torch.arange(len(y)) >= len(found.y) if tested else _drawn(y, float(test_share or 0), split_seed)
    readable = _readable(place, paths, images, corrupt)
    train, test = (Samples(images.x[part], y[part]) for part in (readable & ~held_out, readable & held_out))
    if not len(train):
        raise ValueError(f"dataset.root={root}: no training image is left: must be at least one")
    log.info("dataset=folder: %s", ", ".join(f"class {i} = {name}" for i, name in enumerate(found.names)))
    return Dataset("folder", train, test, *given_or_found(mean, std, train.x), len(found.names))


def _root(root: str | None) -> Path:
    if root is None:
        raise ValueError("dataset.root=null: dataset=folder needs the folder that your images are in")
    place = Path(root).expanduser()
    if not place.is_dir():
        raise FileNotFoundError(f"dataset.root={root}: there is no such folder: name the one that your images are in")
    return place


def _found(root: Path, test_share: float | None) -> tuple[Found, Found | None]:
    """Training and test files; without the second where the test set is yet to be drawn."""
    apart = [name for name in ("train", "test") if (root / name).is_dir()]
    if test_share is None:
        if len(apart) < 2:
            raise ValueError(
                f"dataset.root={root} has no folders train and test: make them, or dataset.test_share=0.2 draws a test"
                " set from the classes in it"
            )
        train, test = look_up(root / "train"), look_up(root / "test")
        if strangers := sorted(set(test.names) - set(train.names)):
            raise ValueError(
                f"dataset.root={root}: test has the class folders {', '.join(strangers[:NAMED])}, which train lacks:"
                " nobody could learn them; move them out of test"
            )
        number = torch.tensor([train.names.index(name) for name in test.names])
        return train, Found(train.names, test.paths, number[test.y])
    if not 0 < test_share < 1:  # nan
        raise ValueError(
            f"dataset.test_share={test_share} is out of range: must be in (0, 1), or null for folders train and test"
        )
    if len(apart) == 2:
        raise ValueError(
            f"dataset.test_share={test_share}, but {root} has folders train and test, which are no classes: say"
            " dataset.test_share=null"
        )
    return look_up(root), None


def look_up(folder: Path) -> Found:
    """The classes in a folder, and their files, in an order that every machine gives them.

    Raises:
        ValueError: there is no class, or one without images.
    """
    names = sorted((path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."), key=_by_name)
    if not names:
        raise ValueError(f"{folder} has no folder in it: must have one for each class; see dataset.root")
    paths: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for label, name in enumerate(names):
        files = sorted(_files(folder / name))
        images = [path for path in files if path.suffix.lower() in ENDINGS]
        others += [path for path in files if path.suffix.lower() not in ENDINGS]
        if not images:
            raise ValueError(f"{folder / name} has no image ({', '.join(ENDINGS)}): put some there, or delete it")
        paths += images
        labels += [label] * len(images)
    if others:
        log.warning("%d files in %s are no images by their names, and left out: %s", len(others), folder, few(others))
    return Found(names, paths, torch.tensor(labels))


def _files(folder: Path) -> list[Path]:
    """All files under a folder, but for hidden ones; OSError if a folder cannot be looked into."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(here) / name for name in files if name[0] != "."]
    return found


def _by_name(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isascii() and name.isdigit() else (-1, name)


def _check_facts(root: Path, found: Found, classes: int | None, channels: int | None, size: int | None) -> None:
    """What models are built from is declared; the sentence says what the folders and the first image have."""
    said = {"classes": classes, "channels": channels, "image_size": size}
    if None in said.values():
        known = {"classes": len(found.names), **seen(found.paths[0])}
        check_said(f"{root} (of the images, the first one)", said, known)


def _drawn(y: Tensor, share: float, seed: int) -> Tensor:
    """[N] bool, the test images: `share` of each class, rounded to the nearest, at most all but one."""
    stream = Generator().manual_seed(seed)
    held_out = torch.zeros(len(y), dtype=torch.bool)
    for label in range(int(y.max()) + 1):
        members = (y == label).nonzero().flatten()
        count = min(round(share * len(members)), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=stream)[:count]]] = True
    return held_out


def _readable(root: Path, paths: Sequence[Path], images: Decoded, corrupt: str) -> Tensor:
    """[N] bool; a ValueError, or a warning, that counts and names the files that are not."""
    mend = "mend or delete them, or dataset.corrupt=skip leaves them out"
    for told, remedy in complaints(images, lambda number: paths[number].relative_to(root), mend):
        if corrupt == "refuse":
            raise ValueError(f"dataset.root={root}: {told}; {remedy}")
        log.warning("dataset.root=%s: %s; they are left out, as dataset.corrupt=skip asks", root, told)
    readable = torch.ones(len(paths), dtype=torch.bool)
    readable[list(images.unreadable)] = False
    return readable
