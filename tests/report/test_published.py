"""The tables of the documents are what results/ says, and results/ is what run folders say."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from test_report import write_run

from flame.report.accuracy_tables import accuracies, attacks
from flame.report.catalogue import TABLES
from flame.report.markup import comma_separated, latex, markdown
from flame.report.published import ROOT, derived, outdated, publish, spliced
from flame.report.recipes import own_identity, plan
from flame.report.records import Line, csv_of, read, records_of
from flame.run.folder import read_json
from flame.run.record import Cell, find_runs, gather, read_run
from flame.run.trackers.files import CONFIG, ENVIRONMENT, SUMMARY, write_json

NAN = math.nan
NOT_RUN = {"zhmzm", "durability_fashion"}  # tables without a csv
DEFAULT = {"dataset": "fashion_mnist", "partition": "main_label"}


def record(attack: str = "dba", defense: str = "fedavg", seed: int = 0, ma: float = 0.8, ba: float = 0.9) -> Line:
    return Line(attack, defense, seed, ma, ba, 1.0, 0.0, 10.0, 28, 5, "abcdef0123", "P", "hash", "id")


def run(folder: Path, seed: int = 0, **choices: Any) -> None:
    summary = {"eval/ma": 0.5, "eval/ba": 0.25, "filter/accepted": 4.0}
    write_run(folder, seed, summary=summary, **DEFAULT | choices)
    like_recipes(folder)
    write_json(folder / SUMMARY, {**read_json(folder / SUMMARY), "state_sha256": "0123"})


def like_recipes(folder: Path) -> None:
    """Ten clients a round, as in all recipes but one."""
    config = yaml.safe_load((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(yaml.safe_dump(config | {"clients_per_round": 10}))


def cells(folder: Path) -> list[Cell]:
    return gather(map(read_run, find_runs([folder])))


def test_the_documents_are_up_to_date() -> None:
    assert outdated() == []


def test_every_table_stands_in_its_document_once_and_nothing_else_does() -> None:
    for document in ("README.md", "RESULTS.md"):
        marks = [mark for table in TABLES.values() if table.document == document for mark in table.blocks]
        lines = (ROOT / document).read_text().splitlines()
        assert sorted(line for line in lines if line.startswith("<!-- table:")) == sorted(
            f"<!-- table: {mark} -->" for mark in marks
        )


def test_a_line_names_the_processor_as_far_as_it_was_recorded(elsewhere: Path) -> None:
    for number, known in enumerate([{"processor": "P, cache 1 KB"}, {}]):  # {}: a run from before it was
        run(elsewhere / "runs" / str(number), number, attack="dba")
        write_json(elsewhere / "runs" / str(number) / ENVIRONMENT, {"commit": "1234567", "dirty": False, **known})
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    kept = read(elsewhere / "results" / "attacks.csv", Line)
    assert [(line.seed, line.processor) for line in kept] == [(0, "P, cache 1 KB"), (1, "")]


def test_lines_survive_a_file(tmp_path: Path) -> None:
    kept = [record(), record("none", "krum", 3, 0.5, NAN)]
    text = csv_of(Line, kept)
    (tmp_path / "x.csv").write_text(text)
    assert [repr(line) for line in read(tmp_path / "x.csv", Line)] == [repr(line) for line in kept]
    assert records_of(text, Line)[0] == kept[0] and read(tmp_path / "none.csv", Line) == []


def test_tables_are_made_of_the_digits_on_file(elsewhere: Path) -> None:
    """12.549999996 % is 12.5, and 12.55 with the six digits of the file, which is 12.6: what --check will compute."""
    run(elsewhere / "runs" / "a", attack="dba")
    summary = read_json(elsewhere / "runs" / "a" / SUMMARY)
    summary["metrics"]["eval/ma"] = 0.12549999996
    write_json(elsewhere / "runs" / "a" / SUMMARY, summary)
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    assert "| 12.6 / 25.0 |" in (elsewhere / "README.md").read_text() and outdated(elsewhere, ["attacks"]) == []


def test_cells_by_hand() -> None:
    """0.80 and 0.90: mean 85, half width t(0.975, 1) * 7.071 / sqrt(2) = 12.706 * 5 = 63.5."""
    assert accuracies([record(ma=0.8), record(seed=1, ma=0.9)]) == "85.0 ± 63.5 / 90.0 ± 0.0"
    assert accuracies([record(ba=NAN)]) == "80.0 / -"
    assert accuracies([]) == "not run"
    unfinished = Line("a", "b", 0, NAN, NAN, NAN, NAN, NAN, 28, 0, "c", "P", "", "i")
    assert accuracies([unfinished]) == "- / - (1 of 1 unfinished)"


def test_rows_by_hand() -> None:
    """Backdoors before untargeted attacks; what was not run says so; the paper's numbers with their grades."""
    _, first, second = attacks([record(), record("alie", ba=NAN), record("dba", "flame_all_state", ba=0.01)], {})
    theirs = ["57.4 [M] / 93.8 [M]", "76.2 [M] / 3.2 [M]"]
    assert first == ["`dba`", "80.0 / 90.0", "not run", "80.0 / 1.0", "- / 0.0", *theirs]
    assert second[:4] == ["`alie`", "80.0 / -", "not run", "not run"]


