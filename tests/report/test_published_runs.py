"""Whose runs a table takes: its recipe's own, whatever else lies in the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from test_published import cells, record, run

from flame.report.admissions import AttackLine
from flame.report.published import publish
from flame.report.recipes import options, own_identity
from flame.report.records import Line, read
from flame.report.setting_tables import SettingLine
from flame.run.folder import IDENTITY, read_json
from flame.run.trackers.files import CONFIG, ENVIRONMENT, SUMMARY, write_json


def trial(place: Path, rate: float, epochs: int | None) -> None:
    """A run of figure_pdr (two epochs) or figure_pdr_equal (None), in fewer rounds than either recipe has."""
    run(place, attack="badnets", defense="fedavg")
    config = yaml.safe_load((place / CONFIG).read_text())
    attack = {"poisoned_data_rate": rate, "epochs": epochs}
    (place / CONFIG).write_text(yaml.safe_dump(config | {"attack": attack, "rounds": 3}))


def test_runs_with_other_options_than_the_recipe_s_are_left_out(tmp_path: Path) -> None:
    """Another partition, another data set, another seed, a defense that is not ranked."""
    (tmp_path / "README.md").write_text("<!-- table: strongest -->\n\n<!-- end: strongest -->\n")
    own = {"seed": 100, "dataset": "digits", "partition": "dirichlet_05", "defense": "krum"}
    others = [{"partition": "dirichlet_03"}, {"dataset": "mnist"}, {"seed": 0}, {"defense": "fedavg"}]
    for number, changed in enumerate([{}, *others]):
        run(tmp_path / "runs" / str(number), **own | changed)
    publish("strongest", cells(tmp_path / "runs"), tmp_path)
    (kept,) = read(tmp_path / "results" / "strongest.csv", AttackLine)
    assert (kept.seed, kept.partition, kept.defense) == (100, "dirichlet_05", "krum")
    assert options("strongest_digits") == {"dataset": "digits", "partition": "dirichlet_05", "model": "resnet8"}
    assert options("norms")["attack"] == "badnets"  # the default: other recipes attack otherwise, or not at all


def test_of_two_runs_of_one_cell_the_one_with_the_recipe_s_own_settings_is_taken(elsewhere: Path) -> None:
    """The folder runs/ holds every recipe's: `norms` adds runs to the cells of `vector_question`."""
    for name, alpha in (("a", 0.5), ("b", 0.1)):
        run(elsewhere / "runs" / name, attack="dba", alpha=alpha)
    with pytest.raises(ValueError, match=r"table attacks: several runs of \('dba', 'fedavg', 0\)"):
        publish("attacks", cells(elsewhere / "runs"), elsewhere)
    own = own_identity("table_attacks", record())
    write_json(elsewhere / "runs" / "b" / IDENTITY, {"identity": own})
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    (kept,) = read(elsewhere / "results" / "attacks.csv", Line)
    assert kept.identity == own


@pytest.mark.parametrize(("key", "value"), [("clients", 7), ("poisoned_model_rate", 0.4), ("train_samples", 99)])
def test_a_run_in_another_federation_is_left_out(tmp_path: Path, key: str, value: float) -> None:
    """Alone or beside the recipe's own: its numbers are of something else, whatever its parts are."""
    trial(tmp_path / "runs" / "a", 0.5, 2)
    path = tmp_path / "runs" / "a" / CONFIG
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"{key} is {value}, and .* in conf/figure_pdr.yaml"):
        publish("figure_pdr", cells(tmp_path / "runs"), tmp_path)
    assert not (tmp_path / "results").exists()


def test_runs_whose_attack_is_set_otherwise_are_left_out(tmp_path: Path) -> None:
    """Recipes that differ in a setting share the folder runs/: neither fills the cells that the other lacks."""
    trial(tmp_path / "runs" / "a", 0.5, 2)
    trial(tmp_path / "runs" / "b", 0.1, None)
    for table, rate in (("figure_pdr", "0.5"), ("figure_pdr_equal", "0.1")):
        (tmp_path / "RESULTS.md").write_text(f"<!-- table: {table} -->\n\n<!-- end: {table} -->\n")
        publish(table, cells(tmp_path / "runs"), tmp_path)
        found = read(tmp_path / "results" / f"{table}.csv", SettingLine)
        assert [(line.poisoned_data_rate, line.rounds) for line in found] == [(rate, 3)]


