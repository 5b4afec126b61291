"""Every command of the README runs, made tiny; every make target, path and config option that it names exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TINY = ["experiment=smoke", "engine=sequential", "tracker=files", "train_samples=200"]


def commands() -> list[str]:
    """The lines of all bash blocks, without comments and blank lines, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run(words: list[str], runs: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FLAME_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    words = [sys.executable if word == "python" else word for word in words]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_make_target(line: str) -> None:
    assert run([*shlex.split(line), "--dry-run"], ROOT / "runs").returncode == 0


def test_python_commands_in_order(tmp_path: Path) -> None:
    """In the README's order, because `flame.replay` reads what a run before it recorded."""
    done = 0
    for line in (line for line in commands() if line.startswith("python ")):
        words = shlex.split(line)
        if "train.py" in words:
            words += TINY
        elif "flame.data.datasets" in words:
            words = [*words[:3], "--help"]  # it would use the network
        recorded = next(tmp_path.glob("*/recorded"), None)
        words = [word.replace("runs/NAME", str(recorded.parent) if recorded else "") for word in words]
        words = [str(p) for word in words for p in (sorted(recorded.glob("*")) if recorded and "*" in word else [word])]
        words = [str(tmp_path / word) if word.endswith((".png", ".html", ".json")) else word for word in words]
        words = [f"out={tmp_path / 'out.safetensors'}" if word.startswith("out=") else word for word in words]
        words = [str(tmp_path) if word in ("runs", "runs/demo") else word for word in words]
        finished = run(words, tmp_path)
        assert finished.returncode == 0, f"{line}\n{finished.stdout[-2000:]}{finished.stderr[-2000:]}"
        done += 1
    assert done >= 5 and (tmp_path / "out.safetensors").exists()


def test_the_options_it_names_exist() -> None:
    """The table of choices has a line for each group of conf/ with something to choose."""
    table = README.partition("| group | options |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| `([\w/]+)` \| (?:of .*?: )?(.*) \|$", table, flags=re.MULTILINE)
    there: dict[str, set[str]] = {}
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        there.setdefault(path.parent.relative_to(ROOT / "conf").as_posix(), set()).add(path.stem)
    assert sorted(group for group, _ in lines) == sorted(group for group, names in there.items() if len(names) > 1)
    for group, cell in lines:
        named = {name for name in re.findall(r"`(\w+)`", cell) if name not in ("group", "none")}
        assert named and named <= there[group], (group, named - there[group])
    presets = re.findall(r"`(flame_\w+)`", README)
    assert presets and set(presets) <= there["defense"] | there["attack"]


def test_the_files_it_names_exist() -> None:
    paths = re.findall(r"`((?:flame|conf|attacks|models|tests|results)/[\w/.-]+)`", README)
    assert paths and not [path for path in paths if not (ROOT / path).exists()]
