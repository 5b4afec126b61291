"""For how long, how fast and on which schedule attackers train, beside benign clients, against their authors' code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from attackers import PLAIN, WORDS, dataset, images, job, recipe, suited
from omegaconf import OmegaConf

from attacks.base import Poisoner
from attacks.edge_case import EdgeCase
from attacks.label_flip import LabelFlip
from attacks.mixing import PerBatch
from attacks.semantic import Semantic
from attacks.subpopulation import SubPopulation
from flame.data.samples import Dataset
from flame.round.optimizers import SGD, Adam
from flame.round.rates import Linear
from flame.round.seeding import generator
from flame.run.build import ConfigError, build, make
from flame.run.config import filled, plain

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
WORDS_OF_REDDIT = Theirs("ebagdasa/backdoor_federated_learning 95fd8b1", "250 to 2", "5000 to 2", "0.2 to 20")
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
    "alter_min": Theirs("inspire-group/ModelPoisoning 6e1ed3b", "10 to 5", "600 to 300", "0.001 to 0.001"),
    "anticipate": Theirs("YuxinWenRick/thinking-two-moves-ahead 091f08b", "4 to 2", "32 to 16", "0.01 to 0.01"),
    "chameleon": Theirs(
        "ybdai7/Chameleon-durable-backdoor c74618a", "10 and 3 to 2", "250 and 75 to 16", "0.005 and 0.001 to 0.0265"
    ),
    "threedfed": Theirs("haoyangliASTAPLE/3DFed 6e0e8ec", "15 to 2", "120 to 16", "0.1 to 0.1"),
    **dict.fromkeys(("sentence", "sentence_reddit"), WORDS_OF_REDDIT),
    "darkfed": Theirs("hustweiwan/DarkFed 5c0ed08", "2 to 2", "626 to 16", "0.005 to 0.1"),
}
# ours, of a client that trains one epoch at 0.05 and of one that trains two at 0.1: epochs and rate; the shares of the
# epochs after which the rate falls to a tenth
AS_BENIGN: tuple[Any, ...] = (1, 0.05, 2, 0.1, [])
RETRAINED = (8, 0.025, 15, 0.05, [0.13, 0.73])
OURS = {
    **dict.fromkeys(("badnets", "blended", "edge_case", "label_flip", "a3fl", "a3fl_fixed", "iba"), AS_BENIGN),
    **dict.fromkeys(("badnets_all_to_all", *WORDS), AS_BENIGN),
    **dict.fromkeys(("lp", "lp_random", "pgd", "edge_case_pgd", "flame_aware", "shrunk", "shrunk_weights"), AS_BENIGN),
    **dict.fromkeys(("forged_statistics", "shrunk_forged", "traffic_backdoor"), AS_BENIGN),
    "badnets_longer": (2, 0.05, 2, 0.1, []),
    "badnets_slow": (1, 0.0075, 2, 0.015, []),
    **dict.fromkeys(("retrained_badnets", "semantic", "semantic_replacement"), RETRAINED),
    **dict.fromkeys(("model_replacement", "constrain_and_scale"), RETRAINED),
    "sentence_reddit": (125, 0.0005, 250, 0.001, []),
    "dba": (3, 0.025, 6, 0.05, [0.2, 0.8]),
    "cerp": (0.5, 0.025, 1, 0.05, []),
    **dict.fromkeys(("neurotoxin", "neurotoxin_unmasked"), (5, 0.05, 10, 0.1, [])),
    **dict.fromkeys(("alter_min", "anticipate"), (2, 0.05, 4, 0.1, [])),
    "neurotoxin_slow": (5, 0.0075, 10, 0.015, []),
    "chameleon": (3, 0.0019, 3, 0.0038, []),
    **dict.fromkeys(("threedfed", "threedfed_unmasked"), (8, 0.05, 15, 0.1, [])),
}
APART = {"traffic_backdoor"}  # on data of their own: test_traffic_backdoor.py
NO_TRAINING = {  # of their own: they send what they have made up, or train elsewhere (darkfed, on its own recipe)
    *("none", "alie", "fang", "gaussian", "ipm", "min_max", "min_sum", "sign_flip", "darkfed"),
    *("alie_optimal", "ipm_optimal", "mimic", "rop", "sparse"),
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
        found = poisoner(plain(filled(tiny(f"attack={option}", *words)).attack))["client"]
        assert found["epochs"] == wanted[0] and found["lr_tenths"] == tenths
        assert found["lr"] == pytest.approx(wanted[1])


@pytest.mark.parametrize("option", [name for name, ours in OURS.items() if ours == AS_BENIGN and name not in APART])
def test_as_benign_clients_is_the_benign_recipe(option: str, tiny: Callable) -> None:
    parts = build(tiny(*suited(option), "poisoned_model_rate=0.4"))
    work = job()
    assert (
        parts.attack.compromise(replace(work, training=parts.task.training, images=parts.task.train[:8])).training
        == parts.task.training
    )


POISONERS = [PLAIN, LabelFlip(1, 2, 4, 1.0), SubPopulation(images(), images(), 2, 0.5)]


@pytest.mark.parametrize("attack", POISONERS)
def test_every_poisoner_may_have_a_recipe_of_its_own(attack: Poisoner) -> None:
    work, own = job(), recipe(0.3, 0.5, 0.0, 0.5, 8)
    assert replace(attack, client=own).compromise(work).training == own
    assert attack.compromise(work).training == work.training


@pytest.mark.parametrize("data", [dataset()])
def test_what_prepare_makes_of_an_attack_keeps_its_recipe(data: Dataset) -> None:
    own, mixing = recipe(0.3, 0.5, 0.0, 0.5, 8), PerBatch()
    for attack in (EdgeCase(1, 2, None, 0.4, 3, 0.2), Semantic(1, 2, {}, 0.4, 0.2)):
        armed, _ = replace(attack, client=own, mixing=mixing).prepare(data, generator(0, "prepare"))
        assert isinstance(armed, SubPopulation) and (armed.client, armed.mixing) == (own, mixing)


def test_an_attacker_names_what_differs_and_keeps_the_rest(compose: Callable) -> None:
    """A part that is chosen anew takes nothing from the benign one; without any, all is the benign recipe."""
    words = ("client.optimizer.momentum=0.5", "client.clip_norm=3", "+attack.client.optimizer.weight_decay=0.005")
    merged = make(compose("attack=dba", *words), "attack").client
    assert merged.optimizer == SGD(momentum=0.5, weight_decay=0.005) and merged.clip_norm == 3
    chosen = make(compose("+client/optimizer@attack.client.optimizer=adam", *words[:2]), "attack").client
    assert chosen.optimizer == Adam(0.9, 0.999, 1e-8, 0.0) and chosen.clip_norm == 3
    outer = compose("attack=pgd", "+client/schedule@attack.backdoor.client.schedule=linear", "client=adamw")
    assert make(outer, "attack").backdoor.client.schedule == Linear(warmup=0, rounds=30, end=0.0)
    assert make(outer, "attack").backdoor.client.optimizer == make(outer, "client").optimizer
    assert "optimizer" not in outer.attack.backdoor.client  # what is recorded is what was said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attack.client.epochs=1.5",), r"^attack\.client\.epochs=1.5 is out of range"),
        (("attack.client.lr=0",), r"^attack\.client\.lr=0 is out of range"),
        (("+attack.client.lr_tenths=[0.2,1]",), r"^attack\.client\.lr_tenths=\[0.2, 1\] is out of range"),
        (("+attack.client.optimizer.momentum=1",), r"^attack\.client\.optimizer\.momentum=1 is out of range"),
        (
            ("attack=pgd", "+attack.backdoor.client.schedule.warmup=30"),
            r"^attack\.backdoor\.client\.schedule\.warmup=30 ",
        ),
        (("+attack.client.rate=1",), r"^attack\.client\.rate is not a parameter of .*LocalTraining"),
        (("attack.client.lr=fast",), r"^attack\.client\.lr='fast' has the wrong type"),
    ],
)
def test_paces_out_of_range(compose: Callable, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(compose(*words), "attack")


def test_passes_are_whole_from_one_on() -> None:
    """7.5 of one epoch are 8, of two are 15; half of one is a share, half of three is 2."""
    node = OmegaConf.create({"e": 1, "long": "${passes:7.5,${e}}", "short": "${passes:0.5,${e}}"})
    found = []
    for node.e in (1, 2, 3):
        found.append((node.long, node.short))
    assert found == [(8, 0.5), (15, 1), (23, 2)]