def test_how_other_recipes_set_an_attack_is_not_in_its_name(elsewhere: Path) -> None:
    """Where they share a folder, the report tells runs apart by such settings; a table has its recipe's alone."""
    for name, epochs in (("a", 2), ("b", None)):
        run(elsewhere / "runs" / name, attack="badnets")
        config = yaml.safe_load((elsewhere / "runs" / name / CONFIG).read_text())
        (elsewhere / "runs" / name / CONFIG).write_text(yaml.safe_dump(config | {"attack": {"epochs": epochs}}))
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    assert [line.attack for line in read(elsewhere / "results" / "attacks.csv", Line)] == ["badnets"]


def test_runs_of_another_recipe_alone_are_refused_and_the_table_stays(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text("<!-- table: figure_pdr -->\n\n<!-- end: figure_pdr -->\n")
    trial(tmp_path / "own", 0.5, 2)
    trial(tmp_path / "other" / "b", 0.5, None)
    publish("figure_pdr", cells(tmp_path / "own"), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"table figure_pdr: no .*; b: attack.epochs is null, and 2 in conf/figure_pdr"
    ):
        publish("figure_pdr", cells(tmp_path / "other"), tmp_path)
    run(tmp_path / "fedavg", attack="none", defense="fedavg")
    with pytest.raises(ValueError, match=r"table figure_pdr: no run is one of `train.py --config-name figure_pdr`$"):
        publish("figure_pdr", cells(tmp_path / "fedavg"), tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_a_trial_in_other_rounds_takes_no_published_run_s_place(elsewhere: Path) -> None:
    """With `add`: the recipe's own run does, if it is made again; where none was finished, the trial stands in.

    Nor does what uncommitted code made.
    """

    def added(name: str, state: str, own: bool, dirty: bool = False) -> str:
        run(elsewhere / name / "a", attack="dba")
        environment = read_json(elsewhere / name / "a" / ENVIRONMENT)
        write_json(elsewhere / name / "a" / ENVIRONMENT, {**environment, "dirty": dirty})
        summary = read_json(elsewhere / name / "a" / SUMMARY)
        write_json(elsewhere / name / "a" / SUMMARY, {**summary, "state_sha256": state})
        if own:
            write_json(elsewhere / name / "a" / IDENTITY, {"identity": own_identity("table_attacks", record())})
        left_out = publish("attacks", cells(elsewhere / name), elsewhere, add=True)
        (line,) = read(elsewhere / "results" / "attacks.csv", Line)
        assert [words.split(" is left out")[0] for words in left_out] == (
            [] if line.state_sha256 == state else ["table attacks: dba fedavg 0"]
        )
        return line.state_sha256

    assert added("trial", "01", own=False) == "01"
    assert added("second trial", "02", own=False) == "01"
    assert added("own, of uncommitted code", "03", own=True, dirty=True) == "01"
    assert added("own", "03", own=True) == "03"
    assert added("third trial", "04", own=False) == "03"
    assert added("own again", "05", own=True) == "05"
    assert added("own, unfinished", "", own=True) == "05"


@pytest.mark.parametrize("table", ["norms", "presets"])
def test_a_run_without_shadow_verdicts_is_left_out_and_named(tmp_path: Path, table: str) -> None:
    run(tmp_path / "runs" / "bare", attack="badnets", defense="flame_weights_only", partition="dirichlet_03", alpha=0.3)
    path = tmp_path / "runs" / "bare" / "acceptance.csv"
    path.write_text("round,client,compromised,samples,accepted\n0,1,0,9,1\n")
    config = tmp_path / "runs" / "bare" / CONFIG
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"shadow": [], "model": {"norm": "batch"}}))
    with pytest.raises(ValueError, match=rf"table {table}: no run .*; bare: shadow is \[\], and \["):
        publish(table, cells(tmp_path / "runs"), tmp_path)
    assert not (tmp_path / "results").exists()
