"""FLAME's verdict on updates that do not fit into memory: 1,000 clients of ResNet-18 are 44.7 GB in a file.

    python tests/bench_spill.py --dir /a/local/disk [--clients 1000]

Not part of `make bench`: it needs that much disk, and minutes. The rows are those of `bench_aggregation`. Printed are
the seconds of filling the file and of the verdict (inner products, HDBSCAN, clipping, averaging, noise), the rate at
which the verdict went through the file, and the most anonymous memory that the process had beside what it had before.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

import torch
from bench_aggregation import MODELS, a_round, timed

from flame.defenses.base import defend
from flame.engine.spill import Spill
from flame.engine.workbench import prepare_process
from flame.run.build import build, composed


class Peak:
    """The most anonymous memory in MB while it is open, looked at ten times a second."""

    def __enter__(self) -> Peak:
        self.before, self.most, self._done = anonymous_mb(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, anonymous_mb() - self.before)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def anonymous_mb() -> float:
    """RssAnon: what the process holds that is not a page of a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def main() -> None:
    """Fill the file, judge it, print a line of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="a folder on a local disk, for the file without a name")
    parser.add_argument("--clients", type=int, default=1000)
    chosen = parser.parse_args()
    prepare_process(threads=torch.get_num_threads())
    defense = build(composed(["defense=flame_weights_only", "experiment=smoke"])).defense
    spill = Spill(share=0, dir=chosen.dir)

    start = time.perf_counter()
    state, updates = a_round(MODELS["resnet18"](), chosen.clients, spill)
    size = updates.rows.numel() * 4 / 1e9
    print(f"{size:.1f} GB in a file in {time.perf_counter() - start:.0f} s", flush=True)
    with Peak() as peak:
        seconds = timed(lambda: defend(defense, state, updates, torch.Generator().manual_seed(1)))
    print(f"verdict in {seconds:.0f} s, {size / seconds:.2f} GB of updates a second, {peak.most:.0f} MB beside them")


if __name__ == "__main__":
    main()
