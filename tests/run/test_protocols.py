"""Each of `recipe/protocols/` composes to the numbers of the public configuration that it copies; so does its page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from attacks.triggers import PixelTrigger
from flame.round.cohort import Population, Schedule
from flame.run.build import make
from flame.run.config import filled, register

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/protocols.md"
NAMES = sorted(path.stem for path in (ROOT / "conf/recipe/protocols").glob("*.yaml"))
Ours = str | Callable[[DictConfig], Any]  # a key, or what the config makes of it
OVERRIDE = re.compile(r"`\+?([\w./@]+)=([^`]*)`")


def attacked(cfg: DictConfig) -> list[int]:
    """First and last attacked round as the authors count: from 1, clean rounds included."""
    rounds = Schedule(**cfg.attack_rounds).rounds(cfg.rounds)
    return [cfg.start.get("rounds", 0) + 1 + round for round in (rounds[0], rounds[-1])]


def last_round(cfg: DictConfig) -> int:
    """Likewise."""
    return cfg.start.get("rounds", 0) + cfg.rounds


def a_round(cfg: DictConfig) -> int:
    """Attackers in an attacked round."""
    return _population(cfg).attackers


def controlled(cfg: DictConfig) -> int:
    """The attacker's clients."""
    return _population(cfg).controlled


def _population(cfg: DictConfig) -> Population:
    of = (cfg.clients, cfg.clients_per_round, cfg.poisoned_model_rate, cfg.attackers)
    return Population(*of, Schedule(**cfg.attack_rounds), hostile=True, seed=0)


def in_a_batch(key: str) -> Callable[[DictConfig], int]:
    """Poisoned images in a full batch."""
    return lambda cfg: round(OmegaConf.select(cfg, key) * cfg.client.batch_size)


def falls(client: DictConfig) -> list[int]:
    """After how many epochs the rate falls to a tenth."""
    return [math.ceil(share * client.epochs) for share in client.lr_tenths]


def pixels(key: str, size: int) -> Callable[[DictConfig], list[list[int]]]:
    """[row, column] of each pixel of a trigger in images of that many pixels."""

    def at(cfg: DictConfig) -> list[list[int]]:
        trigger: PixelTrigger = hydra.utils.instantiate(OmegaConf.select(cfg, key))
        rows, columns, _ = trigger.pixels(size, size)
        return torch.stack([rows, columns], dim=1).tolist()

    return at


def square(first: int, size: int) -> list[list[int]]:
    """Row by row, from a corner on the diagonal."""
    side = range(first, first + size)
    return [[row, column] for row in side for column in side]


# what their file or command says -> its value, ours
BACKFED: dict[str, tuple[Any, Ours]] = {
    "client_config.lr": (0.1, "client.lr"),
    "client_config.local_epochs": (2, "client.epochs"),
    "client_config.batch_size": (64, "client.batch_size"),
    "client_config.momentum": (0.9, "client.optimizer.momentum"),
    "client_config.weight_decay": (5e-4, "client.optimizer.weight_decay"),
    "alpha": (0.5, "partition.alpha"),
    "num_rounds": (600, "rounds"),
    "unweighted_fedavg.eta": (0.1, "server.lr"),
}


def backfed_attack(at: str) -> dict[str, tuple[Any, Ours]]:
    """What all of its attacks have in common."""
    own = f"{at}.client"
    return {
        "poisoned_lr": (0.05, f"{own}.lr"),
        "poison_epochs": (6, f"{own}.epochs"),
        "step_size, twice": ([2, 4], lambda cfg: falls(OmegaConf.select(cfg, own))),
        "atk_optimizer_config.sgd.momentum": (0.9, f"{own}.optimizer.momentum"),
        "atk_optimizer_config.sgd.weight_decay": (5e-4, f"{own}.optimizer.weight_decay"),
        "poison_rate, of 64": (20, in_a_batch(f"{at}.poisoned_data_rate")),
        "poison_mode: online": ("attacks.mixing.PerBatch", f"{at}.mixing._target_"),
    }