def test_a_recipe_says_what_it_sweeps() -> None:
    assert plan("norms") == {
        "seed": tuple("012345"),
        "norm": ("batch", "group", "none"),
        "defense": ("fedavg", "flame_weights_only", "flame_all_state"),
    }


def test_runs_become_a_table_between_its_marks(elsewhere: Path) -> None:
    run(elsewhere / "runs" / "a", attack="dba")
    run(elsewhere / "runs" / "b", attack="dba", defense="krum")  # of another table
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    text = (elsewhere / "README.md").read_text()
    assert "| `dba` | 50.0 / 25.0 | not run |" in text and "krum" not in text and "old" not in text
    assert "mean of the last 1 of 2 rounds; seed 0; commit 1234567." in text
    assert text.startswith("a\n<!--") and text.endswith("-->\nb\n")
    assert outdated(elsewhere, ["attacks"]) == []
    (elsewhere / "README.md").write_text(text.replace("50.0", "60.0"))
    assert [line.split()[0] for line in outdated(elsewhere, ["attacks"])] == ["README.md"]


def test_a_recipe_that_was_not_run_is_a_sentence(elsewhere: Path) -> None:
    """And no file: rows of dashes tell nobody anything."""
    ((path, text),) = derived("attacks", [], elsewhere).items()
    between = text.partition("<!-- table: attacks -->\n")[2].partition("\n<!-- end: attacks -->")[0]
    assert path == elsewhere / "README.md" and "\n" not in between
    assert between.startswith("Not run yet: `python train.py --config-name table_attacks`")


def test_runs_of_another_sitting_are_added(elsewhere: Path) -> None:
    """A seed more joins the lines that are there; an unfinished run takes no finished one's place."""
    run(elsewhere / "runs" / "a", attack="dba")
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    write_run(elsewhere / "later" / "a", summary=None, attack="dba", **DEFAULT)
    like_recipes(elsewhere / "later" / "a")
    write_json(elsewhere / "later" / "a" / ENVIRONMENT, {"commit": "7654321", "dirty": False, "processor": "P"})
    run(elsewhere / "later" / "b", attack="badnets")
    publish("attacks", cells(elsewhere / "later"), elsewhere, add=True)
    lines = read(elsewhere / "results" / "attacks.csv", Line)
    assert [(line.attack, line.ma, line.commit) for line in lines] == [
        ("badnets", 0.5, "1234567"),
        ("dba", 0.5, "1234567"),
    ]
    publish("attacks", cells(elsewhere / "later"), elsewhere)
    assert [line.state_sha256 for line in read(elsewhere / "results" / "attacks.csv", Line)] == ["0123", ""]


