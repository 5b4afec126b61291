"""Wrong settings end with a sentence that names the key, the value and what to do; nothing is half-written.

What the command line prints and leaves behind is tested with a few real processes, the rest through `build`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from flame.round.cohort import Population, Schedule
from flame.run.build import ConfigError, build, composed
from flame.run.command import prepared
from flame.run.compose import CONF
from flame.run.experiment import unattacked
from flame.run.overrides import explain_missing_launcher, explain_unknown_keys

OUT_OF_RANGE = {
    "rounds=0": r"rounds=0 is out of range: must be a whole number >= 1",
    "report_last=0": r"report_last=0 is out of range",
    "evaluate_every=0": r"evaluate_every=0 is out of range",
    "threads=0": r"threads=0 is out of range",
    "clients=0": r"clients=0 is out of range",
    "clients_per_round=11": r"clients_per_round=11 is out of range: must be in \[1, clients=10\]",
    "poisoned_model_rate=1": r"poisoned_model_rate=1.0 is out of range: must be in \[0, 1\)",
    "poisoned_model_rate=-0.1": r"poisoned_model_rate=-0.1 is out of range",
    "attackers=all": r"attackers='all' is unknown: must be fixed or random",
    "attack_rounds.every=0": r"attack_rounds.every=0 is out of range",
    "train_samples=5000": r"train_samples=5000 is out of range: must be in \[1, 1442\]",
    "client.lr=0": r"^client.lr=0 is out of range",
    "client.batch_size=0": r"client.batch_size=0 is out of range",
    "evaluate.clients=9": r"evaluate.clients=9 is out of range: must be in \[0, 8\], the number of benign clients",
    "attack.poisoned_data_rate=1.5": r"attack.poisoned_data_rate=1.5 is out of range: must be in \[0, 1\]",
    "attack.source_class=5": r"attack.source_class=5 is the target class",
    "attack.target_class=12": r"attack.target_class=12",
    "attack.source_class=11": r"attack.source_class=11",
    "attack.client.epochs=0": r"^attack.client.epochs=0",
    "engine.workers=0": r"engine.workers=0 is out of range: must be auto or a whole number >= 1",
    "attack.trigger.size=0": r"attack.trigger.size=0 is out of range",
    "attack.trigger.row=7": r"attack.trigger.row=7: 5 pixels from there do not fit into 8",
    "attack.trigger.size=9": r"attack.trigger.size=9: 9 pixels do not fit into 8; make it smaller",
    "defense.noise.factor=-1": r"defense.noise.factor=-1 is out of range: must be >= 0",
    "defense.noise.epsilon=1": r"defense.noise: give either factor, or epsilon and delta",
    "defense.vector.scope=bias": r"defense.vector.scope='bias' is unknown: must be one of weights_only",
    "defense.clip.median=upper": r"defense.clip.median='upper' is unknown",
    "precision=fp16": r"precision='fp16' is unknown: must be one of float32, bf16",
    "model.norm=layer": r"model.norm=layer .*batch, group or none",
    "model=vgg19_bn": r"dataset.image_size=8 does not fit model=vgg19_bn.*must be >= 32",
    "dataset.channels=3": r"dataset.channels=3 .* does not fit digits",
    "clients=2000": r"clients=2000 .*N=1442 samples, a partition that cannot fill every client: lower clients",
    "+model.depth=3": r"model.depth is not a parameter of models.resnet8.ResNet8: it takes in_channels",
    "+defense.vector.scale=3": r"defense.vector.scale is not .* of .*Vector: did you mean defense.vector.scope",
}
FOUND_BY_TRYING = {
    "model.in_channels=3": r"model does not fit the images of dataset=digits, \(1, 8, 8\)",
    "model.num_classes=5": r"model gives \(2, 5\) for 2 images of dataset=digits: must be \(2, 10\)",
    "client.epochs=1.5": r"client.epochs=1.5 is out of range: must be a whole number >= 1 or a share of one pass",
    "augment=crop_flip augment.pad=8": r"augment.pad=8 is out of range: must be in \[0, 7\], .* 8 x 8 pixels",
    "augment=crop_flip augment.stamp=never": r"augment.stamp='never' is unknown: must be one of after, before",
    "client.lr=fast": r"^client.lr='fast' has the wrong type: must be a number",
    "client/schedule=multistep client.schedule.milestones=[50]": r"^client.schedule.milestones=\[50\] is out of range",
    "attack.client.epochs=two": r"^attack.client.epochs='two' has the wrong type",
    "defense.noise.factor=small": r"defense.noise.factor='small' has the wrong type: must be a number or null",
    "defense.cluster.min_cluster_size=1": r"min_cluster_size=1 is out of range: must be null \(n//2 \+ 1\), 0 \(no",
    "defense.cluster.min_samples=0": r"defense.cluster.min_samples=0 is out of range: must be null or >= 1",
    "checkpoint.rounds=-1": r"checkpoint.rounds=-1 is out of range: must be >= 0",
    "poisoned_model_rate=0.05": r"poisoned_model_rate=0.05 of clients_per_round=5 rounds to no attacker",
    "checkpoint.seconds=nan": r"checkpoint.seconds=nan is out of range: must be >= 0",
    "attack_rounds.start=3": r"attack_rounds.start=3 is out of range: rounds=3 end before the attack begins",
    "record.rounds=[1,3]": r"record.rounds=\[3\] is out of range: must be in \[0, rounds - 1 = 2\]",
    "record.rounds=[-1]": r"record.rounds=\[-1\] is out of range: must be in \[0, rounds - 1 = 2\]",
    "defense.cluster.min_cluster_size=6": r"min_cluster_size=6 is out of range: must be at most 5, the",
    "defense=freqfed defense.cluster.min_cluster_size=6": r"min_cluster_size=6 is out of range: must be at most",
    "defense=deepsight clients_per_round=4 poisoned_model_rate=0.25": r"^defense.min_cluster_size=5 is out of range",
    "defense=krum defense.keep=6": r"defense.keep=6 is out of range: must be in \[1, 5\], the updates of a round",
    "defense=bucketing defense.rule.keep=4": r"^defense.rule.keep=4 is out of range: must be in \[1, 3\]",
    "defense=nnm defense@defense.rule=deepsight clients_per_round=4 poisoned_model_rate=0.25": (
        r"^defense.rule.min_cluster_size=5 is out of range: must be in \[2, 4\]"
    ),
    "model=resnet18_light model.widths=3": r"model.widths=3 has the wrong type: must be a list",
    "model=resnet18 client.batch_size=1": r"model cannot train on a batch of 1 image.*batch_size",
    "model=resnet18 defense=fltrust defense.root_samples=1": r"model cannot train on a batch of 1 image.*root_samples",
    "model.norm=group defense=bnguard": r"bnguard reads BatchNorm statistics.*take a model that has",
    "attack.trigger=square": r"attack.trigger='square' has the wrong type: must be a part; its YAML says how",
    "server=adam server.rule=5": r"server.rule=5 has the wrong type: must be a part or null; its YAML says how",
    "+client.hardening=5": r"client.hardening=5 has the wrong type: must be a part or null",
    "attack.client=5": r"attack.client=5 has the wrong type: must be a part or null",
    "defense=crfl defense.randomized_smoothing=5": r"defense.randomized_smoothing=5 has the wrong type: must be",
    "attack=pgd attack.backdoor=edge_case": r"attack.backdoor='edge_case' has the wrong type: must be a part",
    "defense=nnm defense.rule=median": r"defense.rule='median' has the wrong type: must be a part",
    "defense=nnm defense@defense.rule=krum defense.rule.malicious_share=1": r"^defense\.rule\.malicious_share=1",
    "defense=nnm defense@defense.rule=crfl defense.rule.randomized_smoothing.copies=0": (
        r"^defense\.rule\.randomized_smoothing\.copies=0"
    ),
    "defense=nnm defense.malicious_share=1": r"^defense\.malicious_share=1",
    "attack=pgd attack@attack.backdoor=dba attack.backdoor.client.epochs=0": r"^attack\.backdoor\.client\.epochs=0",
    "attack=pgd attack.backdoor.trigger.size=0": r"^attack\.backdoor\.trigger\.size=0",
    "attack=threedfed attack.backdoor.target_class=12": r"^attack\.backdoor\.target_class=12",
    "attack=darkfed attack.client.lr=0": r"^attack\.client\.lr=0 is out of range",
    "attack=pgd attack.backdoor.trigger.row=7": (
        r"^attack\.backdoor\.trigger\.row=7: 5 pixels .*, unless attack\.backdoor\.trigger\.size=5 is made smaller"
    ),
    "attack=forged_statistics attack@attack.backdoor=dba attack.backdoor.parts=40": r"^attack\.backdoor\.parts=40",
    "defense=fltrust defense.root_samples=1442": r"root_samples=1442 is out of range: must be in \[1, 1441\]",
    "attack=dba attack.parts=40": r"attack.parts=40 is out of range: the trigger has only 12 pixels",
    "shadow=[foo]": r"shadow=\['foo'\] is unknown: must be a list of weights_only",
    "defense._target_=flame.defenses.flame.Flam": (
        r"defense\._target_=flame.defenses.flame.Flam cannot be imported \(.*no attribute 'Flam'"
    ),
    "defense._target_=nowhere.X": r"_target_=nowhere.X cannot be imported \(No .*'nowhere'\): if .* PYTHONPATH",
    "defense._target_=flame.defenses": r"defense\._target_=flame.defenses is no class or function",
}
GROUPS = [path.name for path in CONF.iterdir() if path.is_dir()]
SMOKE = ("experiment=smoke", "clients_per_round=5", "engine=sequential", "tracker=files")


@pytest.fixture
def smoke(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    return lambda *overrides: compose(*SMOKE, *overrides)


@pytest.mark.parametrize("override", OUT_OF_RANGE)
def test_out_of_range(smoke: Callable[..., DictConfig], override: str) -> None:
    with pytest.raises(ConfigError, match=OUT_OF_RANGE[override]):
        build(smoke("engine=pool", override))


@pytest.mark.parametrize("override", FOUND_BY_TRYING)
def test_what_does_not_fit(smoke: Callable[..., DictConfig], override: str) -> None:
    with pytest.raises(ConfigError, match=FOUND_BY_TRYING[override]):
        build(smoke(*override.split()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("attack=chameleon attack@attack.backdoor=min_max", r"backdoor=MinMax poisons no data and has no .*Chameleon"),
        ("attack=neurotoxin attack@attack.backdoor=gaussian", r"=Gaussian poisons no data and has no client, .*Neuro"),
        ("attack=chameleon attack@attack.backdoor=pgd", r"backdoor=PGD has no .*must be a way to poison data"),
        ("defense=trimmed_mean +defense.trim=0.6", r"^\+defense.trim=0.6: .* already; say it .* \+: defense.trim=0.6$"),
    ],
)
def test_what_cannot_be_composed_is_said_in_words(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(["experiment=smoke", *overrides.split()])
    composed(["experiment=smoke", "attack=neurotoxin", "attack@attack.backdoor=label_flip"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"poisoned_model_rate": 0.0}, "poisoned_model_rate=0.0 leaves the attack without an attacker"),
        ({"poisoned_model_rate": 0.0, "hostile": False}, None),
        ({"schedule": Schedule(3, 3, 1)}, "attackers=fixed draws no attacker in any round"),
        ({}, None),
    ],
)
def test_an_attack_without_attackers_is_worth_a_warning(changes: dict[str, Any], why: str | None) -> None:
    usual = {"poisoned_model_rate": 0.2, "schedule": Schedule(0, None, 1), "hostile": True, **changes}
    cfg = OmegaConf.create({"poisoned_model_rate": usual["poisoned_model_rate"], "attackers": "fixed", "rounds": 5})
    assert unattacked(Population(clients=20, per_round=10, rule="fixed", seed=0, **usual), cfg) == why


@pytest.mark.parametrize(("alpha", "size"), [(0, 10), (-1, 10), (0.5, 145), (0.5, 0)])
def test_a_dirichlet_that_cannot_be(smoke: Callable[..., DictConfig], alpha: float, size: int) -> None:
    wrong = rf"partition.alpha={alpha} is out of range: must be > 0" if alpha <= 0 else rf"partition.min_size={size}"
    with pytest.raises(ConfigError, match=wrong):
        build(smoke("partition=dirichlet", f"partition.alpha={alpha}", f"partition.min_size={size}"))


@pytest.mark.parametrize("name", ["mnist", "cifar10", "fashion_mnist"])
def test_a_dataset_that_is_not_there(compose: Callable[..., DictConfig], tmp_path: Path, name: str) -> None:
    cfg = compose(f"dataset={name}", f"paths.data={tmp_path}", "tracker=files")
    if name == "fashion_mnist" and Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("the system has it")
    with pytest.raises(ConfigError, match=rf"dataset={name}: no .*dataset.download=true"):
        build(cfg)


def test_unknown_keys_are_refused_by_the_composition(compose: Callable[..., DictConfig]) -> None:
    for override in ("defense.lambda=1", "round=3", "attack_rounds.begin=1"):
        with pytest.raises(HydraException, match=override.partition("=")[0].rpartition(".")[2]):
            compose(override)


def test_a_composition_that_fails_gives_the_reason() -> None:
    with pytest.raises(
        ConfigError, match=r"^rounds='many' has the wrong type: must be a whole number, such as rounds="
    ):
        composed(["rounds=many"])
    with pytest.raises(ConfigError, match=r"^paths.runs=null has the wrong type: must be text"):
        composed(["paths.runs=null"])


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("defence=fedavg", "did you mean defense=?"),
        ("defences.noise.factor=0", "did you mean defense=?"),
        ("client_per_round=3", "did you mean clients_per_round=?"),
        ("xyzzy=1", "known are: "),
        ("+defence=fedavg", "did you mean defense=?"),
        ("++xyzzy=1", "known are: "),
        ("+attack_rounds.begin=1", "there is no key 'begin'; known are: after_ma, every, start, stop"),
        ("record.round=[1]", "did you mean record.rounds=?"),
        ("checkpoint.round=3", "there is no key 'round'; did you mean checkpoint.rounds=?"),
        ("paths.rnus=x", "did you mean paths.runs=?"),
        ("memo.dirr=x", "did you mean memo.dir=?"),
        ("spill.shar=1", "did you mean spill.share=?"),
        ("attack_rounds.stat=1", "did you mean attack_rounds.start=?"),
        ("~attack", "nothing can be left out"),
    ],
)
def test_did_you_mean(argument: str, hint: str) -> None:
    with pytest.raises(ValueError) as stopped:
        explain_unknown_keys(["experiment=smoke", argument], GROUPS)
    assert argument in str(stopped.value) and hint in str(stopped.value)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("defense=flame_weight_only", "no option 'flame_weight_only'; did you mean flame_weights_only?"),
        ("defense=fedavg,flam_all_state", "did you mean flame_all_state?"),
        ("attack/trigger=sqare", "did you mean square?"),
        ("engine=xyzzy", "known are: pool, ray, sequential"),
        ("attack=bad", "did you mean badnets or badnets_all_to_all or badnets_longer or"),
        ("partition=dirichlet_0", "did you mean dirichlet_015 or dirichlet_03 or dirichlet_05?"),
    ],
)
def test_did_you_mean_the_option(argument: str, hint: str) -> None:
    with pytest.raises(SystemExit, match=argument.split(",")[-1].split("=")[-1]) as stopped:
        prepared(["experiment=smoke", argument])
    assert hint in str(stopped.value)


def test_known_options_pass() -> None:
    prepared(
        [
            "defense=fedavg,flame_all_state",
            "attack@attack.backdoor=dba",
            "attack=pgd",
            "seed=0,1",
            "-m",
        ]
    )


def test_known_words_pass() -> None:
    explain_unknown_keys(
        [
            "-m",
            "defense=fedavg",
            "defense.noise.factor=0",
            "hydra/launcher=joblib",
            "+client.x=1",
            "attack_rounds.start=1",
            "+experiment=smoke",
            "--help",
        ],
        GROUPS,
    )


def test_a_launcher_that_is_not_installed_is_named_as_pip_knows_it() -> None:
    explain_missing_launcher(["hydra/launcher=basic", "seed=0,1"])
    with pytest.raises(ValueError, match="pip install hydra-fancy-launcher"):
        explain_missing_launcher(["hydra/launcher=fancy"], {"fancy": "hydra_fancy_launcher"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["defence=fedavg"], "defence=fedavg: there is no key 'defence'; did you mean defense=?"),
        (["defense=flame_all"], "there is no option 'flame_all'; did you mean flame_all_state?"),
        ([*SMOKE, "partition=dirichlet", "partition.alpha=0"], "partition.alpha=0 is out of range: must be > 0"),
        ([*SMOKE, "threads=0"], "threads=0 is out of range: must be a whole number >= 1"),
        ([*SMOKE, "paths.runs=null"], "paths.runs=null has the wrong type: must be text"),
        ([*SMOKE, "hydra.run.dir=/proc/no"], "/proc/no cannot be written"),
        (["-m", *SMOKE, "seed=0,1", "hydra.sweep.dir=/proc/no"], "/proc/no cannot be written"),
    ],
    ids=["group", "option", "range", "threads", "null", "unwritable", "unwritable sweep"],
)
def test_the_command_line(train: Callable, tmp_path: Path, arguments: list[str], message: str) -> None:
    """A sentence on standard error, exit code 1, no traceback, and nothing in the folder of runs."""
    done = train(*arguments, f"paths.runs={tmp_path}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Two classes of a folder of images: a data set that logs a line before it is refused."""
    for name in "ab":
        (tmp_path / "mine" / name).mkdir(parents=True)
        for level in range(3):
            Image.new("L", (8, 8), level).save(tmp_path / "mine" / name / f"{level}.png")
    facts = ("dataset.classes=3", "dataset.channels=1", "dataset.image_size=8")
    return [*SMOKE, "dataset=folder", f"dataset.root={tmp_path}/mine", "dataset.test_share=0.3", *facts]


def test_a_refused_run_that_has_logged_leaves_nothing(train: Callable, tmp_path: Path, pictures: list[str]) -> None:
    done = train(*pictures, f"paths.runs={tmp_path}/runs")
    assert done.returncode == 1 and "class 1 = b" in done.stdout and "dataset.classes=3 does not fit" in done.stderr
    assert not [*(tmp_path / "runs").iterdir()]


def test_a_refused_job_of_a_sweep_leaves_its_log_alone(train: Callable, tmp_path: Path, pictures: list[str]) -> None:
    assert train("-m", *pictures, "seed=0", f"paths.runs={tmp_path}/runs").returncode == 1
    (left,) = (tmp_path / "runs").glob("*/*")
    assert left.name == "train.log" and "dataset.classes=3 does not fit" in left.read_text()


def test_a_refused_run_leaves_the_user_s_own_folder(train: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert train(*SMOKE, "threads=0", f"hydra.run.dir={tmp_path / 'mine'}", f"paths.runs={tmp_path}").returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