EMNIST: dict[str, tuple[Any, Ours]] = {
    **BACKFED,
    "EMNIST_BYCLASS": ("flame.data.emnist.emnist", "dataset._target_"),
    "EMNIST_BYCLASS: split": ("byclass", "dataset.split"),
    "EMNIST_BYCLASS: classes": (62, "dataset.classes"),
    "num_clients": (3383, "clients"),
    "num_clients_per_round": (30, "clients_per_round"),
    "checkpoint: round": (1000, "start.rounds"),
    "Normalize(mean)": ([0.5], "dataset.mean"),
    "Normalize(std)": ([0.5], "dataset.std"),
}
SGD_OF_BAGDASARYAN: dict[str, tuple[Any, Ours]] = {  # which DBA, Neurotoxin and 3DFed have kept
    "momentum": (0.9, "client.optimizer.momentum"),
    "decay": (0.0005, "client.optimizer.weight_decay"),
    "batch_size": (64, "client.batch_size"),
}
TABLE: dict[str, dict[str, tuple[Any, Ours]]] = {
    "zhmzm_flame": {
        "--epochs": (200, "rounds"),
        "--num_users": (100, "clients"),
        "--frac": (0.1, lambda cfg: cfg.clients_per_round / cfg.clients),
        "--malicious": (0.1, "poisoned_model_rate"),
        "--poison_frac": (1.0, "attack.poisoned_data_rate"),
        "--local_ep": (2, "client.epochs"),
        "--local_bs": (64, "client.batch_size"),
        "--lr": (0.1, "client.lr"),
        "--momentum": (0.9, "client.optimizer.momentum"),
        "--server_lr": (1, "server.lr"),
        "--attack_label": (5, "attack.target_class"),
        "--attack_goal -1": (None, "attack.source_class"),
        "--triggerX, --triggerY, 5 wide": (square(27, 5), pixels("attack.trigger", 32)),
        "the attacker's epochs": (2, "attack.client.epochs"),
        "the attacker's lr": (0.1, "attack.client.lr"),
        "the first attacked round": (2, lambda cfg: attacked(cfg)[0]),
        "Normalize(mean)": ([0.5] * 3, "dataset.mean"),
        "Normalize(std)": ([0.5] * 3, "dataset.std"),
    },
    "backfed_cifar10": {
        **BACKFED,
        **backfed_attack("attack"),
        "num_clients": (100, "clients"),
        "num_clients_per_round": (10, "clients_per_round"),
        "checkpoint: round": (2000, "start.rounds"),
        "models.resnet18(num_classes)": ("resnet18", "model.name"),
        "poison_start_round, poison_end_round": ([2001, 2300], attacked),
        "selection_scheme": ("random", "attackers"),
        "int(fraction_adversaries * num_clients)": (10, controlled),
        "target_class": (2, "attack.target_class"),
        "location bottom_right, margins 1": (square(25, 5), pixels("attack.trigger", 32)),
        "RandomHorizontalFlip()": (0.5, "augment.flip"),
        "no RandomCrop": (0, "augment.pad"),
        "Normalize(std)": ([0.247, 0.243, 0.261], "dataset.std"),
    },
    "backfed_emnist_multishot": {
        **EMNIST,
        **backfed_attack("attack"),
        "poison_start_round, poison_end_round": ([1001, 1300], attacked),
        "selection_scheme": ("random", "attackers"),
        "int(fraction_adversaries * num_clients)": (338, controlled),
        "target_class": (7, "attack.target_class"),
        "location bottom_right, margins 1": (square(22, 4), pixels("attack.trigger", 28)),
    },
    "backfed_emnist_singleshot": {
        **EMNIST,
        **backfed_attack("attack.backdoor"),
        "poison_start_round, poison_end_round": ([1001, 1001], attacked),
        "selection_scheme: all-adversary": ("fixed", "attackers"),
        "len(malicious_clients)": (4, a_round),
        "scale_factor": (75, "attack.scaling.gamma"),
        "scaled: the whole state_dict": ("all_state", "attack.scaling.scope"),
        "target_class": (7, "attack.backdoor.target_class"),
        "location bottom_right, margins 1": (square(22, 4), pixels("attack.backdoor.trigger", 28)),
    },
    "flpoison": {
        "epochs": (300, "rounds"),
        "num_clients": (20, "clients"),
        "all take part": (20, "clients_per_round"),
        "num_adv": (0.2, "poisoned_model_rate"),
        "momentum": (0.9, "client.optimizer.momentum"),
        "weight_decay": (5e-4, "client.optimizer.weight_decay"),
        "milestones": ([250], "client.schedule.milestones"),
        "MultiStepLR(gamma)": (0.1, "client.schedule.gamma"),
        "batch_size": (64, "client.batch_size"),
        "learning_rate": (0.02, "client.lr"),
        "local_epochs, of a batch": (5, "client.max_steps"),
        "the attacker's milestones": ([250], "attack.client.schedule.milestones"),
        "the attacker's local_epochs": (5, "attack.client.max_steps"),
        "the attacker's learning_rate": (0.02, "attack.client.lr"),
        "trigger_size, bottom right": (square(22, 10), pixels("attack.trigger", 32)),
        "int(poisoning_ratio * batch_size)": (20, in_a_batch("attack.poisoned_data_rate")),
        "target_label": (7, "attack.target_class"),
        "std": ([0.2470, 0.243, 0.261], "dataset.std"),
    },
    "neurotoxin": {
        **SGD_OF_BAGDASARYAN,
        "participant_population": (1000, "clients"),
        "partipant_sample_size": (10, "clients_per_round"),
        "number_of_adversaries": (1, a_round),
        "dirichlet_alpha": (0.9, "partition.alpha"),
        "--start_epoch, --attack_num": ([1801, 2050], attacked),
        "end_epoch - 1": (3800, last_round),
        "retrain_no_times": (2, "client.epochs"),
        "lr of round 1801": (0.2 * (2000 - 1801) / 1500, "client.lr"),
        "retrain_poison": (10, "attack.backdoor.client.epochs"),
        "--poison_lr": (0.02, "attack.backdoor.client.lr"),
        "the attacker's rate over the rounds": (
            "flame.round.rates.Constant",
            "attack.backdoor.client.schedule._target_",
        ),
        "poison_momentum": (0.9, "attack.backdoor.client.optimizer.momentum"),
        "poison_decay": (0.005, "attack.backdoor.client.optimizer.weight_decay"),
        "--gradmask_ratio": (0.95, "attack.ratio"),
        "--s_norm": (0.2, "defense.bound"),
        "sample_poison_data": (5, "attack.backdoor.source_class"),
        "poison_label_swap": (9, "attack.backdoor.target_class"),
        "size_of_secret_dataset, of 5,000": (500, lambda cfg: 5000 * cfg.attack.backdoor.share / 2),
        "RandomCrop(padding)": (4, "augment.pad"),
        "Normalize(std)": ([0.2023, 0.1994, 0.2010], "dataset.std"),
    },
    "dba": {
        **SGD_OF_BAGDASARYAN,
        "lr": (0.1, "client.lr"),
        "poison_lr": (0.05, "attack.client.lr"),
        "epochs": (300, last_round),
        "internal_epochs": (2, "client.epochs"),
        "internal_poison_epochs": (6, "attack.client.epochs"),
        "milestones, of internal_poison_epochs": ([0.2, 0.8], "attack.client.lr_tenths"),
        "poisoning_per_batch": (5, in_a_batch("attack.poisoned_data_rate")),
        "no_models": (10, "clients_per_round"),
        "number_of_total_participants": (100, "clients"),
        "scale_weights_poison": (100, "attack.scaling.gamma"),
        "eta": (0.1, "server.lr"),
        "dirichlet_alpha": (0.5, "partition.alpha"),
        "poison_label_swap": (2, "attack.target_class"),
        "trigger_num": (4, "attack.parts"),
        "poison epochs of the four": (
            [203, 205, 207, 209],
            lambda cfg: [201 + round for round in Schedule(**cfg.attack_rounds).rounds(cfg.rounds)],
        ),
        "attackers in each of them": (1, a_round),
        "resumed_model_name: epoch": (200, "start.rounds"),
        "0_ to 3_poison_pattern": (
            [[row, left + i] for row in (0, 4) for left in (0, 9) for i in range(6)],
            pixels("attack.trigger", 32),
        ),
        "no Normalize, mean": ([0.0] * 3, "dataset.mean"),
        "no Normalize, std": ([1.0] * 3, "dataset.std"),
    },
    "threedfed": {
        **SGD_OF_BAGDASARYAN,
        "lr": (0.1, "client.lr"),
        "epochs, from 200 on": (21, "rounds"),
        "poison_epoch_stop - poison_epoch": (20, "attack_rounds.stop"),
        "resume_model: epoch": (200, "start.rounds"),
        "kernel of conv1": (7, lambda cfg: hydra.utils.instantiate(cfg.model).conv1.kernel_size[0]),
        "fl_no_models": (100, "clients_per_round"),
        "fl_total_participants": (100, "clients"),
        "fl_local_epochs": (2, "client.epochs"),
        "fl_poison_epochs": (15, "attack.backdoor.client.epochs"),
        "the attacker's lr": (0.1, "attack.backdoor.client.lr"),
        "fl_eta": (1, "server.lr"),
        "fl_dirichlet_alpha": (0.9, "partition.alpha"),
        "fl_number_of_adversaries": (20, a_round),
        "fl_weight_scale": (5, "attack.gain"),
        "fl_adv_group_size": (5, "attack.group_size"),
        "fl_num_neurons": (5, "attack.neurons"),
        "noise_mask_alpha": (0, "attack.least_mask"),
        "fixed_scales normal + backdoor": (0.6, "attack.alpha"),
        "poisoning_proportion, of one of two": (0.5 / 2, "attack.backdoor.poisoned_data_rate"),
        "backdoor_label": (8, "attack.target_class"),
        "pattern_tensor at (3, 23)": (
            [[3, 23], [3, 24], [3, 25], [4, 24], [5, 25], [6, 24], [7, 23], [7, 24], [7, 25]],
            pixels("attack.backdoor.trigger", 32),
        ),
        "RandomCrop(padding)": (4, "augment.pad"),
        "Normalize(std)": ([0.2023, 0.1994, 0.2010], "dataset.std"),
    },
    "bagdasaryan": {
        **SGD_OF_BAGDASARYAN,
        "lr": (0.1, "client.lr"),
        "no_models": (10, "clients_per_round"),
        "epochs": (10100, last_round),
        "retrain_no_times": (2, "client.epochs"),
        "number_of_total_participants": (100, "clients"),
        "dirichlet_alpha": (0.9, "partition.alpha"),
        "eta no_models / number_of_total_participants": (1 * 10 / 100, "server.lr"),
        "poison_images": ([30696, 33105, 33615, 33907, 36848, 40713, 41706], "attack.backdoor.positions.cifar10.train"),
        "poison_images_test": ([330, 568, 3934, 12336, 30560], "attack.backdoor.positions.cifar10.held_out"),
        "poison_label_swap": (2, "attack.backdoor.target_class"),
        "poison_images in a batch": (7, in_a_batch("attack.backdoor.poisoned_data_rate")),
        "poison_epochs": ([10000, 10000], attacked),
        "retrain_poison": (15, "attack.backdoor.client.epochs"),
        "scale_weights": (100, "attack.scaling.gamma"),
        "scaled: the whole state_dict": ("all_state", "attack.scaling.scope"),
        "poison_lr": (0.05, "attack.backdoor.client.lr"),
        "number_of_adversaries": (1, a_round),
        "RandomCrop(padding)": (4, "augment.pad"),
        "Normalize(std)": ([0.2023, 0.1994, 0.2010], "dataset.std"),
    },
}


