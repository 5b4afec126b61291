"""The arena's other part: which setting of a defense is its best, on a seed that no row has."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from boards import line, table
from hydra import initialize_config_dir

from flame.arena.board import board, tuned
from flame.arena.contest import PARTS, fixed, other_contest, published, recipe
from flame.arena.entry import beside, forecast
from flame.arena.lines import CONTROL, LINES, REFERENCE, csv_of
from flame.run.compose import CONF
from flame.run.config import plain

PEACE = line(REFERENCE, "none", 0.9)
AVERAGING = line(REFERENCE, "badnets", 0.9, 1.0)
SETTINGS = [
    line(f"krum{settings}", attack, ma, ba)
    for settings, ba in (("", 0.4), (" keep=2", 0.1))
    for attack, ma in (("none", 0.8), ("badnets", 0.9), ("dba", 0.85))
]
OTHERS = [line("afa xi=2", "none", 0.9), line("afa xi=2", "badnets", 0.9, 0.3)]


def test_it_is_the_contest_on_fewer_runs_of_another_seed() -> None:
    ours, rows = recipe(part="tune").plan, recipe().plan
    assert not set(ours["seed"]) & set(rows["seed"])
    assert all(set(ours[key]) <= set(rows[key]) for key in ("attack", "partition"))
    assert recipe(CONTROL, "tune").plan["seed"] == ours["seed"]
    for attack in ours["attack"]:
        configs = (fixed(recipe(part=part).config, attack, "dirichlet_03") for part in ("row", "tune"))
        one, other = (plain(config, resolve=False) for config in configs)
        one.pop("seed"), other.pop("seed")
        assert one == other


@pytest.mark.usefixtures("compose")
@pytest.mark.parametrize(("defense", "part"), [(defense, part) for defense in ("", CONTROL) for part in PARTS])
def test_a_sweep_knows_which_part_it_is_of(defense: str, part: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = hydra.compose(recipe(defense, part).config, return_hydra_config=True)
    assert whole.hydra.callbacks.sweep.part == part


def test_its_seed_is_of_its_contest_and_not_of_the_rows() -> None:
    assert other_contest(["seed=100"], "tune") is None and other_contest(["seed=100"], "row") == "seed=100"
    assert other_contest(["seed=0"], "tune") == "seed=0"
    assert other_contest(["defense.keep=1", "attack=cerp"], "tune") is None
    assert other_contest(["attack=lp"], "tune") == "attack=lp"  # of the rows


def test_settings_of_a_defense_stand_in_one_line_the_best_first() -> None:
    found = tuned(table(PEACE, AVERAGING, *SETTINGS, *OTHERS)).to_dict("records")
    assert [one["defense"] for one in found] == ["krum", "afa"]
    assert found[0]["settings: worst damage %"] == "keep=2: 10.0; default: 40.0"
    assert (found[0]["mean damage %"], found[0]["price %"], found[0]["the best: by"]) == ("10.0", "10.0", "badnets")
    assert found[1]["settings: worst damage %"] == "xi=2: 30.0" and found[1]["price %"] == "0.0"


def test_a_setting_of_another_processor_is_marked() -> None:
    other = [one | {"processor": "q"} for one in OTHERS]
    assert [*tuned(table(PEACE, AVERAGING, *SETTINGS, *other))["defense"]] == ["krum", "afa ‡"]


def test_one_s_own_settings_are_printed_beside_averaging_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.arena.entry.LINES", tmp_path)
    monkeypatch.setattr("flame.arena.contest.amiss", lambda row, plan: "")
    (tmp_path / "tune").mkdir()
    control = line(CONTROL, "cerp", 0.9, 0.2)
    (tmp_path / "tune" / "all.csv").write_text(csv_of(table(PEACE, AVERAGING, control, *OTHERS)))
    (mine := tmp_path / "mine.csv").write_text(csv_of(table(*SETTINGS)))
    text = beside({"krum": mine}, "tune")
    assert text.index("krum keep=2") < text.index("krum <-") < text.index(REFERENCE) and "afa" not in text


def test_a_forecast_is_of_runs_of_the_same_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.arena.entry.LINES", tmp_path)
    (tmp_path / "fashion").mkdir()
    for file, seconds in (("all.csv", 10.0), ("fashion/all.csv", 40.0)):
        (tmp_path / file).write_text(csv_of(table(PEACE).assign(run_seconds=seconds)))
    said = {part: forecast(8, 2, part) for part in PARTS}
    assert "about 40 s" in said["row"] and "about 3 min" in said["fashion"]  # 8 runs of 10 and 40 s, two at a time
    assert "no row is on the board yet: --estimate" in said["tune"]


# what is published


def test_a_row_of_other_settings_is_of_those_that_were_best_on_the_other_seed() -> None:
    ranked, rows = board(published(LINES, "tune"))["defense"], {*published(LINES, "row")["defense"]}
    best = ranked.groupby(ranked.str.partition(" ")[0], sort=False).first()  # the smallest worst damage is first
    assert {name for name in rows if " " in name} <= {*best}
