"""A user's own sweep: which runs count, arms against each other, what a closed pipe and a failing figure leave."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import permutation_test, ttest_rel
from test_report import write_run

from flame.report import __main__ as command
from flame.report.__main__ import main
from flame.report.comparison import against_published as against
from flame.report.comparison import compare, notes, unit_of
from flame.report.published import ROOT
from flame.report.records import COLUMNS, csv_of, frame
from flame.run.folder import read_json
from flame.run.record import Cell, find_runs, gather, read_run, walked
from flame.run.trackers.files import CHOICES, CONFIG, ENVIRONMENT, SUMMARY, write_json

MA = {"fedavg": (0.80, 0.82, 0.78, 0.81, 0.83, 0.79, 0.80), "krum": (0.75, 0.80, 0.79, 0.74, 0.80, 0.70, 0.77)}


def finished(folder: Path, seed: int, state: str = "01", **values: Any) -> Path:
    """A run with those accuracies and that final model."""
    metrics = {"eval/ma": values.pop("ma", 0.5), "eval/ba": values.pop("ba", 0.25), "eval/ma_loss": 1.5}
    write_run(folder, seed=seed, summary=metrics, rows=[{"filter/malicious_recall": 0.25}], **values)
    write_json(folder / SUMMARY, {**read_json(folder / SUMMARY), "state_sha256": state})
    return folder


def cells(folder: Path) -> list[Cell]:
    return gather(map(read_run, find_runs([folder])))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two arms at two alphas, seven seeds; of one arm and alpha a seed is unfinished."""
    for alpha, shift in ((0.5, 0.0), (0.1, 0.02)):
        for defense, values in MA.items():
            for seed, ma in enumerate(values):
                gain = shift if defense == "krum" else 0
                finished(tmp_path / f"{defense}-{alpha}-{seed}", seed, ma=ma + gain, defense=defense, alpha=alpha)
    (tmp_path / "krum-0.1-6" / SUMMARY).unlink()
    return tmp_path


def rows(table: pd.DataFrame) -> list[dict[str, str]]:
    found: list[dict[str, str]] = table.to_dict("records")
    return found


def test_two_arms_by_seed_against_scipy(sweep: Path) -> None:
    """Exact p of the sign flips, Student's interval of the paired differences, Holm over both rows."""
    shifted, plain = rows(compare(cells(sweep), "defense", ["ma"]))
    first, second = (np.array(MA[name]) for name in ("fedavg", "krum"))
    test = permutation_test(
        (first, second), lambda a, b, axis: np.mean(a - b, axis), permutation_type="samples", n_resamples=np.inf
    )
    assert plain["partition.alpha"] == "0.5" and plain["defense"] == "fedavg minus krum" and plain["metric"] == "MA %"
    assert plain["p"] == f"{test.pvalue:.3f}" and float(plain["p"]) < 0.1
    low, high = 100 * np.array(ttest_rel(first, second).confidence_interval(0.95))
    assert plain["difference"] == f"{100 * (first - second).mean():+.1f}"
    assert plain["95 % interval"] == f"[{low:+.1f}, {high:+.1f}]" and plain["n"] == "7"
    assert shifted["n"] == "6 (1 unfinished)"
    both = sorted(float(row["p"]) for row in (plain, shifted))
    assert min(float(row["p (Holm)"]) for row in (plain, shifted)) == pytest.approx(min(1, 2 * both[0]), abs=2e-3)


def test_any_two_of_several_arms_and_any_key(tmp_path: Path) -> None:
    """Each with each; a metric of summary.json by its own name; the loss is no share."""
    for alpha in (0.1, 0.5, 0.9):
        for seed in (0, 1):
            finished(tmp_path / f"{alpha}-{seed}", seed, ma=alpha, alpha=alpha)
    found = rows(compare(cells(tmp_path), "partition.alpha", ["ma", "eval/ma_loss", "admitted"]))
    assert [row["partition.alpha"] for row in found[::3]] == ["0.1 minus 0.5", "0.1 minus 0.9", "0.5 minus 0.9"]
    assert [row["difference"] for row in found[::3]] == ["-40.0", "-80.0", "-40.0"]
    assert found[1]["first"] == "1.500 ± 0.000" and found[1]["metric"] == "eval/ma_loss"
    assert found[2]["first"] == "75.0 ± 0.0" and found[2]["metric"] == "malicious admitted %"
    assert [unit_of(name) for name in ("ba", "accepted", "time/train")] == ["per_cent", "clients", "number"]


