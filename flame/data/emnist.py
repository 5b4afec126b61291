"""EMNIST (Cohen, Afshar, Tapson and van Schaik, arXiv 1702.05373): six splits of the characters of NIST SD 19.

torchvision's file (`torchvision.datasets.EMNIST`: its url and md5), read where torchvision leaves it. As there, images
are as they are stored: rows and columns exchanged, so that a character lies on its side. Other than there, the labels
of `letters` begin at 0. The set was never loaded by this project's tests, which write small files of the same format.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

from torch import Tensor

from flame.data.archive import ZipSource, content, opened
from flame.data.facts import given_or_found
from flame.data.idx import damaged, parsed
from flame.data.samples import Dataset, Samples

EMNIST = ZipSource(
    "EMNIST/raw/gzip.zip", "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e"
)
FROM_ONE = ("letters",)  # splits whose stored labels begin at 1


def emnist(
    root: str,
    download: bool,
    split: str,
    classes_of: Mapping[str, int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int | None,
    channels: int,
    image_size: int,
    *,
    source: ZipSource = EMNIST,
) -> Dataset:
    """One split, 28 x 28; conf/dataset/emnist.yaml has their numbers of classes.

    Raises FileNotFoundError if the zip file is not there, OSError if it is another, ValueError for an unknown split.
    """
    if split not in classes_of:
        raise ValueError(f"dataset.split={split} is unknown: must be one of {', '.join(classes_of)}")
    assert classes is not None
    with opened("emnist", source, Path(root).expanduser(), download) as archive:
        train, test = (_part(archive, split, part) for part in ("train", "test"))
    return Dataset("emnist", train, test, *given_or_found(mean, std, train.x), classes)


def _part(archive: ZipFile, split: str, part: str) -> Samples:
    first = f"gzip/emnist-{split}-{part}"
    x = _array(archive, f"{first}-images-idx3-ubyte.gz", 3).unsqueeze(1)  # [N, 1, H, W]
    y = _array(archive, f"{first}-labels-idx1-ubyte.gz", 1).long()
    return Samples(x, y - 1 if split in FROM_ONE else y)


def _array(archive: ZipFile, name: str, dims: int) -> Tensor:
    path = Path(str(archive.filename)) / name
    try:
        return parsed(path, gzip.decompress(content(archive, name)), dims)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"gzip says: {error}") from error
