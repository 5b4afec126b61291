"""What becomes of a sweep's failure where it cannot be noted: it is told all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from flame.run.sweep import SweepReport

FULL = Path("/dev/full")  # a disk


def report(ledger: Path) -> SweepReport:
    """Amid a sweep of two jobs."""
    found = SweepReport()
    found._ledger, found._jobs = ledger, 2
    return found


def ended(folder: Path, error: Exception | None) -> tuple[DictConfig, JobReturn]:
    """As Hydra hands over a job's end."""
    done = JobReturn()
    done.status, done._return_value = JobStatus.FAILED if error else JobStatus.COMPLETED, error
    return OmegaConf.create({"hydra": {"runtime": {"output_dir": str(folder)}, "overrides": {"task": []}}}), done


@pytest.mark.skipif(not FULL.exists(), reason="no full device here")
def test_a_failure_that_cannot_be_noted_stays_one(tmp_path: Path) -> None:
    """Hydra makes a warning of what a callback raises; the job's own error ends the sweep then."""
    config, done = ended(tmp_path, ValueError("the disk is full"))
    with pytest.raises(OSError, match="No space left"):
        report(FULL).on_job_end(config, done)
    assert done.status == JobStatus.FAILED and str(done._return_value) == "the disk is full"


def test_a_note_that_was_cut_off_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ledger := tmp_path / "ledger").write_text('\n{"folder": "/runs/a", "wor')
    sweep = report(ledger)
    config, done = ended(tmp_path / "b", ValueError("b failed"))
    sweep.on_job_end(config, done)
    assert done.status == JobStatus.COMPLETED
    with pytest.raises(SystemExit, match="1"):
        sweep.on_multirun_end(config)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("2 jobs failed") and said[1].endswith("its note was cut off")
    assert said[2] == f"  {tmp_path / 'b'}: ValueError: b failed"
