"""The tables that are written by hand, "Who gets in", beside the records that they were written from."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ("flame_weights_only", "flame_all_state")
KNOWS = "attack.adapt_to={} attack.budget=0.8"
Row = tuple[str, dict[str, str]]  # a record, and which of its runs
ROWS: dict[str, list[Row]] = {  # in the order of the table
    "RESULTS.md": [
        ("late_question", {"attack": "shrunk", "partition": "iid"}),
        ("late_question", {"attack": "shrunk_forged", "partition": "dirichlet_05"}),
        ("late_question", {"attack": "shrunk_forged", "partition": "dirichlet_015"}),
        ("late_question", {"attack": "shrunk", "partition": "dirichlet_05"}),
        ("table_attacks", {"attack": "pgd"}),
        ("table_attacks", {"attack": "min_sum"}),
        ("late_question", {"attack": "shrunk", "partition": "dirichlet_015"}),
        ("late_question", {"attack": "shrunk_forged", "partition": "iid"}),
        ("table_attacks", {"attack": "dba"}),
        ("late_question", {"attack": "badnets", "partition": "iid"}),
        ("late_question", {"attack": "constrain_and_scale", "partition": "iid"}),
        ("late_question", {"attack": "constrain_and_scale", "partition": "dirichlet_05"}),
        ("table_attacks", {"attack": "model_replacement"}),
        ("arena", {"attack": "badnets", "partition": "dirichlet_03"}),
        ("late_question", {"attack": "badnets", "partition": "dirichlet_05"}),
        ("late_question", {"attack": "constrain_and_scale", "partition": "dirichlet_015"}),
        ("table_attacks", {"attack": "alie"}),
        ("late_question", {"attack": "badnets", "partition": "dirichlet_015"}),
        ("table_attacks", {"attack": "edge_case"}),
        ("arena", {"attack": "shrunk_forged", "partition": "dirichlet_03"}),
        ("arena", {"attack": "shrunk", "partition": "dirichlet_03"}),
        ("table_attacks", {"attack": "min_max"}),
        ("arena", {"attack": "flame_aware", "partition": "dirichlet_03"}),
        ("arena", {"attack": "cerp", "partition": "dirichlet_03"}),
        ("arena", {"attack": "darkfed", "partition": "dirichlet_03"}),
    ],
    "docs/evidence/young_models.md": [
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
        ("crafted_digits", {"attack": "alie", "partition": "dirichlet_03"}),
        ("evasion_digits", {}),
    ],
}


def table(page: str) -> list[list[str]]:
    """The cells of its rows, without bold print."""
    text = (ROOT / page).read_text().partition("| kind of attacker |")[2].partition("\n\n")[0]
    rows = [line.replace("**", "").strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| [")]
    return [[re.sub(r"\]\(.*?\)", "]", cell) for cell in row] for row in rows]


def by_seed(record: str, column: str, **wanted: str) -> dict[str, float]:
    """Per cent."""
    paths = sorted((ROOT / "results/arena").glob("f*.csv")) if record == "arena" else [ROOT / f"results/{record}.csv"]
    lines = [line for path in paths for line in csv.DictReader(path.read_text().splitlines())]
    runs = [run for run in lines if all(run[key] == value for key, value in wanted.items())]
    found = {run["seed"]: 100 * float(run[column]) for run in runs}
    assert len(found) == len(runs)
    return found


def mean(record: str, column: str, **wanted: str) -> tuple[float, int]:
    """Per cent and number of seeds."""
    found = by_seed(record, column, **wanted)
    return fmean(found.values()), len(found)


def difference(record: str, **wanted: str) -> tuple[float, float, float]:
    """Admitted by weights_only minus all_state: mean over seeds, and Student's interval."""
    first, second = (by_seed(record, "malicious_recall", defense=vector, **wanted) for vector in VECTORS)
    apart = np.array([second[seed] - first[seed] for seed in first])
    half = student.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
    return apart.mean(), apart.mean() - half, apart.mean() + half


def shown(value: float) -> str:
    """Whole numbers, halves up, but for what is below one."""
    return f"{value:.1f}" if 0.05 <= value < 0.95 else str(int(value + 0.5 + 1e-9))


@pytest.mark.parametrize(("page", "row"), [(page, row) for page, rows in ROWS.items() for row in range(len(rows))])
def test_a_row_is_that_of_the_records(page: str, row: int) -> None:
    cells, (record, wanted) = table(page)[row], ROWS[page][row]
    adaptive = record == "evasion_digits"  # each vector meets the attacker who adapts to it
    own = [
        wanted | ({"settings": KNOWS.format(vector.removeprefix("flame_"))} if adaptive else {}) for vector in VECTORS
    ]
    rejected = [mean(record, "malicious_recall", defense=v, **w) for v, w in zip(VECTORS, own, strict=True)]
    assert cells[2:4] == [shown(100 - share) for share, _ in rejected]
    assert {int(cells[-1])} == {seeds for _, seeds in rejected}
    if wanted.get("attack") in ("alie", "min_max", "min_sum"):
        assert cells[-2] == "no trigger"
        return
    backdoor = [shown(mean(record, "ba", defense=v, **w)[0]) for v, w in zip(VECTORS, own, strict=True)]
    averaging = [shown(mean(record, "ba", defense="fedavg", **w)[0]) for w in (own if adaptive else own[:1])]
    assert cells[-2] == " / ".join([*backdoor, " and ".join(averaging)])


@pytest.mark.parametrize("page", ROWS)
def test_the_table_has_these_rows(page: str) -> None:
    assert len(table(page)) == len(ROWS[page])


@pytest.mark.parametrize("row", range(len(ROWS["RESULTS.md"])))
def test_a_difference_is_that_of_the_records(row: int) -> None:
    record, wanted = ROWS["RESULTS.md"][row]
    said = [float(number) for number in re.findall(r"-?[\d.]+", table("RESULTS.md")[row][4])]
    assert said == pytest.approx(difference(record, **wanted), abs=0.5)  # in whole numbers


def test_the_rows_are_in_the_order_of_their_differences() -> None:
    means = [difference(record, **wanted)[0] for record, wanted in ROWS["RESULTS.md"]]
    assert means == sorted(means, reverse=True)
