"""A sweep on a real Slurm of one node, in which the command is killed and given again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from slurm import missing, slurm
from sweeps import kill_and_give_again

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def test_killed_sweep_given_again_runs_what_is_missing_and_lists_failures(tmp_path: Path) -> None:
    """Two jobs at a time, as the cluster has two cores; those of the dead command stay in the queue and end."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `submitit` is not installed")
    runs, daemons = tmp_path / "runs", tmp_path / "slurm"
    runs.mkdir(), daemons.mkdir()
    with slurm(daemons, cpus=2) as environment:

        def idle() -> bool:
            return not subprocess.check_output(["squeue", "--noheader"], env=environment).strip()

        kill_and_give_again(runs, ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"], environment, idle)
