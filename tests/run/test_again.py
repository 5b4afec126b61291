"""A run is repeated from its folder, to the same bits; a file that Hydra would not read is refused, not passed over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import yaml
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from flame.run.again import COMMAND, CONF, portable, refuse_shadowed, repeat, without_again
from flame.run.command import prepared
from flame.run.config import identity

Compose = Callable[..., DictConfig]
Train = Callable[..., subprocess.CompletedProcess[str]]
OPTIONS = (
    *("experiment=smoke", "engine=sequential", "tracker=files", "train_samples=300", "rounds=2"),
    *("attack=dba", "attack/trigger=bars", "defense=flame_all_state", "partition=dirichlet", "seed=7"),
)


def recorded(folder: Path, cfg: DictConfig, **paths: str) -> Path:
    """A run folder as far as a repetition reads it; `paths` as that machine had them."""
    folder.mkdir(parents=True)
    cfg = OmegaConf.merge(cfg, {"paths": paths})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    names = ("dataset", "partition", "model", "attack", "defense", "engine", "tracker", "experiment")
    (folder / "choices.json").write_text(json.dumps({name: f"{name}s" for name in names}))
    return folder


def again(folder: Path, *words: str) -> DictConfig:
    """What `--again FOLDER WORDS` would hand to `run`, with its `hydra` node."""
    repeat(folder, [word.partition("=")[0] for word in words])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("again", list(words), return_hydra_config=True)


@pytest.fixture
def run(tmp_path: Path, tiny: Compose) -> Path:
    return recorded(tmp_path / "run", tiny(*OPTIONS))


def test_a_run_from_before_there_was_a_choice(run: Path, tiny: Compose) -> None:
    """What its config.yaml does not say is as it was then."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    old = {key: value for key, value in config.items() if key not in ("augment", "evaluate", "precision")}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    found = again(run)
    assert identity(found) == identity(tiny(*OPTIONS))
    for key in ("augment", "evaluate", "precision"):
        assert found[key] == OmegaConf.create({key: config[key]})[key]


def test_the_same_config_whole_in_a_new_folder(run: Path, tiny: Compose) -> None:
    cfg, wanted = again(run), OmegaConf.to_container(tiny(*OPTIONS), resolve=True)
    found = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), resolve=True)
    assert found == {**wanted, "resume": False}
    assert identity(cfg) == identity(tiny(*OPTIONS))
    name = f"datasets-partitions-models-attacks-defenses-s7-{identity(cfg)}-"
    assert Path(cfg.hydra.run.dir).name.startswith(name)
    assert cfg.hydra.callbacks.sweep._target_ == "flame.run.sweep.SweepReport"


def test_values_and_parts_can_be_others(run: Path, tiny: Compose) -> None:
    others = ("seed=8", "rounds=3", "partition.alpha=0.7")
    assert identity(again(run, *others)) == identity(tiny(*OPTIONS, *others))
    cfg = again(run, "defense=fedavg", "tracker=wandb", "resume=true")
    assert identity(cfg) == identity(tiny(*OPTIONS, "defense=fedavg")) and cfg.tracker.project == "flame"
    assert Path(cfg.hydra.run.dir).name == f"datasets-partitions-models-attacks-fedavg-s7-{identity(cfg)}"


