"""What FLAME's own arithmetic costs beside one float32 product of the update matrix with itself.

    python tests/bench_aggregation.py [--repeats 3] [--cases cnn-100]      # part of `make bench`

For n clients of a model with d parameters, in turns within the same minute, medians:

* `product`: rows @ rows.T, the least that pairwise distances can cost;
* `gram`: inner products of all blocks, enough for every clustering vector;
* `cluster`: HDBSCAN alone;
* `verdict`: the whole of FLAME, inner products and HDBSCAN included;
* `mean`: clipping and averaging alone, whose floor is reading the matrix once (`read`).

Times and the memory that `verdict` took beside the matrix go to results/bench_aggregation.csv.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from benching import run  # noqa: E402
from torch import nn  # noqa: E402

from flame.defenses.base import average, defend  # noqa: E402
from flame.engine.spill import Spill  # noqa: E402
from flame.engine.workbench import prepare_process  # noqa: E402
from flame.geometry.clustering import majority_cluster  # noqa: E402
from flame.geometry.layout import StateLayout  # noqa: E402
from flame.round.types import ServerState, Updates  # noqa: E402
from flame.run.build import build, composed  # noqa: E402
from models.cnn import CNN  # noqa: E402
from models.resnet8 import ResNet8  # noqa: E402
from models.resnet18 import ResNet18  # noqa: E402

MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(999, 10),
    "resnet8": lambda: ResNet8(1, 10, "batch"),
    "cnn": lambda: CNN(1, 10, 28, 0.0),
    "resnet18": lambda: ResNet18(3, 10, (64, 128, 256, 512), "batch"),
}
COHORTS = {"cnn": (10, 50, 100), "resnet18": (10, 50, 100), "resnet8": (1000,), "linear": (2000,)}
CASES = {f"{name}-{clients}": (name, clients) for name, cohorts in COHORTS.items() for clients in cohorts}
COLUMNS = ("model", "d", "n", "what", "repeat", "seconds", "extra_mb")


def a_round(model: nn.Module, clients: int, spill: Spill | None = None) -> tuple[ServerState, Updates]:
    """Updates with a drift in common, and differences as large as it; in memory, or where `spill` says."""
    layout = StateLayout.of(model)
    row, counters = torch.empty(layout.size), torch.empty(layout.counter_size, dtype=torch.int64)
    layout.flatten(model.state_dict(), row, counters)
    stream = torch.Generator().manual_seed(0)
    drift = torch.randn(layout.size, generator=stream)
    spilled = spill.rows(clients, layout.size) if spill else None
    rows = spilled.tensor if spilled else torch.empty(clients, layout.size)
    for one in rows:  # in place, so that the matrix is the only large thing here
        one.normal_(generator=stream).add_(drift).mul_(0.01)
    ids, losses = torch.arange(clients), torch.zeros(clients)
    updates = Updates(layout, row, counters, ids, rows, counters.repeat(clients, 1), ids * 0 + 600, losses)
    return ServerState(row, counters), updates


def peak_mb() -> float:
    """The most memory that this process has had since its maximum was forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def grown(work: Callable[[], object]) -> float:
    """MB that `work` takes at most beside what is there; what the process kept of freed memory goes back first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # start a new maximum
    before = peak_mb()
    work()
    return peak_mb() - before


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(case: str, repeats: int) -> list[tuple]:
    """Rows of the CSV for one case."""
    name, clients = CASES[case]
    state, updates = a_round(MODELS[name](), clients)
    parts = build(composed(["defense=flame_weights_only", "experiment=smoke"]))
    factors = torch.linspace(0.5, 1, clients, dtype=torch.float64)
    shares = torch.full((clients,), 1 / clients, dtype=torch.float64)
    rows, flat = updates.rows, updates.rows.view(-1)
    distances = updates.geometry.cosine_distances("weights_only")

    def fresh() -> Updates:
        return updates.first(clients)  # without the inner products that `updates` holds already

    works: dict[str, Callable[[], object]] = {
        "product": lambda: rows @ rows.T,
        "gram": lambda: fresh().geometry,
        "cluster": lambda: majority_cluster(distances),
        "verdict": lambda: defend(parts.defense, state, fresh(), torch.Generator().manual_seed(1)),
        "mean": lambda: average(state, updates, shares, factors),
        "read": lambda: flat.dot(flat),
    }
    extra = {what: grown(work) for what, work in works.items()}  # and a first call to warm up
    size = updates.layout.size
    return [
        (name, size, clients, what, repeat, f"{timed(work):.5g}", f"{extra[what]:.5g}")
        for repeat in range(repeats)
        for what, work in works.items()
    ]


def summary(rows: list[tuple]) -> str:
    """One case in a line."""

    def median(what: str, column: int = 5) -> float:
        return statistics.median(float(row[column]) for row in rows if row[3] == what)

    name, size, clients = rows[0][:3]
    product, matrix = median("product"), 4 * size * clients / 1e9
    return "  ".join(
        [
            f"{name:9} n {clients:5}  d {size / 1e6:6.2f}M  product {1e3 * product:7.1f} ms",
            f"gram {median('gram') / product:5.2f} x  cluster {1e3 * median('cluster'):6.1f} ms",
            f"verdict {median('verdict') / product:5.2f} x, {median('verdict', 6) / (10 * matrix):5.1f} % more memory",
            f"mean {matrix / median('mean'):5.1f} GB/s ({100 * median('read') / median('mean'):3.0f} % of reading)",
        ]
    )


if __name__ == "__main__":
    prepare_process(threads=1)  # as in a run
    run(__doc__, CASES, COLUMNS, measure, summary, "bench_aggregation.csv")
