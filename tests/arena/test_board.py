"""The arena's board by hand: damage, worst cases, ranks, and lines that are no lines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from flame.arena.__main__ import main
from flame.arena.board import board, cells, compared, heat, printed, shown
from flame.arena.figure import draw_heat
from flame.arena.lines import COLUMNS, CONTROL, VERSION, csv_of, read
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


def damages(*lines: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Of each defense under each attack."""
    found: dict[tuple[str, str], float] = cells(table(*lines)).set_index(["defense", "attack"])["damage"].to_dict()
    return found


def seeds(defense: str, attack: str, ma: list[float], ba: list[float], **values: Any) -> list[dict[str, Any]]:
    pairs = enumerate(zip(ma, ba, strict=True))
    return [line(defense, attack, m, b, seed=seed, **values) for seed, (m, b) in pairs]


def test_damage_is_the_larger_of_ba_and_the_ma_that_is_lost() -> None:
    found = damages(*LINES.to_dict("records"))
    assert found["fedavg", "badnets"] == pytest.approx(0.97)  # not 0.02
    assert found["fedavg", "alie"] == pytest.approx(0.30)  # no BA
    assert found["krum", "badnets"] == pytest.approx(0.11)  # 0.90 - 0.79 > 0.05
    assert found["fedavg", "none"] == 0


def test_ma_above_averaging_s_is_no_loss() -> None:
    found = damages(PEACE, line("krum", "badnets", 0.95, 0.02), line("krum", "alie", 0.95))
    assert found["krum", "badnets"] == pytest.approx(0.02) and found["krum", "alie"] == 0


def test_noise_around_the_reference_is_no_damage() -> None:
    """Gains and losses of single seeds cancel before what is below 0 becomes 0."""
    averaging = seeds("fedavg", "none", [0.9] * 3, [NAN] * 3)
    lost = damages(*averaging, *seeds("krum", "alie", [0.88, 0.92, 0.9], [NAN] * 3))
    assert lost["krum", "alie"] == pytest.approx(0, abs=1e-9)  # not 0.02 / 3
    control = seeds(CONTROL, "cerp", [0.9] * 3, [0.5, 0.3, 0.4])
    gained = [*averaging, *control, *seeds("krum", "cerp", [0.9] * 3, [0.3, 0.6, 0.4])]
    assert damages(*gained)["krum", "cerp"] == pytest.approx(0.1 / 3)  # of -0.2, 0.3 and 0; not 0.1
    half = cells(table(*gained)).set_index(["defense", "attack"])["half"]["krum", "cerp"]
    assert half == pytest.approx(half_width(np.array([-0.2, 0.3, 0.0])))
    assert board(table(*averaging, *seeds("krum", "none", [0.95] * 3, [NAN] * 3), *gained[3:]))["price"][0] == 0


def test_the_larger_mean_is_the_damage() -> None:
    """Not the mean of what is larger in each seed."""
    averaging = seeds("fedavg", "none", [0.9] * 2, [NAN] * 2)
    found = damages(*averaging, *seeds("krum", "badnets", [0.9, 0.5], [0.6, 0.0]))
    assert found["krum", "badnets"] == pytest.approx(0.3)  # BA 0.3, lost 0.2; not (0.6 + 0.4) / 2


def test_a_learned_trigger_counts_above_what_it_does_to_a_model_that_nobody_poisoned() -> None:
    control = line(CONTROL, "cerp", 0.9, 0.6)
    found = damages(PEACE, control, line("krum", "cerp", 0.9, 0.85), line("rfa", "cerp", 0.9, 0.5))
    assert found["krum", "cerp"] == pytest.approx(0.25) and found["rfa", "cerp"] == 0
    ranked = board(table(PEACE, control, line("krum", "cerp", 0.9, 0.85)))
    assert shown(ranked)["worst BA gained %"].tolist() == ["25.0"]


@pytest.mark.parametrize("there", [[], [line(CONTROL, "iba", 0.9, 0.6)], [line(CONTROL, "cerp", 0.9, 0.6, seed=1)]])
def test_a_learned_trigger_without_its_control_is_no_gain_to_count(there: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"the control lacks .*: run recipe/arena/control first"):
        board(table(PEACE, line("krum", "cerp", 0.9, 0.85), *there))


