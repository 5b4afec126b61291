"""The update matrix in a file, when it would take too much of the memory; bits and verdicts are the same.

The file has no name (O_TMPFILE, or unlinked at once), so that nothing is left of it however the run ends. Everything
reads it through a mapping, as a plain tensor: the kernel keeps in memory what fits and writes back or drops the rest.

A pass over chunks of columns (`flame/geometry/products.py`, `flame/defenses/columns.py`) touches every row: with n =
1,000 and 2,048 columns, a thousand pieces of 8 KB. They are not what the disk sees. Each fault reads ahead in its row,
128 KB by default (/sys/block/*/queue/read_ahead_kb), and the next 15 chunks find their columns there, as long as n
windows fit into the page cache: 128 MB here. So the disk is read once, in pieces of 128 KB, and there is no second
buffer. Chunks are the same as in memory, and so are the bits.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from flame.geometry.layout import StateLayout
from flame.round.cgroups import CGROUPS, MEMBERSHIP, limits

log = logging.getLogger(__name__)
GB = 1e9


@dataclass(frozen=True)
class Spill:
    """When the rows of a round go to a file, and where it is."""

    share: float  # of the available memory that they may take, in [0, 1]; 0: always a file
    dir: str  # on a local disk with room for n * (d + b) * 4 bytes; made if it is not there

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(
                f"spill.share={self.share} is out of range: must be in [0, 1], a share of the available memory"
                " (0: always to a file)"
            )

    def rows(self, clients: int, size: int) -> SpilledRows | None:
        """A file for `clients` rows of `size` float32, zeros; None if they may stay in memory.

        OSError with key, size, free space and remedy if there is no room for it.
        """
        needed = 4 * clients * size
        if needed <= self.share * available_memory():
            return None
        file = self._file(needed)
        log.info("updates take %.3g GB a round: they go to a file in %s (spill.share)", needed / GB, self.dir)
        return SpilledRows(file, clients, size)

    def _file(self, size: int) -> BinaryIO:
        free = 0
        try:
            folder = Path(self.dir).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if size > free:  # asking would fill the disk before it fails
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115, it outlives the function
            os.truncate(file.fileno(), size)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size)  # now, because a full disk later is a SIGBUS
        except OSError as error:
            raise OSError(
                f"spill.dir={self.dir}: {error.strerror}. The updates of a round take {size / GB:.3g} GB,"
                f" {free / GB:.3g} GB are free there: free some space, name a folder on another disk, lower"
                " clients_per_round, or keep them in memory (raise spill.share)"
            ) from error
        return file


class SpilledRows:
    """Rows [n, d + b] float32 in a file without a name; goes to a worker process as its file descriptor."""

    def __init__(self, file: BinaryIO, clients: int, size: int) -> None:
        self._file, self._shape = file, (clients, size)
        mapped = mmap.mmap(file.fileno(), 4 * clients * size)
        self.tensor: Tensor = torch.frombuffer(mapped, dtype=torch.float32).view(clients, size)

    def __reduce__(self) -> tuple[Callable[..., SpilledRows], tuple[Any, ...]]:
        return _received, (DupFd(self._file.fileno()), *self._shape)  # only while a process is being started


class Store:
    """Where an engine in one process puts its rows: fresh memory in each round, or one file for all of them."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._file: SpilledRows | None = None

    def room(self, clients: int, layout: StateLayout) -> tuple[Tensor, Tensor]:
        """Rows [n, d + b] float32, to be overwritten, and counters [n, c] int64."""
        counters = torch.zeros(clients, layout.counter_size, dtype=torch.int64)
        if self._file is None or len(self._file.tensor) != clients:
            self._file = None  # before there is another: both may not fit
            self._file = self._spill.rows(clients, layout.size)
        return torch.zeros(clients, layout.size) if self._file is None else self._file.tensor, counters


def _received(descriptor: Any, clients: int, size: int) -> SpilledRows:
    return SpilledRows(os.fdopen(descriptor.detach(), "r+b", buffering=0), clients, size)


def available_memory() -> int:
    """Bytes that could be allocated now without swapping, at most what the process's cgroups allow."""
    return min([_of_machine(), *_limits()])


def _of_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # not Linux


def _limits(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> list[int]:
    """Memory limits in bytes of the cgroups that the process is in, version 1 or 2, theirs above them included."""
    files = ("memory.limit_in_bytes", "memory.max")
    found = [text for entries in limits("memory", files, root, membership) for text in entries.values()]
    return [int(text) for text in found if text.isdigit()]
