"""How the jobs of a sweep and the workers of their engines share a machine: jobs times workers is at most its cores.

A launcher is described by its config: joblib's `n_jobs` run at once, submitit's are given `cpus_per_task` cores each,
Ray's `ray.remote.num_cpus`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from flame.round.cgroups import CGROUPS, MEMBERSHIP, limits


def cores() -> int:
    """Those that this process may use, >= 1: by its affinity, and by the quota of its cgroups, rounded up."""
    those = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([those, *map(math.ceil, quotas())]))


def quotas(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> list[float]:
    """Cores' worth of time that each cgroup of this process has, where it is bounded (`docker run --cpus=1.5`)."""
    found = []
    for entries in limits("cpu", ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"), root, membership):
        texts = entries.get("cpu.max", " ".join(list(entries.values()))).split()  # quota and period, in microseconds
        if len(texts) == 2 and texts[0].isdigit() and int(texts[1]):  # "max" and -1 are none
            found.append(int(texts[0]) / int(texts[1]))
    return found


def cores_per_job(launcher: Mapping[str, Any], cores: int) -> int:
    """A job's share of the machine it runs on, >= 1: what `engine.workers=auto` stands for."""
    if "cpus_per_task" in launcher:
        return min(cores, launcher["cpus_per_task"] or 1)  # Slurm, too, takes null for 1
    if "ray" in launcher:  # a job is a task, of one core unless told otherwise
        return max(1, min(cores, int(launcher["ray"].get("remote", {}).get("num_cpus") or 1)))
    jobs = launcher.get("n_jobs") or 1
    return max(1, cores // (cores if jobs < 0 else min(jobs, cores)))


def jobs_at_once(launcher: Mapping[str, Any], cores: int) -> int:
    """How many jobs share this machine; 1 where a queue elsewhere decides (Slurm, Ray)."""
    if "n_jobs" in launcher:
        jobs = launcher["n_jobs"] or 1
        return cores if jobs < 0 else min(jobs, cores)
    return batch_size(launcher, cores) or 1


def batch_size(launcher: Mapping[str, Any], cores: int) -> int | None:
    """How many jobs a launcher without a queue, which starts all it gets, is given at a time; None: any number."""
    if not launcher["_target_"].endswith(".LocalLauncher"):
        return None
    return max(1, cores // cores_per_job(launcher, cores))


def engine_workers(cfg: DictConfig) -> dict[str, int]:
    """`engine.workers=auto` as a number: the cores of this job."""
    if (wanted := cfg.engine.get("workers", 1)) != "auto":
        if not isinstance(wanted, int) or wanted < 1:
            raise ValueError(f"engine.workers={wanted} is out of range: must be auto or a whole number >= 1")
        return {}
    sweeps = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return {"workers": cores_per_job(HydraConfig.get().launcher if sweeps else {}, cores())}
