"""A run folder belongs to one config, and one process at a time writes there."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from flame.round.checkpoint import RunFolderError
from flame.run.trackers.files import METRICS, SUMMARY

log = logging.getLogger(__name__)
IDENTITY, CHECKPOINTS, LOCK = "identity.json", "checkpoints", ".lock"
LOG = "train.log"  # Hydra's, of what is logged; conf/config.yaml names it
LARGEST_JSON = 1 << 24  # bytes; what we write is a thousandth of it
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EFBIG: "the file size limit is reached: raise ulimit -f",
    errno.EROFS: "it is mounted read-only: mount it writable or set paths.runs",
    errno.EACCES: "you may not write there: change its owner or set paths.runs",
    errno.EEXIST: "something else is in its place: move it away",
    errno.EISDIR: "something else is in its place: move it away",
    errno.ENOTDIR: "something else is in its place: move it away",
    errno.EMFILE: "too many files are open: raise ulimit -n",
    errno.ENOMEM: "memory ran out: lower engine.workers",
}


@contextmanager
def claimed(folder: Path, identity: str) -> Iterator[None]:
    """Hold the folder for the run `identity`; the claim ends with the process at the latest, however it dies.

    Raises:
        RunFolderError: the folder holds another run, or another process is writing this one. Nothing was written then.
    """
    path = folder / IDENTITY
    _check_owner(folder, identity)
    with _held(path) as file:
        _check_owner(folder, identity)  # again: before the lock, another run may have begun here
        if not path.stat().st_size:
            file.write(json.dumps({"identity": identity}) + "\n")
            file.flush()
        try:
            yield
        finally:
            if {each.name for each in folder.iterdir()} <= {IDENTITY, LOG}:
                path.unlink()  # the run was refused before it wrote anything; its log is for `SweepReport`


def _check_owner(folder: Path, identity: str) -> None:
    """RunFolderError if the folder holds another run, or one that does not say which it is."""
    path = folder / IDENTITY
    owner = read_json(path).get("identity") if path.exists() and path.stat().st_size else None
    if owner is not None and owner != identity:
        raise RunFolderError(f"{folder} holds the run {owner}, not {identity}", "choose another hydra.run.dir")
    if owner is None and any((folder / name).exists() for name in (METRICS, SUMMARY, CHECKPOINTS)):
        raise RunFolderError(f"{folder} holds a run without {IDENTITY}", "choose another hydra.run.dir")


@contextmanager
def _held(path: Path) -> Iterator[TextIO]:
    """The file, locked; opened anew if whoever held it has taken it away, so that two never hold two of one name."""
    with open(path, "a+") as file:
        _lock(file.fileno(), path.parent)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            yield file
            return
    with _held(path) as file:
        yield file


@contextmanager
def waited(folder: Path) -> Iterator[None]:
    """Hold a folder that several runs share, once whoever holds it now has finished or died."""
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s is being written by another run: waiting for it", folder)
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        except OSError as error:  # as in `_lock`
            log.debug("%s cannot be locked: %s", folder, error)
        yield


def finished(folder: Path) -> bool:
    """Whether the summary in this folder says so: that is the last thing to be written."""
    path = folder / SUMMARY
    return path.exists() and bool(read_json(path).get("finished"))


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object; RunFolderError names the file if it is anything else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}", "move the folder away, or resume=false") from error
    return content


def explain(error: OSError, folder: Path) -> str | None:
    """What failed and what to do about it; None if it is nothing that a user could mend."""
    if error.errno is None:
        return str(error)  # one of ours, in words already
    remedy = REMEDIES.get(error.errno)
    return remedy and (
        f"{error.filename2 or error.filename or folder}: {error.strerror}; {remedy}. "
        "Then give the same command again: the run goes on from its last checkpoint"
    )


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunFolderError(
            f"{folder} is being written by another process", "wait for it, stop it, or use resume=false"
        ) from None
    except OSError as error:  # some network file systems have no locks
        log.debug("%s cannot be locked: %s", folder, error)