def test_latex_is_written_when_asked_for_and_checked_from_then_on(elsewhere: Path) -> None:
    path = elsewhere / "results" / "tables" / "attacks.tex"
    assert path not in derived("attacks", [], elsewhere)
    run(elsewhere / "runs" / "a", attack="dba")
    publish("attacks", cells(elsewhere / "runs"), elsewhere, with_latex=True)
    assert r"\texttt{dba} & 50.0 / 25.0 & not run" in path.read_text()
    path.write_text("changed by hand")
    assert [line.split()[0] for line in outdated(elsewhere, ["attacks"])] == ["results/tables/attacks.tex"]


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_s_own_runs_are_known_by_their_identity(name: str) -> None:
    """The published runs were made by the recipes' commands; a table has runs, or is one of NOT_RUN."""
    path = ROOT / "results" / f"{name}.csv"
    records = read(path, TABLES[name].kind)
    assert bool(records) == path.exists() == (name not in NOT_RUN)
    for record in records[::100]:
        assert own_identity(TABLES[name].recipe, record) == record.identity


def test_a_caption_says_when_the_tree_was_dirty(elsewhere: Path) -> None:
    run(elsewhere / "runs" / "a", attack="dba")
    write_json(elsewhere / "runs" / "a" / ENVIRONMENT, {"commit": "12345678", "dirty": True})
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    assert "seed 0; commit 1234567+." in (elsewhere / "README.md").read_text()


def test_marks_that_are_missing_leave_everything_as_it_was(elsewhere: Path) -> None:
    (elsewhere / "README.md").write_text("no table\n")
    run(elsewhere / "runs" / "a", attack="dba")
    with pytest.raises(ValueError, match=r"README\.md has no marks <!-- table: attacks -->"):
        publish("attacks", cells(elsewhere / "runs"), elsewhere)
    assert not (elsewhere / "results").exists()


def test_what_no_table_makes_is_told(elsewhere: Path) -> None:
    """Of a table that was renamed or left out: it would never be compared again."""
    run(elsewhere / "runs" / "a", attack="dba")
    publish("attacks", cells(elsewhere / "runs"), elsewhere)
    (elsewhere / "results" / "tables" / "gone.csv").write_text("a\n")
    with open(elsewhere / "README.md", "a") as file:
        file.write("<!-- table: gone -->\nold\n<!-- end: gone -->\n")
    assert outdated(elsewhere, ["attacks"]) == [
        "results/tables/gone.csv belongs to no table: delete it",
        "README.md has marks of a table gone, which does not exist: delete what is between them",
    ]


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README\.md has no marks <!-- table: attacks -->"):
        spliced("text", "attacks", "content", "README.md")


@pytest.mark.parametrize("between", ["", "an old table\n\nits caption\n"])
def test_what_is_between_the_marks_is_replaced(between: str) -> None:
    start, end = "before\n<!-- table: attacks -->\n", "<!-- end: attacks -->\nafter"
    assert spliced(start + between + end, "attacks", "content", "README.md") == f"{start}content\n{end}"


ROWS = [["`a_b` %", "n"], ["1 ± 2", "x, y & {z} < 3"]]


def test_markup_by_hand() -> None:
    assert markdown(ROWS) == "| `a_b` % | n |\n| --- | --- |\n| 1 ± 2 | x, y & {z} < 3 |"
    assert list(csv.reader(comma_separated(ROWS).splitlines())) == [["a_b %", "n"], ["1 ± 2", "x, y & {z} < 3"]]
    assert latex(ROWS).splitlines() == [
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"\texttt{a\_b} \% & n \\",
        r"\midrule",
        r"1 $\pm$ 2 & x, y \& \{z\} $<$ 3 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_number_s_sign_is_a_minus_in_latex() -> None:
    assert latex([["sign-flip", "[-0.6, +0.8]"]]).splitlines()[2] == r"sign-flip & [$-$0.6, +0.8] \\"
