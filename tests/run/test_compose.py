"""Every tool that composes a config knows the user's own parts, wherever the user says that they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from oracles.recorded import written

from flame.partition.__main__ import main as partition
from flame.replay import main as replay
from flame.run.build import build
from flame.run.command import prepared
from flame.run.compose import Conf, ConfigError, composed
from flame.run.estimate import estimate, planned

SMOKE = ("experiment=smoke", "engine=sequential", "tracker=files")
CODE = """
from dataclasses import dataclass

from flame.defenses.fedavg import FedAvg


@dataclass(frozen=True)
class Mine(FedAvg):
    strength: float
"""
RECIPE = """
defaults: [config, _self_]
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      defense: mine,fedavg
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conf of the user's with a defense, a partition and a recipe, whose code is on PYTHONPATH."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_parts.py").write_text(CODE)
    files = {
        "defense/mine.yaml": "defaults: [fedavg, _self_]\n_target_: my_parts.Mine\nstrength: 0.5\n",
        "partition/halves.yaml": "defaults: [dirichlet]\nalpha: 100\n",
        "sweep_mine.yaml": RECIPE,
    }
    for name, text in files.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return tmp_path / "conf"


@pytest.mark.parametrize("way", ["--config-dir", "hydra.searchpath"])
def test_an_own_defense_is_composed_and_built(own: Path, way: str) -> None:
    words = [*SMOKE, "defense=mine", "defense.strength=2"]
    if way == "--config-dir":
        cfg = composed(words, conf=Conf(str(own)))
    else:
        cfg = composed([*words, f"hydra.searchpath=[file://{own}]"])
    defense = build(cfg).defense
    assert type(defense).__module__ == "my_parts" and defense.strength == 2  # type: ignore[attr-defined]


def test_a_conf_in_the_place_of_the_project_s(own: Path) -> None:
    (own / "alone.yaml").write_text("mine: 1\n")
    assert composed([], "alone", Conf(path=str(own))) == {"mine": 1}
    assert composed([], conf=Conf(path="conf")) == composed([])  # from the folder of train.py


def test_without_it_the_option_is_not_there(own: Path) -> None:
    with pytest.raises(ConfigError, match="there is no option 'mine'"):
        composed(["defense=mine"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["defense=mien"], "no option 'mien'; did you mean mine"),
        (["defense=mine", "defense.strenght=1"], "no key 'strenght' of my_parts.Mine; did you mean defense.strength="),
        (["partition=half"], "no option 'half'; did you mean halves"),
        (["partition=halves", "partition.alhpa=1"], "did you mean partition.alpha="),
        (["--config-name", "sweep_min"], "did you mean sweep_mine"),
        (
            ["defense=mine,fedavg", "defense.strength=1", "-m"],
            "no key 'strength' of flame.defenses.fedavg.FedAvg",
        ),
    ],
)
def test_hints_know_own_parts(own: Path, words: list[str], hint: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        prepared([*words, "--config-dir", str(own)])
    assert hint in str(stopped.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config-dir=.*nowhere is no folder"):
        composed([], conf=Conf(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"^hydra.searchpath: .*nowhere is no folder"):
        composed([f"hydra.searchpath=[file://{tmp_path}/nowhere]"])


def test_a_file_that_would_not_be_read_is_refused_by_every_tool(own: Path) -> None:
    (own / "defense" / "krum.yaml").write_text("_target_: my_parts.Mine\n")
    with pytest.raises(ConfigError, match=r"conf/defense/krum.yaml would not be read: .*; give yours another name"):
        composed([], conf=Conf(str(own)))


def test_estimate_plans_and_measures_an_own_defense(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMOKE, "train_samples=300", f"paths.runs={tmp_path / 'runs'}"]
    jobs = planned("sweep_mine", words, multirun=False, conf=Conf(str(own)))
    assert [job.cfg.hydra.runtime.choices.defense for job in jobs] == ["mine", "fedavg"]
    arguments = prepared(["defense=mine", "--estimate", *words, "--config-dir", str(own), "rounds=3"])
    assert estimate(arguments) == 0
    assert capsys.readouterr().out.startswith("1 runs, 0 of them finished")


def test_replay_and_compare_know_an_own_defense(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path / "round.safetensors"))
    replay([file, "defense=mine", "--config-dir", str(own), "defense.strength=3"])
    assert len(json.loads(capsys.readouterr().out)["accepted"]) == 10
    replay(["--compare", file, "--defenses", "mine,flame_zhmzm", "--config-dir", str(own)])
    assert "everyone usable accepted in every round by: mine" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"--defenses=mine is unknown: .* --config-dir adds others"):
        replay(["--compare", file, "--defenses", "mine"])
    replay(["--compare", file, "--defenses", "mine", f"hydra.searchpath=[file://{own}]"])
    assert "by: mine" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^seed=1: --compare takes defenses as they are"):
        replay(["--compare", file, "seed=1"])


def test_the_partition_tool_knows_an_own_partition(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMOKE[:1], "--config-dir", str(own), "partition=halves", "seed=1"]
    monkeypatch.setattr(sys, "argv", ["partition", *words])
    partition()
    assert "10 clients; images per client" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["partition", *words, "--figure", str(tmp_path / "no" / "x.png")])
    with pytest.raises(SystemExit, match=r"--figure .*x.png: No such file or directory; name a file in a folder"):
        partition()


def test_a_package_that_cannot_be_imported(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.endswith("/code")])
    with pytest.raises(ConfigError, match=r"my_parts.Mine cannot be imported .* my_parts is a package .* PYTHONPATH"):
        build(composed([*SMOKE, "defense=mine"], conf=Conf(str(own))))


def test_an_import_that_fails_inside_an_own_module(own: Path) -> None:
    (own.parent / "code" / "my_parts.py").write_text("import not_installed\n")
    with pytest.raises(ConfigError, match=r"my_parts.Mine cannot be imported \(No module .*'not_installed'\): install"):
        build(composed([*SMOKE, "defense=mine"], conf=Conf(str(own))))
