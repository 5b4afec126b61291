"""What Hydra composes from memory is what it composes from the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from conftest import Compose
from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from remember import remember, remember_checks

import flame.run.build as run
from flame.engine.workbench import Task
from flame.round.types import ServerState
from flame.run.build import ConfigError
from flame.run.compose import CONF, Conf, composed
from flame.run.config import register

WORDS = (
    ("config", ["experiment=smoke", "seed=1"]),
    ("config", ["dataset=digits", "attack=lp", "attack@attack.backdoor=dba", "+attack.client.clip_norm=2"]),
    ("config", ["defense=nnm", "defense@defense.rule=crfl", "client/schedule=cosine", "~defense.rule.noise_std"]),
    ("recipe/question/vector_question", ["hydra.verbose=true"]),
    ("config", ["hydra/launcher=joblib"]),  # whose settings cannot be pickled
)
LIBRARY = (
    (ConfigRepository, "load_config"),
    (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DictConfig]]:
    """Composes as Hydra comes."""
    remember()
    register()

    def alone(name: str, words: list[str]) -> DictConfig:
        with monkeypatch.context() as patched:
            for owner, method in LIBRARY:
                patched.setattr(owner, method, getattr(owner, method).__wrapped__)
            patched.setattr(defaults_list, "_create_interpolation_map", choices)
            patched.delattr(ConfigStore, "__deepcopy__")
            return from_memory(name, words)

    (choices,) = (c.cell_contents for c in defaults_list._create_interpolation_map.__closure__)  # type: ignore[union-attr]
    assert choices.__module__ == defaults_list.__name__
    yield alone


def from_memory(name: str, words: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, words, return_hydra_config=True)


@pytest.mark.parametrize(("name", "words"), WORDS)
def test_it_is_what_the_files_say(forgetful: Callable[..., DictConfig], name: str, words: list[str]) -> None:
    if "hydra/launcher=joblib" in words:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    wanted = forgetful(name, words)
    for _ in range(2):
        found = from_memory(name, words)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(wanted) and found == wanted
        assert OmegaConf.get_type(found.hydra) is OmegaConf.get_type(wanted.hydra)
        with pytest.raises(HydraException, match=r"Could not override 'defense\.typo'"):
            from_memory(name, [*words, "defense.typo=1"])


def test_who_changes_a_config_changes_no_other() -> None:
    first = composed(["experiment=smoke"])
    OmegaConf.set_struct(first, False)
    first.defense.mine, first.seed = 1, 99
    again = composed(["experiment=smoke"])
    assert "mine" not in again.defense and again.seed == 0 and OmegaConf.is_struct(again)


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    """A new option, too, and one that is chosen by another choice."""
    (tmp_path / "defense").mkdir()
    file, conf = tmp_path / "defense" / "mine.yaml", Conf(directory=str(tmp_path))

    def defense(**values: Any) -> Any:
        file.write_text(OmegaConf.to_yaml({"_target_": "x.Y", **values}))
        return composed(["defense=mine"], conf=conf).defense

    assert defense(a=1) == {"_target_": "x.Y", "a": 1}
    assert defense(a=22) == {"_target_": "x.Y", "a": 22}
    (tmp_path / "defense" / "digits.yaml").write_text("defaults: [mine]\nb: 3\n")
    chosen = "defaults:\n  - /config\n  - override /dataset: digits\n  - override /defense: ${dataset}\n"
    (tmp_path / "own.yaml").write_text(chosen)
    assert composed([], "own", conf).defense == {"_target_": "x.Y", "a": 22, "b": 3}


def test_a_check_that_was_passed_is_not_made_again(tiny: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same model, state, recipe and images; and a failure is no pass."""
    made: list[int] = []

    def check(task: Task, state: ServerState) -> None:
        made.append(task.seed)
        if task.seed == 1:
            raise ValueError("model=resnet8 gives other numbers")

    monkeypatch.setattr(run, "check_repeatable", check)
    remember_checks()
    for words in ([], [], ["defense=flame_all_state"], ["client.lr=0.01"], ["model=cnn"], ["dataset.mean=[0.5]"], []):
        run.build(tiny(*words))
    assert len(made) == 4
    for _ in range(2):
        with pytest.raises(ConfigError, match="other numbers"):
            run.build(tiny("seed=1"))
    assert made[4:] == [1, 1]
