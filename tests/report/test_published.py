"""The tables of the documents are what results/ says, and results/ is what run folders say."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml  # type: ignore[import-untyped]
from test_report import write_run
from test_tables import line

from flame.arena.contest import PARTS
from flame.report.contrasts import Text
from flame.report.markup import comma_separated, latex, markdown, write
from flame.report.published import ROOT, caption, documents, outdated, planned, publish
from flame.report.published import write as put
from flame.report.recipes import recipes, tables
from flame.report.records import COLUMNS, PLACE, csv_of, frame, parsed, read
from flame.run import compose
from flame.run.folder import read_json
from flame.run.record import Cell, find_runs, gather, read_run
from flame.run.trackers.files import CONFIG, ENVIRONMENT, SUMMARY, write_json

KNOWN = recipes()
TABLES = tables(KNOWN)
PROTOCOLS = {path.stem for path in (ROOT / "conf/recipe/protocols").glob("*.yaml")}
ARENA = {"arena", *PARTS, *PARTS.values()}  # their lines are in results/arena/
NOT_RUN = {"zhmzm", "durability_fashion", *ARENA, *PROTOCOLS}  # recipes without a csv
DEFAULT = {"dataset": "fashion_mnist", "partition": "dirichlet_05"}
RECORD = "results/table_attacks.csv"


def run(folder: Path, seed: int = 0, **choices: Any) -> None:
    """A finished run of a federation as most recipes have it."""
    summary = {"eval/ma": 0.5, "eval/ba": 0.25, "filter/accepted": 4.0}
    write_run(folder, seed, summary=summary, **DEFAULT | choices)
    set_config(folder, clients_per_round=10, dataset={})
    write_json(folder / SUMMARY, {**read_json(folder / SUMMARY), "state_sha256": "0123"})


def set_config(folder: Path, **values: Any) -> None:
    config = yaml.safe_load((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(yaml.safe_dump(config | values))


def cells(folder: Path) -> list[Cell]:
    return gather(map(read_run, find_runs([folder])))


def lines(path: Path) -> list[dict[str, Any]]:
    return read(path).to_dict("records")


def marks(folder: Path, *names: str) -> None:
    """A document with places for tables."""
    (folder / "RESULTS.md").write_text("".join(f"<!-- table: {name} -->\n<!-- end: {name} -->\n" for name in names))


# what is in the project


def test_the_documents_are_up_to_date() -> None:
    assert outdated() == []


@pytest.mark.parametrize("name", KNOWN)
def test_a_recipe_s_record_is_of_its_sweep(name: str) -> None:
    """Every published line has a cell and as many rounds as the recipe; its identity is of the keys of its time."""
    path = ROOT / "results" / f"{name}.csv"
    records = lines(path)
    assert bool(records) == path.exists() == (name not in NOT_RUN)
    assert all(planned(KNOWN[name], record) for record in records)
    written = KNOWN[name].content.get("rounds")  # if it says none, the default of that time
    assert {record["rounds"] for record in records} == ({written or 28} if records else set())


def test_every_record_of_runs_has_the_same_columns_and_no_two_lines_of_a_place() -> None:
    for path in (ROOT / "results").glob("*.csv"):
        if not path.stem.startswith("bench"):
            assert path.read_text().partition("\n")[0] == ",".join(COLUMNS)
            assert path.stem not in KNOWN or not read(path).duplicated(PLACE).any()


# the record


def test_lines_survive_a_file() -> None:
    kept = [line(attack="dba", seed=2, ma=0.123456789, settings="partition.q=0.5 a.b=null"), line(attack="none")]
    text = csv_of(frame(kept))
    assert csv_of(parsed(text)) == text and text.startswith(",".join(COLUMNS))
    found = parsed(text).set_index("seed")
    assert found.at[2, "partition.q"] == "0.5" and found.at[2, "a.b"] == "null" and found.at[2, "ma"] == 0.123456789
    assert found["ba"].isna().all() and found.at[0, "settings"] == "" and found.at[0, "code"] == ""
    with pytest.raises(ValueError, match="its columns are not those of every record: extra"):
        parsed(text.replace("dataset,", "extra,dataset,", 1))


def test_a_line_of_a_run(tmp_path: Path) -> None:
    """Settings as a recipe writes them, wherever they stand in the config; averaging has no noise."""
    run(tmp_path / "a", attack="dba")
    set_config(tmp_path / "a", attack={"poisoned_data_rate": 1.0, "epochs": None}, rounds=3)
    write_json(tmp_path / "a" / ENVIRONMENT, {"commit": "1234567", "dirty": True, "code": "c0de"})
    from flame.report.records import line as line_of

    keys = ["seed", "attack", "attack.poisoned_data_rate", "attack.client.epochs", "defense.noise.factor", "rounds"]
    found = line_of(read_run(tmp_path / "a"), keys)
    assert set(found) == set(COLUMNS)
    assert found["settings"] == "attack.poisoned_data_rate=1 attack.client.epochs=null defense.noise.factor=- rounds=3"
    assert (found["ma"], found["commit"], found["code"], found["processor"]) == (0.5, "1234567+", "c0de", "")


def test_tables_are_made_of_the_digits_on_file(elsewhere: Path) -> None:
    """12.5499999999996 % is 12.5, and 12.55 with the nine digits of the file, which is 12.6: as `check` will find."""
    run(elsewhere / "runs" / "a", attack="dba")
    summary = read_json(elsewhere / "runs" / "a" / SUMMARY)
    summary["metrics"]["eval/ma"] = 0.125499999999996
    write_json(elsewhere / "runs" / "a" / SUMMARY, summary)
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    assert "| 12.6 / 25.0 |" in (elsewhere / "README.md").read_text() and outdated(elsewhere, ["table_attacks"]) == []


# from runs to documents


def test_runs_become_a_table_between_its_marks(elsewhere: Path) -> None:
    """In every document that has them, docs/ included."""
    run(elsewhere / "runs" / "a", attack="dba")
    run(elsewhere / "runs" / "b", attack="dba", defense="krum")  # of another table
    (elsewhere / "docs" / "evidence").mkdir(parents=True)
    page = elsewhere / "docs" / "evidence" / "attacks.md"
    page.write_text((elsewhere / "README.md").read_text())
    (said,) = publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    assert said.endswith("1 lines added, 0 replaced (0 with another final model), 0 kept, 0 dropped")
    text = (elsewhere / "README.md").read_text()
    assert "| dba | 50.0 / 25.0 | not run |" in text and "krum" not in text and "old\n" not in text
    assert "mean of the last 1 of 2 rounds; seed 0; commit 1234567." in text
    assert "older code" not in text
    assert text.startswith("a\n<!--") and text.endswith("-->\nb\n") and page.read_text() == text
    assert outdated(elsewhere, ["table_attacks"]) == []
    (elsewhere / "README.md").write_text(text.replace("50.0", "60.0"))
    assert [line.split()[0] for line in outdated(elsewhere, ["table_attacks"])] == ["README.md"]


def test_a_caption_names_both_codes_of_a_run_that_went_on() -> None:
    recipe = next(iter(KNOWN.values()))
    lines = pd.DataFrame([{"state_sha256": "h", "commit": "1234567+", "code": "0123456789ab+ba9876543210", "seed": 0}])
    text = caption(recipe, "what", lines.assign(rounds=1, mean_of_last=1), mixed=False)
    assert "commit 1234567+; code 0123456+ba98765." in text


def test_a_cell_that_was_tampered_with_is_found(elsewhere: Path) -> None:
    """In a table's CSV, and in the record that it is made of."""
    run(elsewhere / "runs" / "a", attack="dba")
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    for name, others in (("results/tables/attacks.csv", []), (RECORD, ["README.md", "results/tables/attacks.csv"])):
        whole = (elsewhere / name).read_text()
        (elsewhere / name).write_text(whole.replace("50.0", "51.0").replace(",0.5,", ",0.51,"))
        assert sorted(s.split()[0] for s in outdated(elsewhere, ["table_attacks"])) == (others or [name])
        (elsewhere / name).write_text(whole)


