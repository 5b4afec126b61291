"""A run folder: whose it is, and what of an interrupted run's files stays in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_resume import files_under

from flame.round.checkpoint import RunFolderError
from flame.run import folder
from flame.run.experiment import record_environment
from flame.run.folder import claimed
from flame.run.sweep import clear
from flame.run.trackers.files import RunFiles


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("somebody's\n")
    with pytest.raises(RunFolderError, match="without identity"), claimed(tmp_path, "a"):
        pass
    assert files_under(tmp_path) == {"metrics.jsonl": b"somebody's\n"}


def test_other_software_than_before_the_interruption_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What may change the bits, not the number of workers; and nothing in a run's first sitting."""
    before = {"commit": "a", "python": "3.11.1", "threads": 1, "engine_workers": 2}
    record_environment(tmp_path, before, resumed=True)  # killed before it was written
    record_environment(tmp_path, {**before, "engine_workers": 4}, resumed=True)
    record_environment(tmp_path, {**before, "commit": "b"}, resumed=False)
    assert caplog.messages == []
    now = {**before, "commit": "b", "python": "3.12.0", "device": "cpu"}
    record_environment(tmp_path, now, resumed=True)
    said = "since the run was interrupted, ['device', 'python'] changed: the bits may not be those of one run"
    assert caplog.messages == [said]
    assert json.loads((tmp_path / "environment.json").read_text()) == now


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        claimed(tmp_path, "a"),
        pytest.raises(RunFolderError, match="being written by another process"),
        claimed(tmp_path, "a"),
    ):
        pass
    with claimed(tmp_path, "a"):
        assert json.loads((tmp_path / "identity.json").read_text()) == {"identity": "a"}


@pytest.mark.parametrize("refused", [True, False])
def test_who_claims_while_another_ends_holds_the_folder_or_is_told(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ends after the second has opened the file: refused, it takes the file away; begun, it leaves it."""
    first, lock = claimed(tmp_path, "a"), folder._lock
    first.__enter__()

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(folder, "_lock", lock)
        if not refused:
            (tmp_path / "metrics.jsonl").write_text("")
        first.__exit__(None, None, None)
        lock(*arguments)

    monkeypatch.setattr(folder, "_lock", late)
    with claimed(tmp_path, "a"):
        assert json.loads((tmp_path / "identity.json").read_text()) == {"identity": "a"}
        with pytest.raises(RunFolderError, match="being written by another process"), claimed(tmp_path, "a"):
            pass


def test_claim_survives_a_kill_before_the_identity_was_written(tmp_path: Path) -> None:
    (tmp_path / "identity.json").touch()
    with claimed(tmp_path, "a"):
        assert json.loads((tmp_path / "identity.json").read_text()) == {"identity": "a"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "environment.json"])
def test_a_run_that_has_begun_keeps_all_that_it_has(tmp_path: Path, name: str) -> None:
    """A log alone is of no run: the claim ends. All else is, and stays with its identity, whatever is raised."""
    for begun in (False, True):
        with pytest.raises(ValueError, match="refused"), claimed(tmp_path, "a"):
            (tmp_path / "train.log").write_text("a line\n")
            (tmp_path / name).touch() if begun else None
            raise ValueError("refused")
        left = {path.name for path in tmp_path.iterdir()}
        clear(tmp_path, {"train.log"}, in_words=True)  # of somebody's before
        clear(tmp_path, None, in_words=False)
        assert {path.name for path in tmp_path.iterdir()} == left
        clear(tmp_path, None, in_words=True)
        assert left == ({"identity.json", "train.log", name} if begun else {"train.log"})
        assert tmp_path.exists() == begun
        tmp_path.mkdir(exist_ok=True)
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize("tail", ["", '{"round": 3, "x"', "\0\0\0\0"])
def test_rounds_behind_the_checkpoint_and_half_lines_are_cut(tmp_path: Path, tail: str) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"round": {r}}}\n' for r in range(3)) + tail)
    (tmp_path / "acceptance.csv").write_text("round,client\n0,4\n0,7\n1,2\n1,3\n2,1\n2,")
    RunFiles(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 0}\n{"round": 1}\n'
    assert (tmp_path / "acceptance.csv").read_text() == "round,client\n0,4\n0,7\n1,2\n1,3\n"


def test_lines_missing_before_the_checkpoint_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n{"round": 2}\n')
    (tmp_path / "acceptance.csv").write_text("round,client\n0,4\n")
    with pytest.raises(RunFolderError, match="line 2 is damaged: round 2 follows round 0"):
        RunFiles(tmp_path, 3)
    with pytest.raises(RunFolderError, match="ends at round 0, the checkpoint at 1"):
        (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
        RunFiles(tmp_path, 2)
