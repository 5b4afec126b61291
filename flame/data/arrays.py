"""`dataset=arrays`: images of one's own in one file of arrays, with who holds which, where that is known.

`x_train`, `x_test` in the declared layout and pixels, `y_train`, `y_test` [N] whole numbers from 0 and, optionally,
`client_train` [N], whole numbers or names. Nothing is unpickled and nothing guessed.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from flame.data.archive import climbs
from flame.data.facts import check_said, given_or_found
from flame.data.samples import Dataset, Holders, Samples

LAYOUTS = {"NHW": "[N, H, W]", "NHWC": "[N, H, W, C]", "NCHW": "[N, C, H, W]"}
NEEDED = ("x_train", "y_train", "x_test", "y_test")
CLIENTS = "client_train"
Arrays = Mapping[str, NDArray[Any]]
log = logging.getLogger(__name__)


def arrays(
    path: str | None,
    layout: str,
    pixels: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int | None,
    channels: int | None,
    image_size: int | None,
) -> Dataset:
    """The images in the file `path`; conf/dataset/arrays.yaml says what the settings are.

    Raises:
        ValueError: a setting is out of range, or the arrays are not what it says they are; the sentence names both.
        FileNotFoundError: there is no such file.
    """
    if path is None:
        raise ValueError("dataset.path=null: dataset=arrays needs an .npz or .safetensors file")
    for key, value, allowed in (("layout", layout, tuple(LAYOUTS)), ("pixels", pixels, ("uint8", "unit"))):
        if value not in allowed:
            raise ValueError(f"dataset.{key}={value} is unknown: must be one of {', '.join(allowed)}")
    found = read(Path(path).expanduser(), (*NEEDED, CLIENTS))
    if missing := [name for name in NEEDED if name not in found]:
        raise ValueError(
            f"dataset.path={path} lacks {', '.join(missing)} (it has {', '.join(found) or 'none of its arrays'}):"
            " save the arrays under these names"
        )
    train, test = (
        Samples(images(path, f"x_{part}", found, layout, pixels), labels(path, f"y_{part}", found))
        for part in ("train", "test")
    )
    _check_pairs(path, train, test)
    known = {"classes": int(train.y.max()) + 1 if len(train) else 0, "channels": train.x.shape[1]}
    check_said(str(path), {"classes": classes, "channels": channels}, known)
    assert classes is not None
    if not len(train):
        raise ValueError(f"dataset.path={path}: x_train has no image: must be at least one")
    held = holders(path, found[CLIENTS], len(train)) if CLIENTS in found else None
    return Dataset("arrays", train, test, *given_or_found(mean, std, train.x), classes, held)


def read(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Those of the arrays `names` that an .npz or .safetensors file has, None: all; a line says what else is in it.

    Raises:
        ValueError: it is neither, or damaged, or holds pickled objects, which are not opened.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        problem = "it is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{path}: {problem}: name an .npz or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            found = load_file(path)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): write it again") from error
    elif path.suffix == ".npz":
        found = _read_npz(path, names)
    else:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}: must be an .npz or .safetensors file")
    if names is None:
        return found
    if others := sorted(set(found) - set(names)):
        log.info("%s: not read: %s", path, ", ".join(others))
    return {name: found[name] for name in names if name in found}


def _read_npz(path: Path, names: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    """What is in it; arrays that nobody asks for are named only."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, which is a zip of arrays: write it with numpy.savez")
    name = ""
    found: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            if climbing := [each for each in file.files if climbs(each)]:
                raise ValueError(f"it has names that lead out of its own folder, {climbing[:3]}")
            for name in file.files:
                found[name] = file[name] if names is None or name in names else np.empty(0)
                if not isinstance(found[name], np.ndarray):  # numpy gives the bytes of what is no .npy
                    raise ValueError("it is no .npy array")
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path}: {name} holds pickled objects, which could run code and are never opened: save it as plain"
                " numbers, or text for names (numpy.array(names, dtype=str))"
            ) from error
        place = f" at {name}" if name else ""
        raise ValueError(f"{path} is damaged{place} ({error}): write it again with numpy.savez") from error
    return found


