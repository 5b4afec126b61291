"""For how long, how fast and on which schedule attackers train, beside benign clients, against their authors' code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from attackers import PLAIN, images, job
from omegaconf import OmegaConf

from attacks.base import Attack
from attacks.edge_case import EdgeCase
from attacks.label_flip import LabelFlip
from attacks.subpopulation import SubPopulation
from flame.run.build import build
from flame.run.config import plain

ATTACKS = Path(__file__).parents[2] / "conf" / "attack"
SENTENCE = re.compile(
    r"Attacker to benign client: ([\d.]+(?: and [\d.]+)?) to ([\d.]+) epochs, ([\d.]+(?: and [\d.]+)?) to ([\d.]+)"
    r" steps, rate ([\d.]+(?: and [\d.]+)?) to ([\d.]+) \(([\w./-]+) ([0-9a-f]{7}), "
)


class Theirs(NamedTuple):
    """Attacker's and benign numbers of the authors' code."""

    source: str  # repository and commit
    epochs: str
    steps: str
    rate: str


ZHMZM, LP = "zhmzm/FLAME fd4cef2", "zhmzm/Poisoning_Backdoor-critical_Layers_Attack be64cdd"
BAGDASARYAN = Theirs("ebagdasa/backdoor_federated_learning 3f068b8", "15 to 2", "3000 to 16", "0.05 to 0.1")
TAILS = Theirs("ksreenivasan/OOD_Federated_Learning 9096969", "2 to 2", "32 to 16", "0.02 to 0.02")
THEIRS = {
    "badnets": Theirs(ZHMZM, "2 to 2", "16 to 16", "0.1 to 0.1"),
    "retrained_badnets": BAGDASARYAN,
    "semantic": BAGDASARYAN,
    "edge_case": TAILS,
    "pgd": TAILS,
    "lp": Theirs(LP, "2 to 2", "16 to 16", "0.1 to 0.1"),
    "a3fl": Theirs("hfzhang31/A3FL eb1bdc1", "2 to 2", "16 to 16", "0.002 to 0.002"),
    "iba": Theirs("sail-research/iba 69a5139", "2 to 2", "14 to 6", "0.01 to 0.01"),
    "label_flip": Theirs("git-disl/DataPoisoning_FL 467eca0", "1 to 1", "120 to 120", "0.01 to 0.01"),
    "cerp": Theirs("xtLyu/CerP 46bdce0", "1 to 2", "8 to 16", "0.005 to 0.01"),
    "dba": Theirs("AI-secure/DBA 3cabf7e", "6 to 2", "48 to 16", "0.05 to 0.1"),
    "neurotoxin": Theirs("jhcknzzm/Federated-Learning-Backdoor 21a9eaf", "10 to 2", "10 to 2", "0.02 to 0.0265"),
    "chameleon": Theirs(
        "ybdai7/Chameleon-durable-backdoor c74618a", "10 and 3 to 2", "250 and 75 to 16", "0.005 and 0.001 to 0.0265"
    ),
    "threedfed": Theirs("haoyangliASTAPLE/3DFed 6e0e8ec", "15 to 2", "120 to 16", "0.1 to 0.1"),
    "darkfed": Theirs("hustweiwan/DarkFed 5c0ed08", "2 to 2", "626 to 16", "0.005 to 0.1"),
}
# ours, of a client that trains one epoch at 0.05 and of one that trains two at 0.1: epochs and rate; the shares of the
# epochs after which the rate falls to a tenth. None: as benign ones
AS_BENIGN: tuple[Any, ...] = (None, None, None, None, [])
RETRAINED = (8, 0.025, 15, 0.05, [0.13, 0.73])
OURS = {
    **dict.fromkeys(("badnets", "blended", "edge_case", "label_flip", "a3fl", "a3fl_fixed", "iba"), AS_BENIGN),
    **dict.fromkeys(("lp", "lp_random", "pgd", "edge_case_pgd", "flame_aware", "shrunk", "shrunk_weights"), AS_BENIGN),
    **dict.fromkeys(("forged_statistics", "shrunk_forged"), AS_BENIGN),
    "badnets_longer": (2, None, 2, None, []),
    "badnets_slow": (None, 0.0075, None, 0.015, []),
    **dict.fromkeys(("retrained_badnets", "semantic", "semantic_replacement"), RETRAINED),
    **dict.fromkeys(("model_replacement", "constrain_and_scale"), RETRAINED),
    "dba": (3, 0.025, 6, 0.05, [0.2, 0.8]),
    "cerp": (0.5, 0.025, 1, 0.05, []),
    **dict.fromkeys(("neurotoxin", "neurotoxin_unmasked"), (5, None, 10, None, [])),
    "neurotoxin_slow": (5, 0.0075, 10, 0.015, []),
    "chameleon": (3, 0.0019, 3, 0.0038, []),
    **dict.fromkeys(("threedfed", "threedfed_unmasked"), (8, None, 15, None, [])),
}
NO_TRAINING = {  # of their own: they send what they have made up, or train elsewhere (darkfed, on its own recipe)
    *("none", "alie", "fang", "gaussian", "ipm", "min_max", "min_sum", "sign_flip", "darkfed"),
}


def written(option: str) -> str:
    """The comments at the head of a YAML as one line."""
    lines = (ATTACKS / f"{option}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def poisoner(node: dict[str, Any]) -> dict[str, Any]:
    """The innermost attack's settings."""
    return poisoner(node["backdoor"]) if "backdoor" in node else node


