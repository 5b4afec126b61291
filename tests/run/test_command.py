"""The command line of train.py: in any order, in any letters, and refused in words where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flame.run.command import prepared, split
from flame.run.compose import ConfigError, composed
from flame.run.overrides import quoted

WRONG_KEYS = {
    "partition.sampels_per_client=3": "did you mean partition.samples_per_client=?",
    "defense.noise.facto=0": "did you mean defense.noise.factor=?",
    "defense.cluster.min_size=0": "of flame.defenses.steps.",
    "attack.trigger.siz=3": "did you mean attack.trigger.size=?",
    "attack=pgd attack.backdoor.trigger.siz=3": "did you mean attack.backdoor.trigger.size=?",
    "attack=threedfed attack.backdoor.trigger.sise=3": "did you mean attack.backdoor.trigger.size=?",
    "defense=nnm defense.rule.trimm=1": "of flame.defenses.trimmed_mean.TrimmedMean",
    "model.normm=group": "did you mean model.norm=?",
    "dataset.meen=[0]": "did you mean dataset.mean=?",
    "client.lrr=1": "did you mean client.lr=?",
    "engine.worker=2": "did you mean engine.workers=?",
    "tracker.projekt=a": "did you mean tracker.project=?",
    "hydra.launcher.n_job=2": "known are: none",
    "hydra.swep.dir=x": "did you mean hydra.sweep=?",
    "hydra.run.dri=x": "did you mean hydra.run.dir=?",
    "attack=pgd attack.backdoor.client.clipnorm=1": "did you mean attack.backdoor.client.clip_norm=?",
    "attack.client.clip_norm=1": "for it to replace; add one: +attack.client.clip_norm=1",
    "expriment=smoke": "did you mean experiment=?",
    "hydra/launcher=jobli": "did you mean joblib?",
    "experiment=null": "experiment=null: an option is the name of a file in that group",
    "defense=3": "defense=3: an option is the name of a file in that group",
    "--config-name=tabel_attacks": "did you mean --config-name recipe/",
    "-m defense.noise.facto=0,1": "did you mean defense.noise.factor=?",
    "-m attack=none,badnets attack.trigger.size=3": "there is no key 'trigger' of attacks.none",
    "-m attack=badnets,none attack.trigger.size=3": "there is no key 'trigger' of attacks.none",
    "seed=0,1": "seed=0,1 is several values: add --multirun (-m) to run each, or say seed=[0,1]",
    "rounds": "rounds cannot be read: KEY=VALUE",
    "paths.runs=a(b": "paths.runs=a(b cannot be read: KEY=VALUE, and a value with a blank",
}
WRONG_TYPES = {
    "seed=a": "seed='a' has the wrong type: must be a whole number, such as seed=0",
    "rounds=ten": "rounds='ten' has the wrong type: must be a whole number, such as rounds=",
    "rounds=2.5": "rounds=2.5 has the wrong type: must be a whole number",
    "rounds=null": "rounds=null has the wrong type: must be a whole number",
    "train_samples=few": "train_samples='few' has the wrong type: must be a whole number or null",
    "poisoned_model_rate=half": "poisoned_model_rate='half' has the wrong type: must be a number",
    "record.rounds=3": "record.rounds=3 has the wrong type: must be a list, such as [0, 9]",
    "record.rounds=[a]": "record.rounds='a' has the wrong type: must be a list, such as [0, 9]",
    "shadow=head": "shadow='head' has the wrong type: must be a list of words, such as [weights_only]",
    "checkpoint.seconds=x": "checkpoint.seconds='x' has the wrong type: must be a number",
    "checkpoint=3": "checkpoint=3 has the wrong type: it has keys of its own, rounds, seconds",
    "memo.gb=x": "memo.gb='x' has the wrong type: must be a number",
    "paths.runs=null": "paths.runs=null has the wrong type: must be text",
    "-m seed=0,b": "seed='b' has the wrong type: must be a whole number",
    "-m rounds=3 seed=range(3) clients=10,x": "clients='x' has the wrong type",
}


@pytest.mark.parametrize("words", [*WRONG_KEYS, *WRONG_TYPES])
def test_a_wrong_word_is_refused(words: str) -> None:
    """And never with Hydra's advice to add what is only misspelt."""
    with pytest.raises(SystemExit) as stopped:
        prepared(words.split())
    said = str(stopped.value)
    assert (WRONG_KEYS | WRONG_TYPES)[words] in said
    assert "To append" not in said and "full_key" not in said and "\n" not in said


