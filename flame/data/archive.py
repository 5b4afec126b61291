"""Zip files with known content, read where they lie: nothing in them is unpacked onto the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile


@dataclass(frozen=True)
class ZipSource:
    """A zip file with known content, and where a copy of it comes from."""

    file: str  # under the data folder
    url: str
    md5: str  # of the whole file


def opened(name: str, source: ZipSource, root: Path, download: bool) -> ZipFile:
    """The zip file of `dataset=name`, once its content is known to be the published one.

    Raises:
        FileNotFoundError: it is not there, and may not or cannot be fetched.
        OSError: it has another content, or names that lead out of it.
    """
    path = root / source.file
    if not path.is_file() and download:
        _fetch(source, path)
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset={name}: {path} is not there: get it with dataset.download=true (from {source.url}), or set"
            " paths.data"
        )
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != source.md5:
        raise _damaged(path, f"its md5 is {found}, not {source.md5}")
    try:
        archive = ZipFile(path)
    except BadZipFile as error:
        raise _damaged(path, str(error)) from error
    if climbing := [each for each in archive.namelist() if climbs(each)]:
        archive.close()
        raise _damaged(path, f"it has names that lead out of its own folder ({', '.join(climbing[:5])})")
    return archive


def climbs(name: str) -> bool:
    """Whether a name in a zip file leads out of the folder that the file would be unpacked into."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and (parts[0].startswith("/") or ":" in parts[0] or ".." in parts)


def content(archive: ZipFile, name: str) -> bytes:
    """One file in it; OSError if it is not there or damaged."""
    try:
        return archive.read(name)
    except (KeyError, BadZipFile) as error:
        raise _damaged(Path(str(archive.filename)), f"{name} in it cannot be read ({error})") from error


def stream(archive: ZipFile, name: str) -> Callable[[], BinaryIO]:
    """What opens one file in it, from any thread."""
    return partial(_stream, archive, name)


def _stream(archive: ZipFile, name: str) -> BinaryIO:
    return BytesIO(content(archive, name))


def _fetch(source: ZipSource, path: Path) -> None:
    """torchvision's download compares the md5, too."""
    from torchvision.datasets.utils import download_url  # here, because it takes seconds to import

    try:
        download_url(source.url, path.parent, path.name, source.md5)
    except RuntimeError as error:
        raise FileNotFoundError(f"{source.url} cannot be fetched ({error}): get it yourself, as {path}") from error


def _damaged(path: Path, problem: str) -> OSError:
    return OSError(
        f"{path} is damaged or not the right file: {problem}; delete it and get it again with dataset.download=true"
    )
