"""Engines: who does the training. The bits do not depend on which.

Imports nothing heavy, so that `start_fork_server` can run before torch is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from multiprocessing import forkserver

PRELOADED = ["flame.engine.pool"]  # what workers are forked with
# Bytes of a folder's name that leave room for "/pymp-12345678/listener-12345678", which multiprocessing puts there, in
# the address of a Unix socket: 108 with its end on Linux, 104 elsewhere.
LONGEST_TMPDIR = (108 if sys.platform == "linux" else 104) - 1 - len("/pymp-12345678/listener-12345678")


def check_sockets() -> None:
    """ValueError unless processes can have their sockets where temporary files go."""
    folder = tempfile.gettempdir()
    if (size := len(os.fsencode(folder))) > LONGEST_TMPDIR:
        raise ValueError(
            f"TMPDIR={folder} is too long: its {size} bytes leave no room for the sockets of engine=pool, which allow "
            f"{LONGEST_TMPDIR}; set TMPDIR to a shorter path, such as /tmp, or use engine=sequential"
        )


def start_fork_server() -> None:
    """Let the process that workers are forked from import torch while the main process does the same.

    Workers are forked from it, not from the main process, whose threads (W&B, torch) would not survive a fork.
    """
    try:
        check_sockets()
    except ValueError:
        return  # the pool says it, once it is made
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