@pytest.mark.parametrize(
    "words",
    [
        "seed='7'",
        "-m seed=range(3) defense=krum,median",
        "-m defense=flame_weights_only,flame_all_state defense.noise.factor=0,0.1",
        "train_samples=null +attack.client.clip_norm=1 hydra.verbose=true",
        "-m defense=glob(flame_a*) seed=0,1",
        "--config-name recipe/paper/table_attacks defense=krum",
        "--help",
    ],
)
def test_a_right_word_passes(words: str) -> None:
    assert sorted(prepared(words.split())) == sorted(words.split())


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("a=1 -m b=2", "-m"),
        ("a=1 --config-dir DIR b=2", "--config-dir DIR"),
        ("a=1 -cd DIR b=2 --cfg job", "-cd DIR --cfg job"),
        ("a=1 --config-name=x b=2", "--config-name=x"),
        ("a=1 --info b=2", "--info"),
        ("--info config a=1 b=2", "--info config"),
        ("a=1 b=2 --estimate -m", "--estimate -m"),
    ],
)
def test_options_may_stand_between_overrides(given: str, options: str) -> None:
    assert split(given.split()) == (options.split(), ["a=1", "b=2"])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("paths.runs=~/x", "HOME/x"),
        ("paths.runs=/tmp/Läufe", "/tmp/Läufe"),
        ("paths.runs=/tmp/my runs", "/tmp/my runs"),
        ("paths.runs=/tmp/実験", "/tmp/実験"),
        ("paths.runs=~/it's", "~/it's"),  # with a quote in it, it is the user's to quote
        ("paths.runs='~/x'", "~/x"),
        ("paths.runs=a=b", "a=b"),
    ],
)
def test_any_letter_and_home(word: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if "it's" in word:
        assert quoted(word) == word
        return
    assert composed([quoted(word)]).paths.runs == value.replace("HOME", str(tmp_path))


def test_home_in_a_file_or_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLAME_RUNS", "~/Läufe")
    cfg = composed([], hydra=True)
    assert cfg.hydra.run.dir.startswith(f"{tmp_path}/Läufe/fashion_mnist-")
    assert cfg.hydra.sweep.dir == f"{tmp_path}/Läufe"


def test_a_wrong_type_in_a_file_is_named_with_it(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nrounds: ten\n")
    with pytest.raises(ConfigError, match=r"^rounds='ten' has the wrong type: .*\(in experiment/mine.yaml\)$"):
        composed(["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"])


def test_names_are_cut_to_what_a_file_system_takes(tmp_path: Path) -> None:
    """255 bytes, of which the seed and the identity are not cut; names that differ there stay different."""
    names = []
    for option in ("ü" * 120 + "a", "ü" * 120 + "b"):
        (tmp_path / "defense").mkdir(exist_ok=True)
        (tmp_path / "defense" / f"{option}.yaml").write_text(f"defaults: [fedavg]\nnote: {option[-1]}\n")
        words = [f"defense='{option}'", f"hydra.searchpath=[file://{tmp_path}]"]
        for extra in ([], ["resume=false"]):
            names.append(Path(composed([*words, *extra], hydra=True).hydra.run.dir).name)
            assert len(names[-1].encode()) <= 255
            assert names[-1].startswith("fashion_mnist-main_label-resnet8-badnets-üüü") and "-s0-" in names[-1]
    assert len(set(names)) == 4
    assert OmegaConf.create({"name": names[0]}).name == names[0]
    (tmp_path / names[0]).mkdir()


def test_two_processes_of_one_second_have_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    from flame.run import config

    names = set()
    for microsecond in (1, 2):
        monkeypatch.setattr(config, "STARTED", config.STARTED.replace(microsecond=microsecond))
        names.add(Path(composed(["resume=false"], hydra=True).hydra.run.dir).name)
    assert len(names) == 2
