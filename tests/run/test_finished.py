"""A finished run is not built again, and still checks those settings that are not its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from omegaconf import DictConfig

from flame.run.build import ConfigError
from flame.run.revisit import checked

SMOKE = ("experiment=smoke", "engine=sequential", "tracker=files")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["device=tpu"], "device=tpu is unknown: must be cpu, cuda"),
        (["engine.workers=0"], "engine.workers=0 is out of range"),
        (["memo.gb=-1"], "memo.gb=-1.0 is out of range"),
        (["tracker=wandb", "tracker.mode=7"], "tracker.mode=7 has the wrong type: must be text"),
        (["tracker=wandb", "tracker.mode=xx"], "tracker.mode=xx is not a mode of W&B"),
        (["tracker=wandb", "tracker.project=a/b"], "tracker.project='a/b' is no name for W&B"),
        (["tracker=wandb"], ""),
        (["checkpoint.rounds=3"], ""),
    ],
)
def test_a_finished_run_checks_what_is_not_its_own(
    compose: Callable[..., DictConfig], arguments: list[str], message: str
) -> None:
    """Device, engine, tracker and places may differ from those of the finished run, which is not built again."""
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        checked(compose("experiment=smoke", *arguments))


def test_a_finished_run_is_refused_another_device(train: Callable, tmp_path: Path) -> None:
    quick = (*SMOKE, "rounds=1", "train_samples=300", f"paths.runs={tmp_path}")
    assert train(*quick).returncode == 0
    done = train(*quick, "device=tpu")
    assert done.returncode == 1 and "device=tpu is unknown" in done.stderr and "Traceback" not in done.stderr
