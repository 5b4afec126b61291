"""Decoded images, kept beside their files: the next start reads one file instead of thousands.

The key is the content: the bytes of all files, in their order, and what they are made into. No name and no time of
change is trusted: a copy, a checkout or a touched file keeps its cache, and an image that was edited loses it. Several
jobs may start at once: one decodes, the others wait and read. What is read is compared with its hash; a damaged file is
made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flame.data.pictures import Decoded, threads

FOLDER = ".tensors"  # in the data folder, unless `dataset.cache` says otherwise
LENGTH = 20  # hexadecimal digits of a key
log = logging.getLogger(__name__)


def key(paths: Sequence[Path], made_into: str) -> str:
    """Hash of the bytes of these files, one after the other, and of what they are made into."""
    h = hashlib.sha256(made_into.encode())
    with ThreadPoolExecutor(threads()) as pool:
        for digest in pool.map(_content, paths):
            h.update(digest)
    return h.hexdigest()[:LENGTH]


def cached(folder: Path, kind: str, key: str, make: Callable[[], Decoded]) -> Decoded:
    """What `make` makes, from `<folder>/<kind>-<key>.safetensors` if it is there; else it is written there.

    Others of this `kind` are of files that have changed since, or halves that killed jobs left, and removed. A folder
    that cannot be written to is a warning: every start then decodes.
    """
    path = folder / f"{kind}-{key}.safetensors"
    with _alone(folder):
        found = read(path)
        if found is not None:
            return found
        made = make()
        try:
            write(path, made)
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): every start decodes all images; dataset.cache=DIR keeps them in DIR",
                *(path, error.strerror or error),
            )
            return made
        for other in folder.glob(f"{kind}-*.safetensors*"):
            if other != path:
                other.unlink(missing_ok=True)
        return made


def read(path: Path) -> Decoded | None:
    """The images in a file of ours; None if there is none, or, with a warning, if it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts, x = json.loads(file.metadata()["facts"]), file.get_tensor("x")
        if facts["sha256"] != _digest(x):
            raise ValueError("its content is not what was written")
        return Decoded(x, {int(number): str(why) for number, why in facts["unreadable"].items()})
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s is damaged (%s): its images are decoded again", path, error)
        return None


def write(path: Path, images: Decoded) -> None:
    """In one step: beside it, then renamed."""
    facts = {"sha256": _digest(images.x), "unreadable": images.unreadable}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        try:
            save_file({"x": images.x}, part, {"facts": json.dumps(facts)})
        except SafetensorError as error:  # how it tells of a full disk
            raise OSError(str(error)) from error
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder, once who holds it now has finished or died; without a lock where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")  # noqa: SIM115, closed below
    except OSError as error:
        log.debug("%s cannot be locked: %s", folder, error)
        yield
        return
    with lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s is being written by another job: waiting for it", folder)
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            log.debug("%s cannot be locked: %s", folder, error)
        yield


def _content(path: Path) -> bytes:
    """Hash of a file's bytes; of one that cannot be opened, which is told with the images, the reason."""
    try:
        content = path.read_bytes()
    except OSError as error:
        content = repr(error.errno).encode()
    return hashlib.sha256(content).digest()


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.numpy().data).hexdigest()