def test_settings_that_conf_has_given_up_are_those_of_the_run(run: Path) -> None:
    """Nothing of today's option is mixed into what the run had."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["defense"] = {"_target_": "own.Defense", "bound": 3}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert OmegaConf.to_container(again(run).defense) == {"_target_": "own.Defense", "bound": 3}


def test_data_are_looked_for_where_they_are(tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("dataset=mnist", "spill.share=0")
    there, gone = (recorded(tmp_path / name, cfg, data=str(tmp_path / name), runs="/r") for name in ("there", "gone"))
    shutil.copytree(gone, tmp_path / "copy")
    shutil.rmtree(gone)
    monkeypatch.setenv("FLAME_DATA", "/elsewhere")
    monkeypatch.setenv("FLAME_RUNS", "/new")
    assert again(there).dataset.root == str(tmp_path / "there")
    found = again(tmp_path / "copy")
    assert found.dataset.root == found.paths.data == "/elsewhere" and found.spill.dir == found.paths.runs == "/new"
    assert identity(found) == identity(again(there)) == identity(cfg)


@pytest.mark.parametrize("kept", ["nothing", "home"])
def test_data_at_home_or_without_a_place(
    kept: str, tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config without `paths` has its data where any run looks; ~ is the home of whoever repeats it."""
    monkeypatch.setenv("FLAME_DATA", "/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    run = recorded(tmp_path / "run", compose("dataset=mnist"), data="~/mine", runs="/r")
    if kept == "nothing":
        config = yaml.safe_load((run / "config.yaml").read_text())
        del config["paths"]
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert again(run).paths.data == {"nothing": "/elsewhere", "home": "~/mine"}[kept]


def test_only_paths_are_taken_for_paths() -> None:
    settings = {"a": ["d", "d/x.npz", "d2", "xd/", 3, None], "b": {"c": "r"}}
    found = portable(settings, {"data": "d", "runs": "r"})
    assert found == {"a": ["${paths.data}", "${paths.data}/x.npz", "d2", "xd/", 3, None], "b": {"c": "${paths.runs}"}}


def test_the_command_line_is_noted_as_it_was_typed(run: Path) -> None:
    assert prepared(without_again(["train.py", "-m", "seed=0,1"])) == ["-m", "seed=0,1"]
    assert os.environ[COMMAND] == "python train.py -m seed=0,1"
    for words in ([f"--again={run}", "seed=1"], ["--again", str(run), "seed=1"], ["seed=1", "--again", str(run)]):
        assert prepared(without_again(["train.py", *words])) == ["--config-name", "again", "seed=1"]
    assert os.environ[COMMAND] == f"python train.py seed=1 --again {run}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--again"], "--again: which run"),
        (
            ["--again", "/nowhere"],
            "--again /nowhere: .*No such file.*must be the folder of a run, which has config.yaml",
        ),
        (["--again", "RUN", "--config-name", "other"], "--config-name: --again has a config already"),
        (["-cn=other", "--again", "RUN"], "-cn=other: --again has a config already"),
        (["--again", "RUN", "sed=1"], "did you mean seed="),
        (
            ["--config-dir", "RUN", "--config-name", "config"],
            "RUN is a run .* `python train.py --again RUN` repeats it",
        ),
        (["--config-dir=RUN"], "RUN is a run and no folder of configs"),
        (["-cd", "RUN"], "RUN is a run and no folder of configs"),
        (["--config-path", "RUN", "--config-name", "config"], "RUN is a run and no folder of configs"),
        (["hydra.searchpath=[file://RUN]"], "RUN is a run and no folder of configs"),
    ],
)
def test_what_would_mislead_is_refused(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message.replace("RUN", str(run))):
        prepared(without_again(["train.py", *(word.replace("RUN", str(run)) for word in words)]))


@pytest.mark.parametrize("content", ["", "[1]", "a: {", "- \x00"])
def test_a_damaged_config_is_refused(run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    with pytest.raises(SystemExit, match=f"--again {run}: .*must be the folder of a run"):
        repeat(run)


def test_a_file_of_one_s_own_that_hydra_would_pass_over(tmp_path: Path) -> None:
    """conf/ comes first: an edited copy, under its old name, would never be read. A true copy or a new name is fine."""
    shutil.copytree(CONF / "defense", tmp_path / "defense")
    shutil.copy(CONF / "defense/krum.yaml", tmp_path / "defense/own.yaml")
    for words in (["--config-dir", str(tmp_path)], [f"hydra.searchpath=[file://{tmp_path},pkg://x]"]):
        refuse_shadowed([*words, "defense=own"])
        with open(tmp_path / "defense/krum.yaml", "a") as file:
            file.write("# mine\n")
        with pytest.raises(SystemExit, match=r"krum\.yaml would not be read: conf/defense/krum\.yaml comes before it"):
            refuse_shadowed([*words, "seed=1"])
        shutil.copy(CONF / "defense/krum.yaml", tmp_path / "defense/krum.yaml")


def test_a_run_is_repeated_to_the_same_bits(train: Train, tmp_path: Path) -> None:
    """The command that the documents give, on a copy in another place, with the runs' folder named for the new one."""
    first = train(*OPTIONS, f"paths.runs={tmp_path / 'runs'}")
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "runs").iterdir()
    run = run.rename(tmp_path / "moved")
    second = train("--again", str(run), f"paths.runs={tmp_path / 'other'}")
    assert second.returncode == 0, second.stderr
    assert f"the final model is that of {run}, bit for bit" in second.stdout + second.stderr
    (repeated,) = (tmp_path / "other").iterdir()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, repeated)]
    for summary in summaries:
        summary["metrics"] = {k: v for k, v in summary["metrics"].items() if not k.startswith("time/")}
    assert summaries[0] == summaries[1] and len(summaries[0]["state_sha256"]) == 64
    environments = [json.loads((folder / "environment.json").read_text()) for folder in (run, repeated)]
    assert environments[1].pop("command") == f"python train.py --again {run} paths.runs={tmp_path / 'other'}"
    assert environments[0].pop("command").startswith("python train.py experiment=smoke engine=sequential")
    assert environments[0] == environments[1] and len(summaries[0]["code"]) == 12
