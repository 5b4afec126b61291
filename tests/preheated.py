"""For the suite's fork server to import: its children, commands of the project or workers, need not begin at zero."""

from __future__ import annotations

import gc
import os
import sys
from multiprocessing import current_process
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: a process with threads is no good to fork
begun = {"path": [folder for folder in sys.path if folder], "main": current_process()}
sys.path.insert(0, str(Path(__file__).parent))

import warm  # noqa: E402

warm.BEGUN.update(begun)
warm.warm_up()
gc.freeze()  # else a collection in a child writes to every page, which is then copied
