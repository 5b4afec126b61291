"""The arena's board by hand: damage, worst cases, ranks, and lines that are no lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from flame.arena.__main__ import main
from flame.arena.board import board, cells, damages, heat, printed, shown
from flame.arena.figure import draw_heat
from flame.arena.lines import COLUMNS, CONTROL, VERSION, csv_of, lacking, read
from flame.report.statistics import half_width

NAN = math.nan
PAGE = "# Board\n\n<!-- board -->\nold\n<!-- end: board -->\n\nAfter.\n"


def line(defense: str, attack: str, ma: float, ba: float = NAN, seed: int = 0, **values: Any) -> dict[str, Any]:
    whole = {"version": VERSION, "partition": "iid", "server_seconds": 0.5, "commit": "0123456789", "processor": "p"}
    measured = {"defense": defense, "attack": attack, "seed": seed, "ma": ma, "ba": ba}
    return dict.fromkeys(COLUMNS, "") | dict.fromkeys(COLUMNS[5:11], NAN) | whole | measured | values


def table(*lines: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(lines), columns=COLUMNS)


PEACE = line("fedavg", "none", 0.9)
LINES = table(
    PEACE,
    line("fedavg", "badnets", 0.88, 0.97),
    line("fedavg", "alie", 0.60),
    line("krum", "none", 0.80),
    line("krum", "badnets", 0.79, 0.05),
    line("krum", "alie", 0.75),
)


def test_damage_is_the_larger_of_ba_and_the_ma_that_is_lost() -> None:
    found = damages(LINES).set_index(["defense", "attack"])["damage"]
    assert found["fedavg", "badnets"] == pytest.approx(0.97)  # not 0.02
    assert found["fedavg", "alie"] == pytest.approx(0.30)  # no BA
    assert found["krum", "badnets"] == pytest.approx(0.11)  # 0.90 - 0.79 > 0.05
    assert found["fedavg", "none"] == 0


def test_ma_above_averaging_s_is_no_loss() -> None:
    found = damages(table(PEACE, line("krum", "badnets", 0.95, 0.02)))
    assert found["lost"].tolist() == [0, 0] and found["damage"].tolist() == [0, pytest.approx(0.02)]


def test_a_learned_trigger_counts_above_what_it_does_to_a_model_that_nobody_poisoned() -> None:
    control = line(CONTROL, "a3fl", 0.9, 0.6)
    found = damages(table(PEACE, control, line("krum", "a3fl", 0.9, 0.85), line("rfa", "a3fl", 0.9, 0.5)))
    assert found.set_index("defense")["damage"].to_dict() == {"fedavg": 0, "krum": pytest.approx(0.25), "rfa": 0}
    ranked = board(table(PEACE, control, line("krum", "a3fl", 0.9, 0.85)))
    assert ranked["ba"].tolist() == pytest.approx([0.25])  # as it counts


def test_the_reference_is_of_the_same_partition_and_seed() -> None:
    other = line("fedavg", "none", 0.5, seed=1)
    found = damages(table(PEACE, other, line("krum", "alie", 0.4), line("krum", "alie", 0.4, seed=1)))
    assert found["damage"].tolist() == [0, 0, pytest.approx(0.5), pytest.approx(0.1)]
    with pytest.raises(ValueError, match="fedavg without attack lacks a partition or seed"):
        damages(table(PEACE, line("krum", "alie", 0.4, partition="dirichlet_03")))


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
    assert (krum["ba"], krum["ma"], krum["seconds"]) == (0.05, 0.75, 0.5)


def test_one_bad_case_outweighs_a_better_mean() -> None:
    once = [line("krum", "badnets", 0.9, 0.8), line("krum", "dba", 0.9, 0.0)]
    always = [line("afa", attack, 0.9, 0.5) for attack in ("badnets", "dba")]
    averaging = [line("fedavg", attack, 0.9, 1.0) for attack in ("badnets", "dba")]
    ranked = board(table(PEACE, *once, *always, *averaging))
    assert ranked["defense"].tolist() == ["afa", "krum", "fedavg"]
    assert ranked["mean"].tolist() == pytest.approx([0.5, 0.4, 1.0])


def test_a_row_of_other_code_or_another_processor_is_marked() -> None:
    for column in ("code", "processor"):
        other = LINES.assign(**{column: ["a", "a", "a", "b", "b", "b"]})
        assert [name.endswith("‡") for name in shown(board(other))["defense"]] == [True, False]
    assert not shown(board(LINES))["defense"].str.contains("‡").any()


def test_the_map_is_of_the_worse_partition_in_the_board_s_order() -> None:
    skewed = [line("fedavg", "none", 0.9, partition="skew"), line("krum", "badnets", 0.9, 0.7, partition="skew")]
    found = heat(table(*LINES.to_dict("records"), *skewed))
    assert list(found.index) == ["krum", "fedavg"] and list(found.columns) == ["badnets", "alie", "none"]
    assert found.loc["krum", "badnets"] == pytest.approx(0.7)


def test_the_figure_shows_every_number(tmp_path: Path) -> None:
    draw_heat(heat(LINES), tmp_path / "a.png")
    draw_heat(heat(LINES).replace(heat(LINES).loc["fedavg", "badnets"], 0.0), tmp_path / "b.png")
    one, other = (matplotlib.image.imread(tmp_path / name) for name in ("a.png", "b.png"))
    assert one.shape == other.shape and (one != other).any()


def test_cells_of_one_seed_have_no_interval() -> None:
    assert cells(LINES)["half"].isna().all() and " ± " not in printed(board(LINES))


def test_a_new_row_is_marked_where_the_board_is_printed() -> None:
    text = printed(board(LINES), ["krum"])
    assert [row.split()[:3] for row in text.splitlines()[2:]] == [["1", "krum", "<-"], ["2", "fedavg", "97.0"]]


def test_lines_are_written_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv_of(LINES))
    back = read([tmp_path / "a.csv"])
    assert board(back).equals(board(back)) and back["ba"].isna().sum() == LINES["ba"].isna().sum()
    assert csv_of(back) == csv_of(LINES)
    assert read([]).empty


def test_lines_of_another_contest_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(csv_of(LINES.assign(version=VERSION + 1)))
    with pytest.raises(ValueError, match=f"is of version {VERSION + 1} of the arena, and this is {VERSION}"):
        read([file])
    file.write_text(csv_of(LINES))
    with pytest.raises(ValueError, match="two lines of fedavg alie iid 0"):
        read([file, file])
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="its columns are not version, defense"):
        read([file])


def test_what_a_row_lacks() -> None:
    plan = {"seed": ["0", "1"], "partition": ["iid"], "attack": ["none", "alie"]}
    assert lacking(LINES[LINES["defense"] == "krum"], plan) == [
        "attack=none partition=iid seed=1",
        "attack=alie partition=iid seed=1",
    ]


def test_the_page_is_made_of_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("results/arena", "docs/figures"):
        (tmp_path / folder).mkdir(parents=True)
    (page := tmp_path / "docs" / "leaderboard.md").write_text(PAGE)
    assert main([], tmp_path) == 1 and "holds no row" in capsys.readouterr().err
    (tmp_path / "results" / "arena" / "all.csv").write_text(csv_of(LINES))
    assert main(["--check"], tmp_path) == 1 and page.read_text() == PAGE
    assert main([], tmp_path) == 0 and (tmp_path / "docs" / "figures" / "arena.png").exists()
    text = page.read_text()
    assert "| 1 | krum | 15.0 | alie, iid |" in text and "6 runs; seed 0; commit 0123456." in text
    assert text.startswith("# Board\n") and text.endswith("After.\n") and "old" not in text
    assert main(["--check"], tmp_path) == 0
