"""classes.csv: written a round at a time, cut back with the other files, read as shares, and drawn."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flame.federation import Round
from flame.round.breakdown import class_rows
from flame.round.checkpoint import RunFolderError
from flame.round.evaluate import Evaluation
from flame.run.classes import CLASSES, cut_classes, read_confusions
from flame.run.figure import classes_png
from flame.run.trackers.files import RunFiles


@dataclass
class Run:
    """As much of a RunRecord as is read."""

    folder: Path
    rounds: int
    summary: dict[str, Any] | None


def answered(record: Round, right: int) -> Round:
    """The round with `right` of four clean images of class 0 answered rightly, and one triggered image of class 1."""
    clean = Evaluation(right, 1.0, 4, answers={(0, 0, 0): right, (0, 0, 1): 4 - right})
    backdoor = Evaluation(0, 1.0, 1, answers={(1, 0, 1): 1})
    return replace(record, classes=class_rows({"clean": clean, "backdoor": backdoor}, 2))


@pytest.fixture
def asked(history: list[Round]) -> list[Round]:
    """Three rounds, the second not evaluated."""
    return [answered(history[0], 1), history[1], answered(history[2], 3)]


def written(folder: Path, records: Sequence[Round]) -> Path:
    files = RunFiles(folder, 0)
    for record in records:
        files.log(record)
    files.sync()
    return folder


def test_a_line_for_each_class_of_each_set(tmp_path: Path, asked: list[Round]) -> None:
    with open(written(tmp_path, asked) / CLASSES) as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["set"], row["class"]) for row in rows] == [
        *(("0", "clean", "0"), ("0", "backdoor", "1"), ("2", "clean", "0"), ("2", "backdoor", "1")),
    ]
    assert [row["accuracy"] for row in rows] == ["0.25", "0", "0.75", "0"]
    assert [(row["answered_0"], row["answered_1"]) for row in rows] == [("1", "3"), ("0", "1"), ("3", "1"), ("0", "1")]


def test_no_file_where_nothing_was_counted(tmp_path: Path, history: list[Round]) -> None:
    assert not (written(tmp_path, history) / CLASSES).exists()
    assert read_confusions(Run(tmp_path, 3, None)) == {}  # type: ignore[arg-type]


def test_the_reported_rounds_together_by_hand(tmp_path: Path, asked: list[Round]) -> None:
    written(tmp_path, asked)
    for summary, share in (({"mean_of_last": 3}, 0.5), ({"mean_of_last": 2}, 0.75), (None, 0.75)):
        found = read_confusions(Run(tmp_path, 3, summary))  # type: ignore[arg-type]
        assert list(found) == ["clean", "backdoor"]
        assert found["clean"].shown == [0] and found["clean"].accuracy.tolist() == [share]
        assert found["clean"].shares.tolist() == [[share, 1 - share]]
        assert found["backdoor"].shown == [1] and found["backdoor"].accuracy.tolist() == [0]
        assert found["backdoor"].shares.tolist() == [[0, 1]]


def test_what_an_interrupted_run_left_is_cut_back(tmp_path: Path, asked: list[Round]) -> None:
    written(tmp_path, asked)
    whole = (tmp_path / CLASSES).read_bytes()
    with open(tmp_path / CLASSES, "a") as file:
        file.write("2,cle")  # torn
    files = RunFiles(tmp_path, 2)
    assert {line.split(",")[0] for line in (tmp_path / CLASSES).read_text().splitlines()[1:]} == {"0"}
    files.log(asked[2])
    assert (tmp_path / CLASSES).read_bytes() == whole
    RunFiles(tmp_path, 0)
    assert not (tmp_path / CLASSES).exists()


def test_a_torn_header_is_written_again(tmp_path: Path, asked: list[Round]) -> None:
    """A crash amid the first line of all: the next round begins with it, as in a file that was not there."""
    whole, torn = (RunFiles(tmp_path / name, 0) for name in ("whole", "torn") if not (tmp_path / name).mkdir())
    (torn.folder / CLASSES).write_text("round,set,cla")
    cut_classes(torn.folder / CLASSES, 1)
    for files in (whole, torn):
        files.log(asked[0])
    assert (torn.folder / CLASSES).read_text() == (whole.folder / CLASSES).read_text()


def test_a_damaged_file_is_refused(tmp_path: Path, asked: list[Round]) -> None:
    path = written(tmp_path, asked) / CLASSES
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "x" + lines[1], *lines[2:]]) + "\n")
    with pytest.raises(RunFolderError, match=r"classes.csv is damaged: .*resume=false starts in a new folder"):
        RunFiles(tmp_path, 2)
    with pytest.raises(ValueError, match=r"classes.csv is damaged"):
        read_confusions(Run(tmp_path, 3, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 30])
def test_it_is_drawn_however_many_classes(tmp_path: Path, history: list[Round], classes: int) -> None:
    counts = {(k, k, (k + k % 3) % classes): 5 for k in range(classes)}
    rows = class_rows({"clean": Evaluation(0, 1.0, 5 * classes, answers=counts)}, classes)
    written(tmp_path, [replace(history[0], classes=rows)])
    found = read_confusions(Run(tmp_path, 1, None))  # type: ignore[arg-type]
    assert found["clean"].shares.shape == (classes, classes) and np.allclose(found["clean"].shares.sum(1), 1)
    assert classes_png(found).startswith(b"\x89PNG")


def test_the_table_for_wandb(tmp_path: Path, asked: list[Round]) -> None:
    pytest.importorskip("wandb")
    from flame.run.trackers.exhibits import answers

    run = Run(written(tmp_path, asked), 3, {"mean_of_last": 3})
    found = answers(run)  # type: ignore[arg-type]
    assert found["classes"].columns[:6] == ["round", "set", "class", "images", "correct", "accuracy"]
    assert found["classes"].data[2][:6] == [2.0, "clean", 0.0, 4.0, 3.0, 0.75]
    assert found["confusion"].format == "png"
    (tmp_path / CLASSES).unlink()
    assert answers(run) == {}  # type: ignore[arg-type]