@cache
def composed(name: str) -> DictConfig:
    """With the `hydra` node, and with all that an attacker's client takes from the benign one."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return filled(hydra.compose(f"recipe/protocols/{name}", return_hydra_config=True))


def sections() -> dict[str, str]:
    """Recipe -> the text of its section of the page."""
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {found[1]: part for part in parts if (found := re.search(r"`recipe/protocols/(\w+)`", part))}


def test_every_protocol_has_a_table_and_a_section() -> None:
    assert sorted(TABLE) == sorted(sections()) == NAMES


@pytest.mark.parametrize(("name", "theirs"), [(name, theirs) for name in TABLE for theirs in TABLE[name]])
def test_it_composes_to_their_number(name: str, theirs: str) -> None:
    wanted, ours = TABLE[name][theirs]
    cfg = composed(name)
    found = OmegaConf.select(cfg, ours) if isinstance(ours, str) else ours(cfg)
    found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    exact = not isinstance(wanted, float)
    assert found == (wanted if exact else pytest.approx(wanted, rel=2e-4))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_recipe_has(name: str) -> None:
    cfg = composed(name)
    rows = [line.rsplit("|", 2)[1] for line in sections()[name].splitlines() if line.startswith("|")]
    said = [pair for row in rows for pair in OVERRIDE.findall(row)]
    assert len(said) >= 12
    choices = {key: choice for key, choice in cfg.hydra.runtime.choices.items() if isinstance(choice, str)}
    for key, value in said:
        found = choices.get(key, OmegaConf.select(cfg, key))
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert found == pytest.approx(yaml.safe_load(value)), f"{key}={value}"


def test_neurotoxin_s_rate_is_theirs_round_by_round() -> None:
    """train_funcs.py: down to 0 in round 2000, with a floor of 0.0001."""
    client = make(composed("neurotoxin"), "client")
    for round in (0, 1, 100, 198, 199, 200, 1999):
        theirs = max(0.2 * 4 / 3 - (1801 + round) * 0.2 / 1500, 0.0001)
        assert client.rate(0, round) == pytest.approx(theirs, abs=1e-4)
