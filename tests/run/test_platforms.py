"""Where the project cannot run it says so: on Windows, and under a TMPDIR that leaves no room for sockets."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Listener
from pathlib import Path

import pytest
from omegaconf import DictConfig

import flame.run
from flame.engine import LONGEST_TMPDIR, check_sockets, start_fork_server
from flame.engine.base import WorkerError
from flame.run.build import build


def test_windows_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"FLAME runs on Linux and macOS. On Windows use it inside WSL"):
        importlib.reload(flame.run)


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """A folder for temporary files whose name has so many bytes; pytest's own may be too long already."""
    base = Path(tempfile.mkdtemp(dir="/tmp"))

    def made(size: int) -> Path:
        folder = base / ("x" * (size - len(str(base)) - 1))
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        return folder

    yield made
    shutil.rmtree(base)


@pytest.mark.skipif(sys.platform != "linux", reason="71 bytes elsewhere")
def test_the_limit_is_that_of_the_system(deep: Callable[[int], Path]) -> None:
    assert LONGEST_TMPDIR == 75
    folder = deep(75)
    check_sockets()
    (folder / "pymp-12345678").mkdir()
    Listener(str(folder / "pymp-12345678" / "listener-12345678")).close()
    with pytest.raises(OSError, match="too long"):
        Listener(str(deep(76) / "pymp-12345678" / "listener-12345678"))


def test_a_long_tmpdir_is_named_with_the_ways_out(deep: Callable[[int], Path], tiny: Callable[..., DictConfig]) -> None:
    folder = deep(LONGEST_TMPDIR + 1)
    start_fork_server()  # says nothing; the pool does
    parts = build(tiny("engine=pool", "engine.workers=1"))
    with pytest.raises(WorkerError, match=f"^TMPDIR={folder} is too long: its 76 bytes .* or use engine=sequential"):
        parts.start_engine(parts.task)