def test_every_attack_is_in_the_tables() -> None:
    options = {path.stem for path in ATTACKS.glob("*.yaml")}
    assert options == OURS.keys() | NO_TRAINING and THEIRS.keys() <= options


@pytest.mark.parametrize("option", sorted(THEIRS))
def test_its_yaml_names_code_commit_and_ratio(option: str) -> None:
    found = SENTENCE.search(written(option))
    assert found, f"no sentence on the attacker's pace in {option}.yaml"
    a, b, c, d, e, f, repository, commit = found.groups()
    assert Theirs(f"{repository} {commit}", f"{a} to {b}", f"{c} to {d}", f"{e} to {f}") == THEIRS[option]


@pytest.mark.parametrize("option", sorted(OURS))
def test_attackers_train_as_their_authors_let_them(option: str, tiny: Callable) -> None:
    epochs, rate, twice, doubled, tenths = OURS[option]
    for words, wanted in (((), (epochs, rate)), (("client.epochs=2", "client.lr=0.1"), (twice, doubled))):
        found = poisoner(plain(tiny(f"attack={option}", *words).attack))
        assert found["epochs"] == wanted[0] and found.get("lr_tenths", []) == tenths
        assert found.get("local_lr") == (wanted[1] and pytest.approx(wanted[1]))


@pytest.mark.parametrize("option", [name for name, ours in OURS.items() if ours == AS_BENIGN])
def test_as_benign_clients_is_the_benign_recipe(option: str, tiny: Callable) -> None:
    parts = build(tiny(f"attack={option}"))
    work = job()
    assert parts.attack.compromise(replace(work, sgd=parts.task.sgd, images=parts.task.train[:8])).sgd == parts.task.sgd


@pytest.mark.parametrize(
    "attack",
    [
        PLAIN,
        LabelFlip(1, 2, 4, 1.0, None),
        SubPopulation(images(), images(), 2, 0.5, None),
    ],
)
def test_every_poisoner_has_a_pace(attack: Attack) -> None:
    """Half of one pass over 40 images is 20 of them, each once; the rest of the recipe is the benign one."""
    work = job()
    changed: Any = {"epochs": 0.5, "local_lr": 0.3, "lr_tenths": [0.5]}
    found = replace(attack, **changed).compromise(work)
    assert len(found.images) == 20 and found.sgd == replace(work.sgd, epochs=1, lr=0.3, lr_tenths=[0.5])
    assert len({x.numpy().tobytes() for x in replace(attack, epochs=0.5).paced(work, 0.5).images.x}) == 20
    assert replace(attack, epochs=3).compromise(work).sgd == replace(work.sgd, epochs=3)


@pytest.mark.parametrize("attack", [PLAIN, LabelFlip(1, 2, 4, 1.0, None), EdgeCase(1, 2, None, 0.4, 3, 0.2, None)])
@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 1.5), ("epochs", -0.5), ("local_lr", 0.0), ("lr_tenths", [0.2, 1.0])]
)
def test_paces_out_of_range(attack: Attack, key: str, value: Any) -> None:
    changed: Any = {key: value}
    with pytest.raises(ValueError, match=rf"attack\.{key}="):
        replace(attack, **changed)


def test_a_share_of_few_images_leaves_two_for_batchnorm() -> None:
    few = replace(job(), images=images(3))
    assert [len(PLAIN.paced(few, share).images) for share in (0.01, 0.5, 0.9)] == [2, 2, 3]
    assert len(PLAIN.paced(replace(few, images=images(1)), 0.5).images) == 1


def test_passes_are_whole_from_one_on() -> None:
    """7.5 of one epoch are 8, of two are 15; half of one is a share, half of three is 2."""
    node = OmegaConf.create({"e": 1, "long": "${passes:7.5,${e}}", "short": "${passes:0.5,${e}}"})
    found = []
    for node.e in (1, 2, 3):
        found.append((node.long, node.short))
    assert found == [(8, 0.5), (15, 1), (23, 2)]
