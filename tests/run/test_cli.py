"""`python train.py` as a user meets it; stopping and going on are in test_resume.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import REAL
from omegaconf import DictConfig

from flame.federation import rounds
from flame.round.types import digest

ROOT = Path(__file__).parents[2]
SMOKE = ("experiment=smoke", "clients_per_round=5", "tracker=files", "train_samples=300")
Train = Callable[..., subprocess.CompletedProcess[str]]


def state_sha256(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["state_sha256"]


def expected(start: Callable, cfg: DictConfig) -> str:
    """The final state's hash, computed in this process by the oracle."""
    with start(cfg) as (fed, state):
        *_, last = rounds(fed, state, cfg.rounds)
    return digest(last.after)


def test_help_is_complete_and_does_not_wait_for_torch() -> None:
    command = [sys.executable, "-X", "importtime", "train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    for group in ("dataset", "partition", "model", "attack", "defense", "engine", "tracker", "experiment"):
        assert f"\n{group}: " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported and not imported & {"torch", "hdbscan", "wandb", "matplotlib"}


def test_a_run(tiny: Callable[..., DictConfig], start: Callable, train: Train, tmp_path: Path) -> None:
    """The record is complete, under a name that says what it is, and the bits are the oracle's."""
    done = train(*SMOKE, "engine=sequential", "rounds=2", f"paths.runs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    names = {"metrics.jsonl", "acceptance.csv", "summary.json", "environment.json", "config.yaml", "train.log"}
    assert names <= {path.name for path in run.iterdir()}
    assert run.name.startswith("digits-iid-resnet8-badnets-flame_weights_only-s0-")
    assert state_sha256(run) == expected(start, tiny("rounds=2"))
    assert "round 1  MA " in done.stdout + done.stderr


def test_a_sweep_under_joblib(
    tiny: Callable[..., DictConfig], start: Callable, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool inside the launcher's own worker process: the oracle's bits."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv(REAL, "1")  # worker, fork server and all
    command = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SMOKE, "rounds=2"]
    done = train(*command, "defense=flame_all_state", "engine=pool", f"paths.runs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("*-flame_all_state-s0-*")
    assert "sweep: 1 of 1 runs, " in done.stdout + done.stderr
    assert state_sha256(run) == expected(start, tiny("rounds=2", "defense=flame_all_state"))
