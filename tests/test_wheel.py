"""The wheel: built, installed into an empty folder, and used there, without the checkout and without Hydra."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from warm import Warm

from flame.run.place import CONF

pytest.importorskip("setuptools", minversion="77", reason="no build tool: pip install 'setuptools>=77'")

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("flame", "attacks", "models", "conf")
BUILD = "import setuptools.build_meta as backend\nbackend.build_wheel('dist')\n"
HEAVY = ("hydra", "omegaconf", "wandb", "pandas", "matplotlib", "torchvision", "safetensors", "rich", "flwr")
USE = f"""
import json, sys
import hdbscan, torch  # which may take pandas along
before = {{*sys.modules}}
from flame import Aggregator, aggregate
start = {{"w": torch.zeros(4)}}
clients = [{{"w": torch.ones(4) + 0.1 * i}} for i in range(4)] + [{{"w": -torch.ones(4)}}]
new, outcome = aggregate("flame_zhmzm", start, clients, noise=0.0, vector={{"of": "update"}})
Aggregator("bucketing", rule="rfa")(start, clients)
import flame
print(json.dumps({{
    "accepted": outcome.accepted,
    "heavy": [name for name in {HEAVY!r} if name in {{*sys.modules}} - before],
    "from": flame.__file__,
}}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, command: Warm) -> Path:
    """A folder with the wheel in it and nothing else, from a copy of the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in ("pyproject.toml", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, source)
    for name in PARTS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "build.py").write_text(BUILD)
    run(command, ["build.py"], source)
    (wheel,) = (source / "dist").glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target)]
    run(command, ["-m", "pip", "install", *options, str(wheel)], source)
    return target


def run(command: Warm, words: list[str], folder: Path) -> None:
    done = command(words, {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}, cwd=folder)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def test_has_every_file(installed: Path) -> None:
    """Whatever room or option is new."""
    wanted = {path.relative_to(ROOT) for name in PARTS[:-1] for path in (ROOT / name).rglob("*.py")}
    wanted |= {Path("flame/conf") / path.relative_to(CONF) for path in CONF.rglob("*.yaml")}
    assert not [path for path in sorted(wanted) if not (installed / path).is_file()]
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} <= {"flame", "attacks", "models"}


def test_aggregates_outside_the_checkout_without_hydra(installed: Path, tmp_path: Path) -> None:
    """In a fresh interpreter, which has imported nothing else."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "conf").mkdir()  # somebody else's
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"accepted": [0, 1, 2, 3], "heavy": [], "from": str(installed / "flame/__init__.py")}
