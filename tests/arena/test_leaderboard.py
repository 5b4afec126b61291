"""`python -m flame.arena`: the page and the figure that are made of the lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
from boards import LINES, line, table

from flame.arena.__main__ import main
from flame.arena.board import heat
from flame.arena.figure import draw_heat
from flame.arena.lines import CONTROL, csv_of

PAGE = "# Board\n\n<!-- board -->\nold\n<!-- end: board -->\n\n<!-- fashion -->\n<!-- end: fashion -->\nAfter.\n"
TUNED = "<!-- tuned -->\nold\n<!-- end: tuned -->\n"
ATTACKS = "<!-- vectors -->\nold\n<!-- end: vectors -->\n"


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


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the test's own, in which `LINES` hold whole rows."""
    for folder in ("results/arena", "docs/figures", "docs/evidence"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "docs" / "leaderboard.md").write_text(PAGE)
    (tmp_path / "docs" / "evidence" / "later_attacks.md").write_text(ATTACKS)
    (tmp_path / "docs" / "evidence" / "tuned_defenses.md").write_text(TUNED)
    plan = {"seed": ("0",), "partition": ("iid",), "attack": ("none", "badnets", "alie")}
    control = {**plan, "attack": ("cerp",)}
    of = {CONTROL: SimpleNamespace(plan=control)}
    monkeypatch.setattr("flame.arena.contest.recipe", lambda defense, _: of.get(defense, SimpleNamespace(plan=plan)))
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
    other = place / "docs" / "evidence" / "later_attacks.md"
    assert "`flame_all_state`: admitted %" in other.read_text()  # of averaging's lines, where no vector has a row
    assert "3 runs; seed 0" in other.read_text()
    other.write_text(ATTACKS)
    assert main(["--check"], place) == 1 and page.read_text() == text


def test_one_page_holds_the_boards_of_two_parts(place: Path) -> None:
    fill(place, *LINES.to_dict("records"))
    (place / "results" / "arena" / "fashion").mkdir()
    other = LINES[LINES["defense"] != "krum"]
    (place / "results" / "arena" / "fashion" / "fedavg.csv").write_text(csv_of(other))
    assert main([], place) == 0 and main(["--check"], place) == 0
    first, second = (place / "docs" / "leaderboard.md").read_text().split("<!-- end: board -->")
    assert "6 runs" in first and "| 1 | krum |" in first
    assert f"{len(other)} runs" in second and "| 1 | fedavg |" in second


def test_a_row_of_a_processor_that_rounds_alike_is_not_marked(place: Path) -> None:
    lines = [{**one, "processor": "two"} if one["defense"] == "krum" else one for one in LINES.to_dict("records")]
    fill(place, *lines)
    page = place / "docs" / "leaderboard.md"
    assert main([], place) == 0 and "krum ‡" in page.read_text()
    (again := place / "results" / "arena" / "again").mkdir()
    (again / "fedavg.csv").write_text(csv_of(LINES[LINES["defense"] == "fedavg"].assign(processor="two")))
    assert main([], place) == 0 and "‡" not in page.read_text()
    (again / "fedavg.csv").write_text("")
    assert main(["--check"], place) == 1


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
