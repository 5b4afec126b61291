"""Jobs times workers is at most the cores, whatever the launcher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from flame.run.config import register
from flame.run.cores import batch_size, cores, cores_per_job, jobs_at_once, quotas
from flame.run.sweep import SWEEP, SweepReport

ROOT = Path(__file__).parents[2]
MINE = "hydra.sweeper.max_batch_size=7"
BASIC: dict[str, Any] = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
LOCAL = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"}
RAY = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"}
SLURM = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}


@pytest.mark.parametrize(
    ("launcher", "share", "batch"),
    [
        (BASIC, 8, None),  # one job after the other has the machine
        (JOBLIB | {"n_jobs": 3}, 2, None),
        (JOBLIB | {"n_jobs": 20}, 1, None),
        (JOBLIB | {"n_jobs": -1}, 1, None),  # as many jobs as cores
        (LOCAL | {"cpus_per_task": 1}, 1, 8),
        (LOCAL | {"cpus_per_task": 3}, 3, 2),
        (LOCAL | {"cpus_per_task": 20}, 8, 1),
        (LOCAL | {"cpus_per_task": None}, 1, 8),
        (RAY | {"ray": {"remote": {}}}, 1, None),
        (RAY | {"ray": {"remote": {"num_cpus": 3}}}, 3, None),
        (SLURM | {"cpus_per_task": 4}, 4, None),  # Slurm counts the jobs of a node itself
    ],
)
def test_eight_cores(launcher: dict[str, Any], share: int, batch: int | None) -> None:
    assert cores_per_job(launcher, cores=8) == share
    assert batch_size(launcher, cores=8) == batch


@given(machine=st.integers(1, 64), jobs=st.integers(1, 100), each=st.none() | st.integers(1, 100))
def test_no_launcher_on_one_machine_takes_more_cores_than_there_are(machine: int, jobs: int, each: int | None) -> None:
    at_once = min(jobs, machine)  # joblib is told n_jobs, but more than the cores are the user's wish
    assert at_once * cores_per_job(JOBLIB | {"n_jobs": jobs}, machine) <= machine
    local = LOCAL | {"cpus_per_task": each}
    assert (batch_size(local, machine) or 0) * cores_per_job(local, machine) <= machine


@pytest.mark.parametrize(
    ("launcher", "jobs"),
    [
        (BASIC, 1),
        (JOBLIB | {"n_jobs": 3}, 3),
        (JOBLIB | {"n_jobs": 9}, 8),
        (JOBLIB | {"n_jobs": -1}, 8),
        (LOCAL | {"cpus_per_task": 4}, 2),
        (SLURM | {"cpus_per_task": 4}, 1),
        (RAY | {"ray": {"remote": {"num_cpus": 2}}}, 1),
    ],
)
def test_jobs_that_share_a_machine_of_eight(launcher: dict[str, Any], jobs: int) -> None:
    assert jobs_at_once(launcher, 8) == jobs


@pytest.mark.parametrize(("launcher", "batch"), [("basic", None), ("submitit_local", cores()), ("slurm", None)])
def test_the_sweeper_is_told(launcher: str, batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if launcher != "basic":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `submitit` is not installed")
    for name in (SWEEP, "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # which the callback changes
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [f"hydra/launcher={launcher}", f"paths.runs={tmp_path}"]
        cfg, asked = (compose("config", [*overrides, *more], return_hydra_config=True) for more in ([], [MINE]))
    for config in (cfg, asked):
        SweepReport().on_multirun_start(config)
    assert os.environ["PYTHONPATH"] == str(ROOT)  # for jobs that start elsewhere
    assert cfg.hydra.sweeper.max_batch_size == batch
    assert asked.hydra.sweeper.max_batch_size == 7


@pytest.mark.parametrize(
    ("membership", "files", "found"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, [1.5]),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 200000", "cpu.max": "max 1"}, [2.0]),
        ("0::/host/path\n", {"cpu.max": "50000 100000"}, [0.5]),  # a container sees its own group as the top
        (
            "4:cpu,cpuacct:/a\n7:memory:/b\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            [3.0],
        ),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("7:memory:/a\n", {"cpu.max": "1 1"}, []),
        ("0::/\n", {}, []),
    ],
)
def test_quotas_of_cgroups(membership: str, files: dict[str, str], found: list[float], tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert quotas(tmp_path / "fs", tmp_path / "cgroup") == found
    assert quotas(tmp_path / "fs", tmp_path / "nowhere") == []  # as on macOS


@pytest.mark.parametrize(("quota", "found"), [([], 4), ([1.5], 2), ([0.2], 1), ([9.0], 4), ([3.0, 1.0], 1)])
def test_a_quota_counts_as_cores_rounded_up(quota: list[float], found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr("flame.run.cores.quotas", lambda: quota)
    assert cores() == found
