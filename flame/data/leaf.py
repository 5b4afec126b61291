"""`dataset=femnist`: LEAF's JSON (Caldas et al., arXiv 1812.01097), who wrote an image being who holds it.

    ROOT/train/*.json and ROOT/test/*.json, after TalwalkarLab/leaf (0d30b4d, data/femnist/preprocess/data_to_json.py):
    {"users": [NAME, ...], "num_samples": [N, ...], "user_data": {NAME: {"x": [[784 floats], ...], "y": [...]}}}

Pixels are rounded to the 256 levels that they come from. Paper is white (1.0), ink dark, and the characters upright:
EMNIST has it the other way round. The set was never loaded by this project's tests, which write small files of the
same format.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flame.data.facts import given_or_found
from flame.data.samples import Dataset, Holders, Samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What all files of a part have, writer after writer."""

    x: list[NDArray[np.uint8]] = field(default_factory=list)  # each [n, side, side]
    y: list[NDArray[np.int64]] = field(default_factory=list)  # each [n]
    users: list[str] = field(default_factory=list)

    def images(self) -> Samples:
        """[N, 1, side, side] and [N]."""
        return Samples(torch.from_numpy(np.concatenate(self.x)).unsqueeze(1), torch.from_numpy(np.concatenate(self.y)))

    def holders(self) -> Holders:
        """The writers in the order of their names."""
        names = sorted(set(self.users))
        number = {name: i for i, name in enumerate(names)}
        of = torch.tensor([number[user] for user in self.users])
        return Holders(of.repeat_interleave(torch.tensor([len(y) for y in self.y])), tuple(names))


def femnist(
    root: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int,
    channels: int,
    image_size: int,
) -> Dataset:
    """All writers' images, with the writers of the training images as their holders; conf/dataset/femnist.yaml.

    Raises:
        FileNotFoundError: a folder or its JSON files are not there.
        ValueError: a file is not what LEAF writes; the sentence names it and the writer.
    """
    parts = [_read(Path(root).expanduser() / part, image_size) for part in ("train", "test")]
    train, test = (part.images() for part in parts)
    return Dataset("femnist", train, test, *given_or_found(mean, std, train.x), classes, parts[0].holders())


def _read(folder: Path, side: int) -> Written:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"dataset=femnist: {folder} has no .json file: make them with LEAF's data/femnist/preprocess.sh, or set"
            " dataset.root to the folder of train and test"
        )
    found = Written()
    for number, path in enumerate(files, 1):
        log.info("dataset=femnist: reading %s, %d of %d", path, number, len(files))
        for user, data in users(path).items():
            _add(found, path, user, data, side)
    if not found.y:
        raise ValueError(f"dataset=femnist: {folder} has no writer with an image: write its files again")
    return found


def users(path: Path) -> dict[str, Any]:
    """`user_data` of one file."""
    try:
        users = json.loads(path.read_bytes())["user_data"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is not what LEAF writes, a JSON object with user_data ({error}): write it again"
        ) from error
    if not isinstance(users, dict):
        raise ValueError(f"{path}: user_data is a {type(users).__name__}, not an object by writer: write it again")
    return users


def _add(found: Written, path: Path, user: str, data: Any, side: int) -> None:
    """One writer's images; nothing for a writer without any."""
    try:
        x, y = np.asarray(data["x"], np.float64), np.asarray(data["y"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: {user} has no x and y of numbers ({error}): write it again") from error
    if not len(y) and not len(x):
        return
    if x.shape != (len(y), side * side) or y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {user} has x {x.shape} and y {y.shape} of {y.dtype}: must be n images of {side * side} pixels"
            f" and n whole numbers; dataset.image_size={side} is their side"
        )
    if not ((x >= 0) & (x <= 1)).all():  # nan
        raise ValueError(f"{path}: {user} has pixels outside [0, 1]: must be grey levels divided by 255")
    found.x.append(np.rint(x * 255).astype(np.uint8).reshape(-1, side, side))
    found.y.append(y.astype(np.int64))
    found.users.append(user)