def test_a_recipe_that_was_not_run_is_a_sentence(tmp_path: Path) -> None:
    """And no file: rows of dashes tell nobody anything."""
    marks(tmp_path, "zhmzm")
    assert [sentence.split()[0] for sentence in outdated(tmp_path, ["zhmzm"])] == ["RESULTS.md"]
    from flame.report.published import derived

    ((path, text),) = derived(KNOWN, ["zhmzm"], {"zhmzm": frame([])}, tmp_path).items()
    assert path == tmp_path / "RESULTS.md"
    assert "\nNot run yet: `python train.py --config-name recipe/paper/zhmzm`, then" in text


def test_latex_is_written_when_asked_for_and_checked_from_then_on(elsewhere: Path) -> None:
    path = elsewhere / "results" / "tables" / "attacks.tex"
    run(elsewhere / "runs" / "a", attack="dba")
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    assert not path.exists()
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere, tex=True)
    assert "dba & 50.0 / 25.0 & not run" in path.read_text()
    path.write_text("changed by hand")
    assert [line.split()[0] for line in outdated(elsewhere, ["table_attacks"])] == ["results/tables/attacks.tex"]


@pytest.mark.parametrize("text", ["no table\n", "<!-- table: attacks -->\nnot closed\n"])
def test_marks_that_are_missing_leave_everything_as_it_was(elsewhere: Path, text: str) -> None:
    (elsewhere / "README.md").write_text(text)
    run(elsewhere / "runs" / "a", attack="dba")
    with pytest.raises(ValueError, match="no document has the marks <!-- table: attacks -->"):
        publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    assert not (elsewhere / "results").exists()


