"""`examples/yours/`: the guide shows its files to the letter; its six parts run in every engine, to the same bits."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "examples" / "yours"
GUIDE = (ROOT / "docs" / "guides" / "yours.md").read_text()
FILES = sorted(
    path.relative_to(TEMPLATE).as_posix() for path in TEMPLATE.rglob("*.*") if path.suffix in (".py", ".yaml")
)
PARTS = {Path(name).parent.name: Path(name).stem for name in FILES if name.endswith(".yaml")}
WORDS = [f"{group}={name}" for group, name in PARTS.items()]
SIZE = ("rounds=1", "report_last=1", "clients=10", "clients_per_round=10", "tracker=files")


def started(words: list[str], folder: Path, command: Callable) -> dict[str, str]:
    """Run folder -> hash of its model, of a command that finds the template as a user's own folder beside it."""
    shutil.copytree(TEMPLATE, folder / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join(filter(None, ["mine", os.environ.get("PYTHONPATH")]))  # from where the user is
    environment = {**os.environ, "PYTHONPATH": path, "FLAME_RUNS": "runs"}
    done = command([str(ROOT / "train.py"), "--config-dir", "mine/conf", *words], environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(path.read_text()) for path in folder.glob("runs/*/summary.json")]
    return {summary["identity"]: summary["state_sha256"] for summary in summaries}


def test_there_is_one_of_each_kind() -> None:
    assert sorted(PARTS) == ["attack", "client", "dataset", "defense", "model", "partition"]
    assert len(FILES) == 12


@pytest.mark.parametrize("name", FILES)
def test_the_guide_shows_it_as_it_is(name: str) -> None:
    text = (TEMPLATE / name).read_text()
    assert text.count("\n") < 25
    language = "python" if name.endswith(".py") else "yaml"
    assert f"[`{name}`](../../examples/yours/{name})\n\n```{language}\n{text}```\n" in GUIDE


def test_the_guide_s_command_names_all_six() -> None:
    (line,) = re.findall(r"^PYTHONPATH=mine .*dataset=.*$", GUIDE, flags=re.MULTILINE)
    assert sorted(line.split()[-6:]) == sorted(WORDS)


def test_all_parts_in_two_engines(command: Callable, tmp_path: Path) -> None:
    """From a folder of the user's, with relative paths; processes of a pool find the modules, too."""
    found = []
    for engine in ("sequential", "pool"):
        (tmp_path / engine).mkdir()
        found.append(started([*WORDS, *SIZE, f"engine={engine}"], tmp_path / engine, command))
    assert len(found[0]) == 1 and found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["joblib", "ray"])
def test_all_parts_in_other_processes(command: Callable, tmp_path: Path, way: str) -> None:
    """Jobs of a sweep under joblib, and Ray's workers, to the bits of `sequential`."""
    pytest.importorskip({"ray": "ray", "joblib": "hydra_plugins.hydra_joblib_launcher"}[way])
    words = ["engine=ray", "engine.workers=1"]
    if way == "joblib":
        words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "engine=sequential", "seed=0,1"]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    expected = started([*WORDS, *SIZE, "engine=sequential"], tmp_path / "one", command)
    found = started([*WORDS, *SIZE, *words], tmp_path / "other", command)
    assert len(found) == 1 + (way == "joblib") and expected.items() <= found.items()