def _check_pairs(path: object, train: Samples, test: Samples) -> None:
    """A ValueError unless there is a label for each image, and all images have one shape."""
    for part, x, y in (("train", train.x, train.y), ("test", test.x, test.y)):
        if len(x) != len(y):
            raise ValueError(
                f"dataset.path={path}: x_{part} has {len(x)} images and y_{part} {len(y)} labels: must be as many of"
                " both; save one label for each image"
            )
    if train.x.shape[1:] != test.x.shape[1:]:
        raise ValueError(
            f"dataset.path={path}: x_test has images of the shape {tuple(test.x.shape[1:])} (channels, height, width),"
            f" x_train of {tuple(train.x.shape[1:])}: must be the same; resize those of x_test"
        )


def images(path: object, name: str, found: Arrays, layout: str, pixels: str) -> Tensor:
    """[N, C, H, W] uint8 from an array in the declared layout and pixels; ValueError if it is another."""
    array, wanted = found[name], LAYOUTS[layout]
    if array.ndim != len(layout) or 0 in array.shape[1:]:
        raise ValueError(
            f"dataset.path={path}: {name} has the shape {array.shape}, and dataset.layout={layout} says {wanted}: set"
            " dataset.layout to the layout that it has"
        )
    if pixels == "unit":
        array = _rounded(path, name, array)
    elif array.dtype != np.uint8:
        raise ValueError(
            f"dataset.path={path}: {name} is {array.dtype}, and dataset.pixels=uint8: save uint8, or say"
            " dataset.pixels=unit if it has floats in [0, 1]"
        )
    x = torch.from_numpy(np.ascontiguousarray(array))
    if layout == "NHW":
        return x.unsqueeze(1)
    return x.permute(0, 3, 1, 2).contiguous() if layout == "NHWC" else x


def _rounded(path: object, name: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats in [0, 1] to the nearest of 256 levels."""
    if array.dtype.kind != "f":
        raise ValueError(
            f"dataset.path={path}: {name} is {array.dtype}, and dataset.pixels=unit asks for floats: save floats in"
            " [0, 1], or say dataset.pixels=uint8 if it is uint8"
        )
    levels = np.empty(array.shape, np.uint8)
    for first in range(0, len(array), 1024):  # so that nothing of the size of the whole is made on the way
        part = array[first : first + 1024]
        where = f"images {first} to {first + len(part) - 1}"
        if np.isnan(part).any():
            raise ValueError(
                f"dataset.path={path}: {name} has NaN in {where}: must be in [0, 1]; leave out the images that have it"
            )
        if not ((part >= 0) & (part <= 1)).all():
            raise ValueError(
                f"dataset.path={path}: {name} has pixels outside [0, 1] (from {np.min(part)} to {np.max(part)} in"
                f" {where}), and dataset.pixels=unit: divide by their range, not by mean and std, which the run does"
            )
        levels[first : first + 1024] = np.rint(part.astype(np.float64) * 255)
    return levels


def labels(path: object, name: str, found: Arrays) -> Tensor:
    """[N] int64 from whole numbers of any width; ValueError if it is something else."""
    array = found[name]
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(
            f"dataset.path={path}: {name} is {array.dtype} of the shape {array.shape}: must be whole numbers [N], the"
            " classes from 0"
        )
    return torch.from_numpy(array.astype(np.int64))


def holders(path: object, array: NDArray[Any], count: int) -> Holders:
    """Who holds which training image: numbers in their order, names in that of the alphabet."""
    if array.dtype.kind not in "iuU" or array.shape != (count,):
        raise ValueError(
            f"dataset.path={path}: {CLIENTS} is {array.dtype} of the shape {array.shape}: must be whole numbers or"
            f" text of the shape ({count},), one for each image of x_train"
        )
    names, of = np.unique(array, return_inverse=True)
    told_by = f"{CLIENTS} of dataset.path={path}"
    return Holders(torch.from_numpy(of.astype(np.int64)), tuple(map(str, names.tolist())), told_by)
