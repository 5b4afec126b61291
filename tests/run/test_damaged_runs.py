"""A run folder that is not whole is left out of a report, with a sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_report import HEADER, write_run

from flame.report.__main__ import main
from flame.run.folder import IDENTITY
from flame.run.record import read_cells, read_run
from flame.run.trackers.files import ACCEPTANCE, CHOICES, CONFIG, ENVIRONMENT, METRICS, SUMMARY

FILES = (ACCEPTANCE, CHOICES, CONFIG, ENVIRONMENT, IDENTITY, METRICS, SUMMARY)
TWO_ROUNDS = "0,1,0,9,1,1,1\n0,2,0,9,0,1,1\n1,1,0,9,1,1,1\n1,3,0,9,1,1,1\n"


def whole(folder: Path) -> Path:
    """A finished run of two rounds with two clients each."""
    return write_run(folder, rows=[{}, {}], clients=TWO_ROUNDS, summary={"eval/ma": 0.5})


@pytest.mark.parametrize("name", sorted({*FILES} - {CHOICES, SUMMARY}))  # without these two it is none, or unfinished
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    (whole(tmp_path) / name).unlink()
    with pytest.raises(
        ValueError, match=rf"is not a complete run folder \(.*{name}.*\): leave it out, or run it again"
    ):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["", "[1, 2]", "[" * 9, "\0", "5"])
@pytest.mark.parametrize("name", FILES)
def test_content_that_no_run_writes_is_named(tmp_path: Path, name: str, content: str) -> None:
    (whole(tmp_path) / name).write_text(content)
    with pytest.raises(ValueError, match=rf"is not a complete run folder \(.*{name}"):
        read_run(tmp_path)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_finished_run_whose_acceptance_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    """In the middle of a round or behind one; of an unfinished run it may just be being written."""
    cut = "".join(TWO_ROUNDS.splitlines(keepends=True)[:kept])
    (whole(tmp_path / "a") / ACCEPTANCE).write_text(f"{HEADER}\n{cut}")
    with pytest.raises(ValueError, match=r"acceptance\.csv lacks or repeats clients or rounds of the 2 in"):
        read_run(tmp_path / "a")
    assert read_run(write_run(tmp_path / "b", rows=[{}, {}], clients=cut)).summary is None


@pytest.mark.parametrize(("torn", "rows"), [(len(HEADER) - 3, 0), (len(HEADER) + 1, 0), (-1, 3), (-6, 3), (-18, 2)])
def test_of_an_unfinished_run_a_torn_line_is_left_out(tmp_path: Path, torn: int, rows: int) -> None:
    """It is being written, or its process has died: what metrics.jsonl is forgiven."""
    path = write_run(tmp_path, rows=[{}, {}], clients=TWO_ROUNDS) / ACCEPTANCE
    path.write_bytes(path.read_bytes()[:torn])
    assert read_run(tmp_path).acceptance["client"].tolist() == [1, 2, 1][:rows]


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("name", [CHOICES, CONFIG, SUMMARY])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, name: str, share: float) -> None:
    """YAML that is cut off is often YAML still, with fewer keys."""
    path = whole(tmp_path) / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"is not a complete run folder \(.*{name}"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "lacks"),
    [
        (CHOICES, "{}", "dataset, "),
        (CONFIG, "rounds: 2\n", "seed, "),
        (SUMMARY, '{"finished": true}', "mean_of_last, "),
    ],
)
def test_a_file_that_lacks_a_key_is_named(tmp_path: Path, name: str, content: str, lacks: str) -> None:
    (whole(tmp_path) / name).write_text(content)
    with pytest.raises(ValueError, match=rf"\({name} lacks {lacks}"):
        read_run(tmp_path)


def test_a_last_cell_that_is_cut_is_seen(tmp_path: Path) -> None:
    """A norm of 0.123 in place of 0.123456 is a number still."""
    path = whole(tmp_path) / ACCEPTANCE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"acceptance\.csv is cut off in its last line"):
        read_run(tmp_path)


def test_a_finished_run_whose_acceptance_is_doubled_is_refused(tmp_path: Path) -> None:
    twice = "".join(2 * line for line in TWO_ROUNDS.splitlines(keepends=True))
    (whole(tmp_path) / ACCEPTANCE).write_text(f"{HEADER}\n{twice}")
    with pytest.raises(ValueError, match=r"acceptance\.csv lacks or repeats clients"):
        read_run(tmp_path)


def test_the_others_are_reported_and_the_exit_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole(tmp_path / "a")
    (whole(tmp_path / "b") / CONFIG).write_text("")
    cells, damaged = read_cells([tmp_path])
    assert [run.folder.name for cell in cells for run in cell.runs] == ["a"] and len(damaged) == 1
    assert main([str(tmp_path)]) == 1
    assert "config.yaml holds no settings" in capsys.readouterr().err