def test_what_no_table_makes_is_told(elsewhere: Path) -> None:
    """Of a table that was renamed or left out: it would never be compared again."""
    run(elsewhere / "runs" / "a", attack="dba")
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    (elsewhere / "results" / "tables" / "gone.csv").write_text("a\n")
    with open(elsewhere / "README.md", "a") as file:
        file.write("<!-- table: gone -->\nold\n<!-- end: gone -->\n<!-- table: defenses -->\n")
    assert outdated(elsewhere, ["table_attacks"]) == [
        "results/tables/gone.csv belongs to no recipe: delete it",
        "README.md has marks of a table gone, which does not exist: delete what is between them",
        "README.md has marks of a table defenses, which is not closed: add <!-- end: defenses -->",
    ]


# whose runs a record takes


def test_runs_of_another_sitting_are_added_and_nothing_is_lost(elsewhere: Path) -> None:
    """A seed more joins the lines that are there; an unfinished run takes no finished one's place."""
    run(elsewhere / "runs" / "a", attack="dba")
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    write_run(elsewhere / "later" / "a", summary=None, attack="dba", **DEFAULT)
    set_config(elsewhere / "later" / "a", clients_per_round=10, dataset={})
    run(elsewhere / "later" / "b", attack="badnets")
    added, left = publish("table_attacks", cells(elsewhere / "later"), elsewhere)
    assert "1 lines added, 0 replaced" in added and " 1 kept, 0 dropped" in added and "unfinished" in left
    assert [(one["attack"], one["ma"]) for one in lines(elsewhere / RECORD)] == [("badnets", 0.5), ("dba", 0.5)]
    shutil.rmtree(elsewhere / "later" / "a")
    said, dropped = publish("table_attacks", cells(elsewhere / "later"), elsewhere, drop=True)
    assert " 1 kept, 1 dropped" in said and dropped.startswith("dropped: fashion_mnist dirichlet_05 resnet8 dba")
    assert [one["attack"] for one in lines(elsewhere / RECORD)] == ["badnets"]


def test_published_lines_that_the_recipe_has_no_place_for_are_not_dropped_unasked(elsewhere: Path) -> None:
    run(elsewhere / "runs" / "a", attack="dba")
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    kept = (elsewhere / RECORD).read_text()
    (elsewhere / RECORD).write_text(kept + kept.splitlines()[-1].replace("dba", "of_old") + "\n")
    with pytest.raises(ValueError, match=r"1 lines of no cell of the recipe, such as .* of_old .*: --drop leaves out"):
        publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere, drop=True)
    assert (elsewhere / RECORD).read_text() == kept