def test_the_reference_is_of_the_same_partition_and_seed() -> None:
    other = line("fedavg", "none", 0.5, seed=1)
    found = compared(table(PEACE, other, line("krum", "alie", 0.4), line("krum", "alie", 0.4, seed=1)))
    assert found["lost"].tolist() == pytest.approx([0, 0, 0.5, 0.1])
    for lines in ([PEACE, line("krum", "alie", 0.4, partition="dirichlet_03")], [line(CONTROL, "cerp", 0.9, 0.6)]):
        with pytest.raises(ValueError, match="fedavg without attack lacks a partition or seed"):
            board(table(*lines))


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
    assert board(back).equals(board(LINES)) and back["ba"].isna().sum() == LINES["ba"].isna().sum()
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv: No columns to parse"),
        (csv_of(LINES).replace("0.6,", ",", 1), "a.csv has no MA of fedavg alie iid 0"),
        (csv_of(LINES).replace("0.6,", "high,", 1), "a.csv: "),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read([tmp_path / "a.csv"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the test's own, in which `LINES` hold whole rows."""
    for folder in ("results/arena", "docs/figures"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "docs" / "leaderboard.md").write_text(PAGE)
    plan = {"seed": ("0",), "partition": ("iid",), "attack": ("none", "badnets", "alie")}
    control = {**plan, "attack": ("cerp",)}
    of = {CONTROL: SimpleNamespace(plan=control)}
    monkeypatch.setattr("flame.arena.contest.recipe", lambda defense: of.get(defense, SimpleNamespace(plan=plan)))
    return tmp_path


def fill(place: Path, *lines: Mapping[str, Any]) -> None:
    (place / "results" / "arena" / "all.csv").write_text(csv_of(table(*lines)))


def test_the_page_is_made_of_the_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = place / "docs" / "leaderboard.md"
    assert main([], place) == 1 and "holds no row" in capsys.readouterr().err
    fill(place, *LINES.to_dict("records"))
    assert main(["--check"], place) == 1 and page.read_text() == PAGE
    assert main([], place) == 0 and (place / "docs" / "figures" / "arena.png").exists()
    text = page.read_text()
    assert "| 1 | krum | 15.0 | alie, iid |" in text and "6 runs; seed 0; commit 0123456." in text
    assert text.startswith("# Board\n") and text.endswith("After.\n") and "old" not in text
    assert main(["--check"], place) == 0


def test_a_figure_that_was_left_behind_is_seen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(place, *LINES.to_dict("records"))
    assert main([], place) == 0 and main(["--check"], place) == 0
    draw_heat(heat(LINES) / 2, figure := place / "docs" / "figures" / "arena.png")
    assert main(["--check"], place) == 1 and "docs/figures/arena.png" in capsys.readouterr().out
    figure.write_bytes(b"")
    assert main(["--check"], place) == 1
    figure.unlink()
    assert main(["--check"], place) == 1


@pytest.mark.parametrize("page", ["# Board\n", PAGE + PAGE])
def test_a_page_without_a_place_for_the_board_is_refused(
    place: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "docs" / "leaderboard.md").write_text(page)
    fill(place, *LINES.to_dict("records"))
    for words in ([], ["--check"]):
        assert main(words, place) == 1 and "<!-- board -->" in capsys.readouterr().err
    assert (place / "docs" / "leaderboard.md").read_text() == page


def test_only_whole_rows_are_ranked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A defense does not win by its worst attack left out, nor averages it away by more of the mild ones."""
    whole = LINES.to_dict("records")
    for lines, said in (
        (whole[:-1], "krum has no whole row .*lacks 1 runs, first attack=alie partition=iid seed=0"),
        ([*whole, line("krum", "dba", 0.9, 0.0)], "krum .*has 1 runs too many, first attack=dba"),
        ([*whole, line(CONTROL, "iba", 0.9, 0.0)], "control .*lacks 1 runs, first attack=cerp .*1 runs too many"),
        ([line(CONTROL, "cerp", 0.9, 0.0)], "fedavg without attack lacks a partition or seed"),
    ):
        fill(place, *lines)
        assert main([], place) == 1 and re.search(said, capsys.readouterr().err), said
    assert (place / "docs" / "leaderboard.md").read_text() == PAGE


def test_the_published_page_and_figure_are_of_the_published_lines() -> None:
    assert main(["--check"]) == 0
