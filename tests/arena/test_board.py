"""The arena's board by hand: worst cases, ranks and marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from boards import LINES, PEACE, line, table

from flame.arena.board import board, printed, shown, vectors
from flame.arena.lines import CONTROL
from flame.report.statistics import half_width


def test_the_worst_case_is_of_means_over_seeds_and_has_an_interval() -> None:
    lines = [line("fedavg", "none", 0.9, seed=seed) for seed in range(3)]
    lines += [line("krum", "badnets", 0.9, ba, seed=seed) for seed, ba in enumerate((0.9, 0.0, 0.0))]
    lines += [line("krum", "dba", 0.9, ba, seed=seed) for seed, ba in enumerate((0.4, 0.5, 0.6))]
    worst = board(table(*lines)).set_index("defense").loc["krum"]
    assert (worst["attack"], worst["worst"]) == ("dba", pytest.approx(0.5))  # badnets' mean is 0.3
    assert worst["half"] == pytest.approx(half_width(np.array([0.4, 0.5, 0.6])))


def test_the_board_ranks_by_the_worst_case_and_peace_is_no_attack() -> None:
    ranked = board(LINES)
    assert ranked["defense"].tolist() == ["krum", "fedavg"]
    krum = ranked.iloc[0]
    assert (krum["worst"], krum["attack"], krum["partition"]) == (pytest.approx(0.15), "alie", "iid")
    assert krum["price"] == pytest.approx(0.1) and krum["mean"] == pytest.approx((0.11 + 0.15) / 2)
    assert (krum["gained"], krum["ma"], krum["seconds"]) == (0.05, 0.75, 0.5)


def test_of_two_that_are_broken_the_one_that_is_broken_less_often_is_first() -> None:
    averaging = [line("fedavg", attack, 0.9, 1.0) for attack in ("badnets", "dba")]
    ranked = board(table(PEACE, *averaging, line("krum", "badnets", 0.9, 1.0), line("krum", "dba", 0.9, 0.0)))
    assert ranked["defense"].tolist() == ["krum", "fedavg"] and ranked["worst"].tolist() == [1.0, 1.0]


def test_one_bad_case_outweighs_a_better_mean() -> None:
    once = [line("krum", "badnets", 0.9, 0.8), line("krum", "dba", 0.9, 0.0)]
    always = [line("afa", attack, 0.9, 0.5) for attack in ("badnets", "dba")]
    averaging = [line("fedavg", attack, 0.9, 1.0) for attack in ("badnets", "dba")]
    ranked = board(table(PEACE, *once, *always, *averaging))
    assert ranked["defense"].tolist() == ["afa", "krum", "fedavg"]
    assert ranked["mean"].tolist() == pytest.approx([0.5, 0.4, 1.0])


def marked(*lines: Mapping[str, Any]) -> list[str]:
    return [name.removesuffix(" ‡") for name in shown(board(table(*lines)))["defense"] if name.endswith("‡")]


@pytest.mark.parametrize("column", ["code", "processor"])
def test_a_row_is_marked_where_a_line_is_of_other_code_or_processor_than_the_one_beside_it(column: str) -> None:
    """Not where the defense has as many kinds of lines as averaging has."""
    old, new = {column: "old"}, {column: "new"}
    mine = [line("krum", "badnets", 0.9, 0.1, **old), line("krum", "badnets", 0.9, 0.1, seed=1, **new)]
    averaging = [line("fedavg", "none", 0.9, **new), line("fedavg", "none", 0.9, seed=1, **old)]
    assert marked(*averaging, *mine) == ["krum"]
    assert marked(*swapped(averaging), *mine) == []


def swapped(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with their seeds exchanged."""
    return [one | {"seed": 1 - one["seed"]} for one in lines]


def test_marks_of_the_control_and_of_averaging() -> None:
    learned, control = line("krum", "cerp", 0.9, 0.8, code="a"), line(CONTROL, "cerp", 0.9, 0.6, code="b")
    peace = line("fedavg", "none", 0.9, code="a")
    assert marked(peace, learned, control) == ["krum"] and marked(peace, learned, control | {"code": "a"}) == []
    assert marked(peace, line("fedavg", "badnets", 0.9, 0.1, code="a"), learned, control | {"code": "a"}) == []
    assert marked(peace, line("fedavg", "badnets", 0.9, 0.1, seed=0, code="b")) == ["fedavg"]
    seconds = [line("fedavg", name, 0.9, 0.1, seed=1, code="b") for name in ("none", "badnets")]
    assert marked(peace, *seconds) == ["fedavg"]  # each beside its own, but a mean of two codes


def test_a_new_row_is_marked_where_the_board_is_printed() -> None:
    text = printed(board(LINES), ["krum"])
    assert [row.split()[:3] for row in text.splitlines()[2:]] == [["1", "krum", "<-"], ["2", "fedavg", "97.0"]]


def test_both_vectors_stand_beside_averaging_and_what_did_most_to_one_of_them_is_first() -> None:
    lines = [PEACE, *(line("fedavg", attack, 0.9, 1.0) for attack in ("badnets", "dba"))]
    lines += [
        line("flame_weights_only", a, 0.9, ba, malicious_recall=1 - ba) for a, ba in (("badnets", 0.2), ("dba", 0.1))
    ]
    lines += [line("flame_all_state", a, 0.9, ba, malicious_recall=0.0) for a, ba in (("badnets", 0.1), ("dba", 0.4))]
    assert vectors(table(*lines)).to_numpy().tolist() == [
        ["dba", "iid", "100.0", "10.0", "10.0", "40.0", "100.0"],
        ["badnets", "iid", "100.0", "20.0", "20.0", "10.0", "100.0"],
    ]
    assert vectors(LINES).empty
