"""The one table of RESULTS.md that is written by hand, "Who gets in", beside the records that it was written from."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ("flame_weights_only", "flame_all_state")
KNOWS = "attack.adapt_to={} attack.budget=0.8"
ROWS: list[tuple[str, dict[str, str]]] = [  # the record and which of its runs, in the order of the table
    ("shrunk", {"attack": "badnets"}),
    ("figure_pdr_equal", {"settings": "attack.poisoned_data_rate=0.5"}),
    ("vector_question_equal", {"partition": "dirichlet_03"}),
    ("vector_question_equal", {"partition": "dirichlet_015"}),
    ("phases_digits", {"partition": "dirichlet_05", "settings": "attack.poisoned_data_rate=0.5"}),
    ("dominant_label", {"settings": "attack.poisoned_data_rate=0.5"}),
    ("forged_statistics", {}),
    ("all_poisoned", {"partition": "dirichlet_03"}),
    ("all_poisoned_digits", {"partition": "dirichlet_05"}),
    ("server_statistics_digits", {"settings": "server.statistics=mean"}),
    ("server_statistics_digits", {"settings": "server.statistics=pooled"}),
    ("server_statistics_digits", {"settings": "server.statistics=local"}),
    ("server_statistics_digits", {"settings": "server.statistics=keep"}),
    ("shrunk", {"attack": "shrunk"}),
    ("shrunk", {"attack": "shrunk_forged"}),
    ("shrunk_digits", {"attack": "shrunk", "partition": "dirichlet_1"}),
    ("table_attacks", {"attack": "alie"}),
    ("table_attacks", {"attack": "min_max"}),
    ("table_attacks", {"attack": "min_sum"}),
    ("crafted_digits", {"attack": "alie", "partition": "dirichlet_03"}),
    ("evasion_digits", {}),
]


def table() -> list[list[str]]:
    """The cells of its rows, without bold print."""
    text = (ROOT / "RESULTS.md").read_text().partition("## Who gets in")[2].partition("\n## ")[0]
    rows = [line.replace("**", "").strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| [")]
    return [[re.sub(r"\]\(.*?\)", "]", cell) for cell in row] for row in rows]


def mean(record: str, column: str, **wanted: str) -> tuple[float, int]:
    """Per cent and number of seeds."""
    with open(ROOT / "results" / f"{record}.csv") as file:
        runs = [run for run in csv.DictReader(file) if all(run[key] == value for key, value in wanted.items())]
    return 100 * fmean(float(run[column]) for run in runs), len(runs)


def shown(value: float) -> str:
    """Whole numbers, halves up, but for what is below one."""
    return f"{value:.1f}" if 0.05 <= value < 0.95 else str(int(value + 0.5 + 1e-9))


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_a_row_is_that_of_the_records(row: int) -> None:
    cells, (record, wanted) = table()[row], ROWS[row]
    adaptive = record == "evasion_digits"  # each vector meets the attacker who adapts to it
    own = [
        wanted | ({"settings": KNOWS.format(vector.removeprefix("flame_"))} if adaptive else {}) for vector in VECTORS
    ]
    rejected = [mean(record, "malicious_recall", defense=v, **w) for v, w in zip(VECTORS, own, strict=True)]
    assert cells[2:4] == [shown(100 - share) for share, _ in rejected]
    assert {int(cells[5])} == {seeds for _, seeds in rejected}
    if record in ("table_attacks", "crafted_digits"):
        assert cells[4] == "no trigger"
        return
    backdoor = [shown(mean(record, "ba", defense=v, **w)[0]) for v, w in zip(VECTORS, own, strict=True)]
    averaging = [shown(mean(record, "ba", defense="fedavg", **w)[0]) for w in (own if adaptive else own[:1])]
    assert cells[4] == " / ".join([*backdoor, " and ".join(averaging)])


def test_the_table_has_these_rows() -> None:
    assert len(table()) == len(ROWS)
