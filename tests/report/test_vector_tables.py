"""Rows by hand: paired contrasts, what is missing, and the tables of the question, the control and the presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from flame.report.contrasts import PER_CENT, PLAIN, Contrast, contrast_table, extent, finished, lacking, mean_by_seed
from flame.report.preset_tables import preset_pairs, presets
from flame.report.vector_tables import agreement, backdoored, blocks, caught, defended, rejected, size, through, who
from flame.report.vectors import PresetLine, VectorLine

NAN = math.nan
PLAN = {
    "seed": tuple("012345"),
    "partition": ("iid", "dirichlet_03"),
    "attack": ("none", "badnets"),
    "defense": ("fedavg", "flame_weights_only", "flame_all_state"),
}
SEEDS = range(6)


def line(kind: type, **values: Any) -> Any:
    """A finished run; numbers that are not given are NaN."""
    texts = {"attack": "badnets", "partition": "iid", "norm": "batch", "commit": "c", "state_sha256": "h"}
    whole = {"seed": 0, "rounds": 24, "mean_of_last": 5}
    blank = {f.name: "" if str(f.type) == "str" else NAN for f in fields(kind)}
    return kind(**blank | texts | whole | values if kind is VectorLine else {**blank, **drop(texts), **whole, **values})


def drop(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name not in ("partition", "norm")}


def vector(**values: Any) -> VectorLine:
    return line(VectorLine, **{"defense": "fedavg"} | values)


def rows_of(table: Any) -> dict[tuple[str, str], dict[str, str]]:
    """Label columns -> column -> text."""
    header, *rows = table
    return {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}


def test_a_contrast_by_hand() -> None:
    """Differences 0.01 ... 0.06: mean 3.5 points, s = 1.871, t(0.975, 5) = 2.571: 3.5 -+ 1.96; p = 2 / 64."""
    first, second = {seed: 0.5 + 0.01 * (seed + 1) for seed in SEEDS}, dict.fromkeys(SEEDS, 0.5)
    header, row = contrast_table(
        ["a"], ["x", "y", "z"], [Contrast(("A",), (first, second), ({0: 0.25},), {})], PER_CENT
    )
    found = dict(zip(header, row, strict=True))
    assert row[:5] == ["A", "53.5 ± 2.0", "50.0 ± 0.0", "25.0", "+3.5"]
    assert found["95 % interval"] == "[+1.5, +5.5]" and found["p"] == "0.031" and found["p (Holm)"] == "0.031"
    assert found["effect g"] == f"{0.8407 * 3.5 / 1.8708:+.2f}" and found["n"] == "6"


def test_holm_is_within_the_table_and_the_mean_of_the_rows_outside() -> None:
    """1 - 2 + 3 - 4 + 5 - 6 = -3: only 10 of 64 patterns of signs are nearer to 0; then 1, 0, 3, 0, 5, 0: 2 of 8."""
    up = {seed: 0.1 * (seed + 1) for seed in SEEDS}
    zero = dict.fromkeys(SEEDS, 0.0)
    mixed = {seed: value * (-1) ** seed for seed, value in up.items()}
    contrasts = [Contrast((name,), (side, zero), (), {}) for name, side in (("up", up), ("mixed", mixed))]
    header, *rows = contrast_table(["a"], ["x", "y"], contrasts, PLAIN)
    p, adjusted = header.index("p"), header.index("p (Holm)")
    assert [row[p] for row in rows] == ["0.031", "0.844", "0.250"] and rows[2][0] == "mean of 2 rows"
    assert [row[adjusted] for row in rows] == ["0.062", "0.844", "-"]


def test_few_seeds_are_no_test() -> None:
    four = {seed: 0.5 + seed for seed in range(4)}
    missing = {"not run": 1, "unfinished": 1}
    header, row = contrast_table(
        ["a"], ["x", "y"], [Contrast(("A",), (four, dict.fromkeys(four, 0.0)), (), missing)], PLAIN
    )
    found = dict(zip(header, row, strict=True))
    assert found["p"] == "n = 4: no test" and found["p (Holm)"] == "-" and found["n"] == "4 (1 not run, 1 unfinished)"
    header, row = contrast_table(["a"], ["x", "y"], [Contrast(("A",), ({}, {}), (), {"not run": 6})], PLAIN)
    assert row == ["A", *["-"] * 8, "0 (6 not run)"]


def test_what_is_missing_is_counted() -> None:
    one = [vector(seed=0), vector(seed=1, state_sha256=""), vector(seed=2)]
    other = [vector(seed=0), vector(seed=1)]
    assert lacking([one, other], range(4)) == {"unfinished": 1, "not run": 2}
    assert extent(1, lacking([one, other], range(4))) == "1 (1 unfinished, 2 not run)"
    assert finished(one, lambda run: run.seed) == {0: 0, 2: 2}


def test_the_mean_of_rows_is_over_seeds_that_all_of_them_have() -> None:
    a = Contrast(("a", "x"), ({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0}), ({0: 5.0, 1: 6.0},), {})
    b = Contrast(("b", "x"), ({0: 2.0, 1: NAN}, {0: 1.0, 1: 1.0}), ({0: 7.0, 1: 8.0},), {"undefined": 1})
    empty = Contrast(("c", "x"), ({}, {}), ({},), {"not run": 2})
    pooled = mean_by_seed([a, b, empty])
    assert pooled and pooled.labels == ("mean of 2 rows", "") and pooled.lacking == {"incomplete": 1}
    assert pooled.differences.tolist() == [1.0] and pooled.beside[0] == {0: 6.0, 1: 7.0}
    assert mean_by_seed([a, empty]) is None


@pytest.fixture(scope="module")
def question() -> list[VectorLine]:
    """Six seeds of one cell, one seed of another; one run unfinished."""
    runs = []
    for seed in SEEDS:
        shared = {"partition": "dirichlet_03", "attack": "badnets", "seed": seed}
        runs.append(
            vector(
                **shared,
                ma=0.7,
                ba=0.9,
                floor=0.25,
                benign_recall_weights_only=0.75,
                benign_recall_all_state=0.65,
                malicious_recall_weights_only=1.0,
                malicious_recall_all_state=0.5,
                agreement=0.8,
                agreement_by_chance=0.5,
                skew_weights_only=0.6,
                skew_all_state=0.6,
                size_weights_only=0.8,
                size_all_state=0.0,
                skew_size=0.0,
                distance_share_trunk=0.3,
                distance_share_head=0.1,
                distance_share_running_mean=0.2,
                distance_share_running_var=0.4,
            )
        )
        for name, ma in (("weights_only", 0.8), ("all_state", 0.7)):
            hash_ = "" if (name, seed) == ("all_state", 5) else "h"
            runs.append(vector(**shared, defense=f"flame_{name}", ma=ma, ba=0.01, state_sha256=hash_))
    return [*runs, vector(partition="iid", attack="none", ma=0.9, floor=0.4, benign_recall_all_state=NAN)]


CELL = ("dirichlet_03", "badnets")


def test_who_is_rejected(question: list[VectorLine]) -> None:
    row = rows_of(rejected(question, PLAN))[CELL]
    assert list(row.values())[2:5] == ["25.0 ± 0.0", "35.0 ± 0.0", "25.0 ± 0.0"]
    assert row["difference"] == "-10.0" and row["p"] == "0.031" and row["n"] == "6" and row["effect g"] == "-"
    others = rows_of(rejected(question, PLAN))
    assert (
        others["iid", "none"]["n"] == "0 (5 not run, 1 undefined)" and others["iid", "badnets"]["n"] == "0 (6 not run)"
    )
    assert rows_of(agreement(question, PLAN))[CELL]["agreement"] == "0.80 ± 0.00"
    assert rows_of(caught(question, PLAN))[CELL]["difference"] == "+50.0"
    assert ("iid", "none") not in rows_of(caught(question, PLAN))


def test_skew_with_size_held_fixed(question: list[VectorLine]) -> None:
    """r = 0.6, and 0.8 with size, which skew has nothing to do with: 0.6 / sqrt(1 - 0.64) = 1."""
    assert rows_of(who(question, PLAN))[CELL]["difference"] == "+0.00"
    row = rows_of(size(question, PLAN))[CELL]
    assert row["`weights_only`, size fixed"].startswith("1.00") and row["`all_state`, size fixed"].startswith("0.60")


def test_what_became_of_the_runs_that_each_defended(question: list[VectorLine]) -> None:
    row = rows_of(defended(question, PLAN, "ma"))[CELL]
    assert row["`fedavg` %"] == "70.0 ± 0.0" and row["difference"] == "+10.0"
    assert row["p"] == "n = 5: no test" and row["n"] == "5 (1 unfinished)"
    assert list(rows_of(backdoored(question, PLAN))[CELL].values())[2:] == [
        "6 of 6 [61, 100] %",
        "0 of 6 [0, 39] %",
        "0 of 5 [0, 43] %",
        "5 (1 unfinished)",
    ]
    assert through({0: NAN}) == "-"


def test_shares_of_the_blocks(question: list[VectorLine]) -> None:
    shares = list(rows_of(blocks(question, PLAN))[CELL].values())[2:]
    assert shares == [*(f"{share}.0 ± 0.0" for share in (30, 10, 20, 40, 25)), "6"]


def test_the_control_has_a_row_for_each_norm() -> None:
    plan = {"seed": ("0",), "norm": ("batch", "none"), "defense": PLAN["defense"]}
    runs = [vector(norm="none", benign_recall_weights_only=0.75, benign_recall_all_state=0.75, floor=0.25)]
    _, batch, none = rejected(runs, plan)
    assert batch[-1] == "0 (1 not run)" and none[:5] == ["none", "25.0", "25.0", "25.0", "+0.0"]


def test_presets_by_hand() -> None:
    """Sets {0, 1, 2} and {1, 2, 3} have the index 2 / 4; then {0} and {0}: 1, mean 0.75."""
    plan = {"seed": ("0", "1"), "defense": ("flame_a", "flame_b", "flame_c")}
    runs = [
        line(PresetLine, defense=f"flame_{name}", ma=0.5, ba=0.0, agreement_weights_only=0.6, accepted_sets=sets)
        for name, sets in (("a", "1110 1000"), ("b", "0111 1000"))
    ]
    _, a, _, c = presets(runs, plan)
    assert a == ["`flame_a`", "50.0", "0.0", "-", "-", "0.60", "-", "1 (1 not run)"] and c[-1] == "0 (2 not run)"
    assert preset_pairs(runs, plan) == [
        ["", "1", "2", "3"],
        ["1 `flame_a`", "-", "0.50", "not run"],
        ["2 `flame_b`", "0.75", "-", "not run"],
        ["3 `flame_c`", "not run", "not run", "-"],
    ]
    assert np.isnan(runs[0].agreement_all_state)