def test_a_trial_in_other_rounds_takes_no_published_run_s_place(elsewhere: Path) -> None:
    """The recipe's own run does, if it is made again; where none was finished, the trial stands in.

    Nor does what uncommitted code made.
    """
    own = KNOWN["table_attacks"].own_identity(line(attack="dba", defense="fedavg"))

    def added(name: str, state: str, is_own: bool, dirty: bool = False) -> str:
        folder = elsewhere / name / "a"
        run(folder, attack="dba")
        write_json(folder / ENVIRONMENT, {**read_json(folder / ENVIRONMENT), "dirty": dirty})
        write_json(folder / SUMMARY, {**read_json(folder / SUMMARY), "state_sha256": state})
        if is_own:
            write_json(folder / "identity.json", {"identity": own})
        _, *left = publish("table_attacks", cells(elsewhere / name), elsewhere)
        (found,) = lines(elsewhere / RECORD)
        assert bool(left) == (found["state_sha256"] != state)
        return str(found["state_sha256"])

    assert added("trial", "01", False) == "01"
    assert added("second trial", "02", False) == "01"
    assert added("own, of uncommitted code", "03", True, dirty=True) == "01"
    assert added("own", "03", True) == "03"
    assert added("third trial", "04", False) == "03"
    assert added("own again", "05", True) == "05"


def test_runs_with_other_options_than_the_recipe_s_are_left_out(tmp_path: Path) -> None:
    """Another partition, another data set, another seed, a defense that is not planned."""
    marks(tmp_path, "durability")
    own = {"seed": 9, "dataset": "digits", "partition": "dirichlet_03", "defense": "fedavg", "attack": "chameleon"}
    others = [{"partition": "dirichlet_05"}, {"dataset": "mnist"}, {"seed": 10}, {"defense": "krum"}]
    for number, changed in enumerate([{}, *others]):
        run(tmp_path / "runs" / str(number), **own | changed)
        set_config(tmp_path / "runs" / str(number), partition={"alpha": 0.3})
    publish("durability_digits", cells(tmp_path / "runs"), tmp_path)
    (kept,) = lines(tmp_path / "results" / "durability_digits.csv")
    assert (kept["seed"], kept["partition"], kept["defense"]) == (9, "dirichlet_03", "fedavg")
    assert "These runs are of older code: " in (tmp_path / "RESULTS.md").read_text()
    assert KNOWN["durability_digits"].options == {"dataset": "digits", "partition": "dirichlet_03", "model": "resnet8"}
    assert KNOWN["norms"].options["attack"] == "badnets"  # the default: other recipes attack otherwise, or not at all


def test_runs_that_another_record_holds_are_taken_over(elsewhere: Path) -> None:
    """If they are of the recipe's very config, of a given run's code, and of a place that no run is given for."""
    recipe = KNOWN["table_attacks"]
    at = {**DEFAULT, "model": "resnet8", "defense": "fedavg", "state_sha256": "aa", "code": "c0de"}
    others = [line(**at, attack=attack) for attack in ("badnets", "none", "dba", "shrunk", "pgd")]
    for one in others:  # no run is like this of `none`; `shrunk` is not planned
        one["identity"] = recipe.own_identity(one) if one["attack"] not in ("none", "shrunk") else "0123456789ab"
    others[-1]["code"] = "01de"
    (elsewhere / "results").mkdir(exist_ok=True)
    (elsewhere / "results" / "late_question.csv").write_text(csv_of(frame(others)))
    run(elsewhere / "runs" / "a", attack="dba")
    write_json(elsewhere / "runs" / "a" / ENVIRONMENT, {"commit": "1234567", "dirty": False, "code": "c0de"})
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    kept = {one["attack"]: one["state_sha256"] for one in lines(elsewhere / RECORD)}
    assert kept.keys() == {"badnets", "dba"} and kept["badnets"] == "aa" != kept["dba"]
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere, drop=True)
    assert [one["attack"] for one in lines(elsewhere / RECORD)] == ["dba"]