def test_what_cannot_be_compared_is_said(sweep: Path) -> None:
    with pytest.raises(ValueError, match=r"--by attack: .* these runs differ in defense, partition\.alpha"):
        compare(cells(sweep), "attack", ["ma"])
    with pytest.raises(ValueError, match="--metric mo is in no finished run: must be of ma, ba, "):
        compare(cells(sweep), "defense", ["mo"])


@pytest.mark.parametrize("suffix", [".md", ".csv", ".tex"])
def test_the_command_writes_what_it_shows(sweep: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = sweep / "new" / f"table{suffix}"
    assert main(["compare", str(sweep), "--by", "defense", "--metric", "ma,ba", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Holm: corrected for all 4 rows" in shown and "unfinished: krum-0.1-6" in shown
    assert "fedavg minus krum" in out.read_text() and out.read_text().count("fedavg") == 4
    assert main(["compare", str(sweep), "--by", "defense", "--out", str(sweep / "x.docx")]) == 1
    assert "must end in .md, .csv, .tex" in capsys.readouterr().err


# which runs count


def test_linked_folders_are_followed_and_no_run_counts_twice(tmp_path: Path) -> None:
    run = finished(tmp_path / "disk" / "a", 0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(run)
    (tmp_path / "runs" / "all").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
    assert [folder.resolve() for folder in find_runs([tmp_path / "runs", tmp_path])] == [run.resolve()]


def test_links_that_lead_to_each_other_are_walked_once(tmp_path: Path) -> None:
    """Without a memory of where it was, the walk takes every order of the folders: 12! of them."""
    folders = [tmp_path / f"{i:02d}" for i in range(12)]
    for folder in folders:
        folder.mkdir()
    for folder, other in product(folders, folders):
        if folder != other:
            (folder / other.name).symlink_to(other)
    assert [path.resolve() for path in islice(walked(tmp_path), 20)] == [tmp_path.resolve(), *folders]


def test_of_equal_runs_the_record_counts_and_not_the_time_of_its_files(tmp_path: Path) -> None:
    """Of uncommitted code or unfinished: not, whenever the files were touched. What is left out is listed."""
    taken = finished(tmp_path / "run-20260101", 0, ma=0.7)
    for name in ("run-20250101", "run-20260102", "run-20260103"):
        finished(tmp_path / name, 0, state="02", ma=0.1)
        os.utime(tmp_path / name / CHOICES, (2e9, 2e9))
    environment = read_json(taken / ENVIRONMENT)
    write_json(tmp_path / "run-20260102" / ENVIRONMENT, {**environment, "dirty": True})
    (tmp_path / "run-20260103" / SUMMARY).unlink()
    (cell,) = found = cells(tmp_path)
    assert [run.folder for run in cell.runs] == [taken]
    said = [line for line in notes(found) if line.startswith("left out")]
    assert len(said) == 3 and "run-20250101: run-20260101 is of the same config, and ends in another model" in said[-1]
    assert not [line for line in said if "20260103" in line and "another model" in line]


def test_what_is_left_out_is_listed_beside_figures_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run-1", "run-2"):
        finished(tmp_path / name, 0)
    assert main(["figures", str(tmp_path), "--out", str(tmp_path / "figures")]) == 0
    assert "left out: run-1: run-2 is of the same config\n" in capsys.readouterr().err


def test_seeds_of_different_code_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_json(
            finished(tmp_path / str(seed), seed) / ENVIRONMENT,
            {"commit": "1234567", "dirty": False, "code": f"c{seed}"},
        )
    assert main([str(tmp_path), "--out", str(tmp_path / "t.md")]) == 0
    shown = capsys.readouterr().out
    assert "2 ‡" in shown and "‡ joins runs of different code" in shown
    assert "| fedavg | 2 ‡ |" in (tmp_path / "t.md").read_text()
    for seed in (0, 1):
        finished(tmp_path / str(seed), seed)
    assert main([str(tmp_path)]) == 0 and "‡" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".md", ".tex"])
def test_the_mark_of_two_arms_is_explained(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the console and in the file; without a mark, nowhere."""
    words = ["compare", str(tmp_path), "--by", "defense", "--metric", "ma", "--out", str(tmp_path / f"t{suffix}")]
    for own, said in (("c1", True), ("c0", False)):
        for defense, code in (("fedavg", "c0"), ("krum", own)):
            for seed in (0, 1):
                folder = finished(tmp_path / f"{defense}-{seed}", seed, defense=defense)
                write_json(folder / ENVIRONMENT, {"commit": "1234567", "dirty": False, "code": code})
        assert main(words) == 0
        for text in (capsys.readouterr().out, (tmp_path / f"t{suffix}").read_text()):
            assert ("‡ joins runs of different code" in text) == ("A part of your own is code, too" in text) == said
            assert ("+0.0 ‡" in text or r"+0.0 $\ddagger$" in text) == said and "95 % intervals (Student's)" in text


# what is published of the same config


def test_a_run_beside_the_published_one(tmp_path: Path) -> None:
    run = read_run(finished(tmp_path / "a", 0, state="0f0f"))
    kept = dict.fromkeys(COLUMNS, "") | {"seed": 0, "rounds": 2, "mean_of_last": 1, "commit": "7654321f"}
    (tmp_path / "results").mkdir()

    def published(*states: str) -> tuple[list[str], bool]:
        lines = [kept | {"identity": run.identity, "state_sha256": state} for state in states]
        text = csv_of(frame([*lines, kept | {"identity": "other", "state_sha256": "ff"}]).reset_index(drop=True))
        (tmp_path / "results" / "one.csv").write_text(text)
        return against(run, tmp_path)

    said, good = published("0f0f")
    assert good and said == [
        "equal to results/one.csv (commit 7654321, processor not recorded); here commit 1234567, P"
    ]
    said, good = published("0f0f", "ee")
    assert not good and sorted(sentence[:6] for sentence in said) == ["DIFFER", "equal "]
    said, good = published()
    assert not good and said[0].startswith("none published: no line of results/ is of this config (identity 0-0.5")
    said, good = published("")
    assert not good and said[0].startswith("none published")
    (tmp_path / "a" / SUMMARY).unlink()
    assert against(read_run(tmp_path / "a"), tmp_path) == (
        [f"{tmp_path / 'a'} has not finished: nothing can be compared yet"],
        False,
    )


def test_a_run_under_a_new_identity_is_compared_by_its_cell(tmp_path: Path) -> None:
    """As of a config that has more keys than the published one had; in other rounds it is of no cell."""
    folder = finished(tmp_path / "a", 0, state="0f0f", dataset="fashion_mnist", partition="dirichlet_05", attack="dba")
    config = yaml.safe_load((folder / CONFIG).read_text()) | {"dataset": {}, "clients_per_round": 10, "rounds": 28}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    groups = {"dataset": "fashion_mnist", "partition": "dirichlet_05", "model": "resnet8", "attack": "dba"}
    kept = dict.fromkeys(COLUMNS, "") | groups | {"defense": "fedavg", "seed": 0, "rounds": 28, "mean_of_last": 5}
    (tmp_path / "results").mkdir()
    for state, word in (("0f0f", "equal to"), ("ee", "DIFFERS from")):
        line = kept | {"identity": "of old", "state_sha256": state, "commit": "7654321f"}
        (tmp_path / "results" / "table_attacks.csv").write_text(csv_of(frame([line])))
        (said,), good = against(read_run(folder), tmp_path)
        assert good == (word == "equal to")
        assert said.startswith(f"{word} the same cell, then of identity of old, in results/table_attacks.csv")
    (folder / CONFIG).write_text(yaml.safe_dump(config | {"rounds": 3}))
    assert against(read_run(folder), tmp_path)[0][0].startswith("none published")


def test_a_run_of_the_arena_is_compared_with_its_line(tmp_path: Path) -> None:
    folder = finished(tmp_path / "a", 0, state="0f0f")
    (tmp_path / "results" / "arena").mkdir(parents=True)
    for state, good in (("0f0f", True), ("ee", False)):
        line = f"2,krum,7654321f,,{state},{read_run(folder).identity}"
        path = tmp_path / "results" / "arena" / "krum.csv"
        path.write_text(f"version,defense,commit,processor,state_sha256,identity\n{line}\n")
        (said,), equal = against(read_run(folder), tmp_path)
        assert equal == good and said.startswith(f"{'equal to' if good else 'DIFFERS from'} results/arena/krum.csv (")


def test_check_of_a_run_says_so_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(finished(tmp_path, 0))]) == 1
    assert "none published" in capsys.readouterr().out


# whatever becomes of the figure and of the reader


def test_a_figure_that_fails_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(command, "draw_comparison", broken)
    finished(tmp_path / "a", 0, ma=0.625)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "62.5" in shown.out and shown.err == "the figure was not drawn: RuntimeError: no font\n"


def test_the_table_comes_first_and_a_closed_pipe_ends_nothing(tmp_path: Path) -> None:
    finished(tmp_path / "a", 0, ma=0.625)
    words = [sys.executable, "-m", "flame.report", str(tmp_path)]
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does once it has its lines
    done = subprocess.run(words, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "comparison.png").exists()


def test_publishing_wants_a_recipe_that_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "a", 0)
    assert main(["publish", "none", str(tmp_path)]) == 1
    assert "there is no recipe none: known are " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["publish", "norms"])
    assert "give RUNS beside the name" in capsys.readouterr().err
