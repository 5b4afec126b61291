"""Two ways to bring the four files of an IDX source into the data folder; neither needs root."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from flame.data.idx import IdxSource, decompressed, stored

logger = logging.getLogger(__name__)


def debian_package(source: IdxSource, root: Path) -> None:
    """Download the source's Debian package with apt, which verifies its signature, and unpack it; installs nothing.

    Works with package lists of its own: those of a container are often missing, and updating them takes root.
    Raises OSError with the reason (no apt, no network, no such package, damaged content).
    """
    if source.package is None:
        raise OSError("there is no Debian package of it")
    with TemporaryDirectory() as scratch:
        for name in ("lists", "cache"):
            (Path(scratch) / name).mkdir()
        private = ["-qq", "-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
        try:
            run(["apt-get", *private, "update"], scratch)
        except ChildProcessError as error:  # one broken repository among several does not matter
            logger.warning("%s", error)
        run(["apt-get", *private, "download", source.package], scratch)
        (package,) = Path(scratch).glob("*.deb")
        unpack(source, package, root)


def unpack(source: IdxSource, package: Path, root: Path) -> None:
    """Put the source's files out of a .deb into the data folder, decompressed, each complete or not at all.

    Raises OSError if the package cannot be read or lacks a file.
    """
    folder = source.fetched(root)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        run(["dpkg-deb", "-x", str(package.resolve()), scratch], scratch)
        parents = {path.parent for path in Path(scratch).rglob("*-ubyte*")}
        for name in source.sha256:
            packed = next(filter(None, (stored(parent, name) for parent in parents)), None)
            if packed is None:
                raise OSError(f"{package.name} has no {name}")
            part = folder / f"{name}.part"
            part.write_bytes(decompressed(packed))
            part.replace(folder / name)


def torchvision_mirror(source: IdxSource, root: Path) -> None:
    """Download with torchvision, which verifies an md5; raises RuntimeError or OSError if no mirror answers."""
    from torchvision import datasets  # here, because it takes seconds to import

    getattr(datasets, source.torchvision)(root, download=True)


def run(command: list[str], folder: str) -> None:
    """Run a command in `folder`; raises OSError with what it said if it fails or is not installed."""
    try:
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise ChildProcessError(f"{' '.join(command)} failed: {done.stderr.strip()}")