def test_of_two_runs_of_one_cell_the_one_with_the_recipe_s_own_settings_is_taken(elsewhere: Path) -> None:
    """The folder runs/ holds every recipe's."""
    for name in ("a", "b"):
        run(elsewhere / "runs" / name, attack="dba")
        set_config(elsewhere / "runs" / name, partition={"alpha": 0.5, "of_a_later_version": name})
    with pytest.raises(ValueError, match=r"table_attacks: several runs of .*dba fedavg 0"):
        publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    own = KNOWN["table_attacks"].own_identity(line(attack="dba", defense="fedavg"))
    write_json(elsewhere / "runs" / "b" / "identity.json", {"identity": own})
    publish("table_attacks", cells(elsewhere / "runs"), elsewhere)
    assert [one["identity"] for one in lines(elsewhere / RECORD)] == [own]


def trial(place: Path, rate: float, momentum: float) -> None:
    """A run of figure_pdr in fewer rounds than it has."""
    run(place, partition="main_label", attack="badnets", defense="fedavg")
    set_config(place, attack={"poisoned_data_rate": rate}, rounds=3, client={"optimizer": {"momentum": momentum}})


@pytest.mark.parametrize(("key", "value"), [("clients", 7), ("poisoned_model_rate", 0.4), ("shadow", [])])
def test_a_run_in_another_federation_is_left_out(tmp_path: Path, key: str, value: Any) -> None:
    """Alone or beside the recipe's own: its numbers are of something else, whatever its parts are."""
    trial(tmp_path / "runs" / "a", 0.5, 0.9)
    set_config(tmp_path / "runs" / "a", **{key: value})
    with pytest.raises(ValueError, match=rf"{key} is .*, and .* in conf/recipe/figures/figure_pdr.yaml"):
        publish("figure_pdr", cells(tmp_path / "runs"), tmp_path)
    assert not (tmp_path / "results").exists()


def test_runs_of_another_recipe_alone_are_refused_and_the_table_stays(tmp_path: Path) -> None:
    marks(tmp_path, "figure_pdr")
    trial(tmp_path / "own", 0.5, 0.9)
    trial(tmp_path / "other" / "b", 0.5, 0.1)
    publish("figure_pdr", cells(tmp_path / "own"), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"recipe figure_pdr: no .*; b: client.optimizer.momentum is 0.1, and 0.9 in conf/"
    ):
        publish("figure_pdr", cells(tmp_path / "other"), tmp_path)
    run(tmp_path / "fedavg", partition="main_label", attack="none", defense="fedavg")
    with pytest.raises(ValueError, match=r"no run is one of `train.py --config-name recipe/figures/figure_pdr`$"):
        publish("figure_pdr", cells(tmp_path / "fedavg"), tmp_path)
    with pytest.raises(ValueError, match="there is no recipe pdr: known are ablations_digits, "):
        publish("pdr", cells(tmp_path / "own"), tmp_path)
    assert {path: path.read_bytes() for path in before} == before


# a recipe is one file


RECIPE = """\
# @package _global_
defaults:
  - /config
  - override /dataset: digits
  - _self_
clients: 10
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: 0,1
      attack: badnets
      client.optimizer.momentum: 0.5,0.9
      defense: fedavg,krum
recipe:
  figures:
    own_setting: {like: setting}
  tables:
    own_cells:
      caption: In per cent, mean of the last {mean_of_last} of {rounds} rounds
      rows: [client.optimizer.momentum, defense]
      columns: [{as: MA %, value: ma}, {as: BA %, value: ba}]
    own_pairs:
      caption: Pairs
      rows: [client.optimizer.momentum, {value: [ma, ba]}]
      labels: {client.optimizer.momentum: momentum, value: share}
      columns: [{as: "`{defense}` %", defense: [krum, fedavg]}]
      contrast: true
"""


def test_a_recipe_with_a_table_and_a_comparison_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the page where it appears; it sweeps a key that no other recipe does."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "recipe" / "mine").mkdir()
    (tmp_path / "conf" / "recipe" / "mine" / "own.yaml").write_text(RECIPE)
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    marks(tmp_path, "own_cells", "own_pairs")
    ma = {("krum", 0): 0.7, ("krum", 1): 0.8, ("fedavg", 0): 0.75, ("fedavg", 1): 0.75}
    for (defense, seed), value in ma.items():
        folder = tmp_path / "runs" / f"{defense}{seed}"
        run(folder, seed, attack="badnets", defense=defense, dataset="digits", partition="main_label")
        set_config(folder, client={"optimizer": {"momentum": 0.9}}, clients=10)
        whole = read_json(folder / SUMMARY)
        write_json(folder / SUMMARY, {**whole, "metrics": {**whole["metrics"], "eval/ma": value}})
    assert publish("own", cells(tmp_path / "runs"), tmp_path)[0].startswith(
        f"{tmp_path}/results/own.csv: 4 lines added"
    )
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.9 | fedavg | 75.0 ± 0.0 | 25.0 ± 0.0 | 2 |" in page and "| 0.5 | krum | - | - | 0 (2 not run) |" in page
    assert "| 0.9 | MA | 75.0 (n too small) | 75.0 ± 0.0 | +0.0 | [-63.5, +63.5] |" in page  # -5 and 5: 12.706 * 5
    assert "`python train.py --config-name recipe/mine/own`" in page and "older code" not in page
    assert outdated(tmp_path, ["own"]) == []


def test_a_table_of_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    path = tmp_path / "conf" / "recipe" / "paper" / "own.yaml"
    for text, reason in (("own_cells:", "conf/recipe/ has rejected twice"), ("tables:", "recipe.rejected: is none of")):
        path.write_text(RECIPE.replace(text, "rejected:"))
        with pytest.raises(ValueError, match=reason.replace("rejected: is", "rejected is")):
            recipes()


# markup


ROWS = pd.DataFrame([[Text("1 ± 2", "1 (n too small)", mixed=True), "x, y & {z} < 3 `q`"]], columns=["`a_b` %", "n"])


def test_markup_by_hand(tmp_path: Path) -> None:
    assert markdown(ROWS) == "| `a_b` % | n |\n| --- | --- |\n| 1 (n too small) ‡ | x, y & {z} < 3 `q` |\n"
    assert list(csv.reader(comma_separated(ROWS).splitlines())) == [["a_b %", "n"], ["1 ± 2", "x, y & {z} < 3 q"]]
    assert latex(ROWS).splitlines() == [
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"\texttt{a\_b} \% & n \\",
        r"\midrule",
        r"1 (n too small) $\ddagger$ & x, y \& \{z\} $<$ 3 \texttt{q} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    signed = pd.DataFrame([["sign-flip", "[-0.6, +0.8]"]], columns=["a", "b"])
    assert latex(signed).splitlines()[4] == r"sign-flip & [$-$0.6, +0.8] \\"  # a number's sign is a minus
    for suffix in (".md", ".csv", ".tex"):
        write(ROWS, tmp_path / "new" / f"t{suffix}", ["± is %"])
        assert (tmp_path / "new" / f"t{suffix}").read_text().count("\n") >= 2
    below = {".md": "|\n\n± is %\n", ".csv": '3 q"\n', ".tex": "{tabular}\n% ± is %\n"}
    assert all((tmp_path / "new" / f"t{suffix}").read_text().endswith(end) for suffix, end in below.items())
    with pytest.raises(ValueError, match=r"--out .*t.docx is out of range: the name must end in .md, .csv, .tex"):
        write(ROWS, tmp_path / "t.docx", [])


def test_who_reads_a_file_never_sees_half_of_the_next(tmp_path: Path) -> None:
    """Documents and `--out` alike: the old file stays whole for who has it open, and nothing is left beside the new."""
    for write_next in (lambda path: put({path: "new"}), lambda path: write(pd.DataFrame({"a": ["new"]}), path, ())):
        (path := tmp_path / "table.md").write_text("old")
        with path.open() as before:
            write_next(path)
            assert before.read() == "old" and "new" in path.read_text() and [*tmp_path.iterdir()] == [path]


def test_every_table_stands_in_a_document() -> None:
    text = "".join(documents(ROOT).values())
    assert all(f"<!-- table: {name} -->\n" in text for name in TABLES)
