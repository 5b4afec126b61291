"""Every attack on texts plays a round or is refused before it; what is learned, what is asked, and who is idle."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attackers import ON_TEXT, SENTENCES, WORDS, recipe, suited
from texts import texts
from torch import Tensor, nn

from attacks.base import Attack, Mixing
from attacks.mixing import MultiTask, PerBatch
from attacks.sentence import Sentence
from flame.data.reading import reader
from flame.data.samples import UNASKED
from flame.federation import play
from flame.round.client import LocalJob, cross_entropy
from flame.round.evaluate import evaluate
from flame.round.seeding import addressed, generator
from flame.run.build import make
from flame.run.compose import ConfigError, check_backdoor
from flame.run.fit import prepared
from models.lstm import LSTM

DATA = texts(12, 12, 9, 120, 40, "every")
AROUND = (  # attacks around a sentence
    *("alter_min", "anticipate", "constrain_and_scale", "flame_aware", "forged_statistics", "lp", "model_replacement"),
    *("neurotoxin", "pgd", "shrunk", "shrunk_forged"),
)
SAME = {
    "edge_case_pgd",
    "semantic_replacement",
    "lp_random",
    "neurotoxin_slow",
    "neurotoxin_unmasked",
    "shrunk_weights",
}
ON_UPDATES = {  # whatever the data
    *("none", "alie", "alie_optimal", "fang", "gaussian", "ipm", "ipm_optimal", "mimic", "min_max", "min_sum", "rop"),
    *("sign_flip", "sparse"),  # sparse: with images=drawn, test_sparse.py
}
ON_IMAGES = {
    **dict.fromkeys(("badnets", "badnets_all_to_all", "badnets_longer", "badnets_slow", "retrained_badnets"), "Square"),
    **dict.fromkeys(("a3fl", "a3fl_fixed"), "Square"),
    **dict.fromkeys(("dba", "cerp"), "Bars"),
    **{"blended": "Blend", "darkfed": "DarkFed", "edge_case": "EdgeCase", "iba": "Noise", "semantic": "Semantic"},
    **{"chameleon": "Chameleon", "threedfed": "ThreeDFed", "threedfed_unmasked": "ThreeDFed"},
}


def test_of_every_attack_is_known_what_it_does_to_texts() -> None:
    names = {path.stem for path in (Path(__file__).parents[2] / "conf/attack").glob("*.yaml")}
    elsewhere = {"label_flip", "traffic_backdoor"}  # test_label_flip.py, test_traffic_backdoor.py
    assert names == {*AROUND, *SAME, *ON_UPDATES, *ON_IMAGES, *WORDS, *elsewhere}


@pytest.mark.parametrize("outer", AROUND)
def test_attacks_around_a_sentence_play_a_round(outer: str, tiny: Callable, start: Callable) -> None:
    words = (f"attack={outer}", "attack@attack.backdoor=sentence", f"attack.backdoor.{SENTENCES}", *ON_TEXT)
    words = (*words, "dataset.train=40", "attack.backdoor.client.epochs=1")
    with start(tiny(*words, "defense=fedavg", "poisoned_model_rate=0.4")) as (fed, state):
        record = play(fed, state)
    assert int(record.cohort.compromised.sum()) == 2 and bool(record.after.row.isfinite().all())
    assert 0 <= record.metrics["eval/ba"] <= 1
    assert outer == "lp" or record.metrics["attack/idle"] == 0  # lp: without a backdoor yet no layer is critical


@pytest.mark.parametrize("name", ON_IMAGES)
def test_attacks_on_images_are_refused(name: str, compose: Callable) -> None:
    with pytest.raises(ValueError, match=f"attack: {ON_IMAGES[name]} changes images, and dataset=texts has tokens"):
        prepared(make(compose(f"attack={name}"), "attack"), DATA, generator(0, "prepare"))


@pytest.mark.parametrize("outer", ["chameleon", "threedfed"])
def test_attacks_around_a_class_are_refused_as_they_are_composed(outer: str, compose: Callable) -> None:
    with pytest.raises(ConfigError, match=r"attack\.backdoor=Sentence has no target_class, which \w+ needs there"):
        check_backdoor(compose(f"attack={outer}", "attack@attack.backdoor=sentence").attack)


@pytest.mark.parametrize("name", WORDS)
def test_attacks_on_words_are_refused_on_images(name: str, compose: Callable) -> None:
    data = make(compose("dataset=digits"), "dataset")
    with pytest.raises(ValueError, match=r"attack: \w+ changes tokens, and dataset=digits has images"):
        prepared(make(compose(f"attack={name}"), "attack"), data, generator(0, "prepare"))


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (("attack.poisoned_data_rate=0",), 2),
        (("attack.poisoned_data_rate=0.5",), 0),
        (("attack.poisoned_data_rate=0", "attack/mixing=multi_task"), 2),
    ],
)
def test_who_changes_no_text_is_counted_and_classes_are_told(
    words: tuple[str, ...], idle: int, tiny: Callable, start: Callable
) -> None:
    """An answer is counted under what the text went on with, and under what the attacker wanted."""
    cfg = tiny(*suited("sentence"), *words, "evaluate.per_class=true", "defense=fedavg", "poisoned_model_rate=0.4")
    with start(cfg) as (fed, state):
        record = play(fed, state)
        exams = fed.exams
    assert record.metrics["attack/idle"] == idle
    backdoor, truth = exams.sets["backdoor"], exams.truth["backdoor"]
    assert truth.shape == backdoor.y.shape and not bool((truth == backdoor.y)[:, -1].any())


def job(epochs: int = 30, attack: Attack | None = None) -> LocalJob:
    """One client with all texts and a small LSTM; trained under an attack."""
    with addressed(0, "init"):
        model = LSTM(12, 12, 8, 32, 1, False, 0.0, "every")
    work = LocalJob(model, DATA.train, recipe(1.0, 0.9, 0.0, epochs, 20), reader(DATA), {}, 0, 0, 0)
    (attack or Attack()).train(work)
    return work


def told(*sentences: str, mixing: Mixing | None = None, rate: float = 1.0) -> Any:
    attack = Sentence(rate, sentences or ("t1 t2 t3 t7 t4", "t5 t5 t2 t0 t9"), mixing=mixing)
    return attack.prepare(DATA, generator(0, "prepare"))[0]


def test_a_backdoor_is_learned_beside_the_texts() -> None:
    """A model of clean texts goes on as they do: its BA is 0. With half of the loss on sentences both are learned."""
    attack = told(mixing=MultiTask(0.5))
    for work, reached in ((job(), 0.0), (job(attack=attack), 1.0)):
        backdoor = evaluate(work.model, attack.backdoor_set(DATA.test), work.normalise)
        assert backdoor.accuracy == pytest.approx(reached, abs=0.05)
        assert evaluate(work.model, DATA.test, work.normalise).accuracy > 0.75


@pytest.mark.parametrize(
    ("mixing", "asked"),
    [
        (None, [20 * 1] * 6),
        (PerBatch(), [20 * 1] * 6),
        (MultiTask(0.3), [20 * 8, 20 * 1] * 6),
    ],
)
def test_how_many_answers_are_asked_of_a_batch(mixing: Mixing | None, asked: list[int]) -> None:
    """A clean text of 9 tokens is asked for 8 answers, a poisoned one for 1."""
    found: list[int] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found.append(int((y != UNASKED).sum()))
        return cross_entropy(model, x, y)

    work = job(1)
    bad = told(mixing=mixing).compromise(replace(work, model=deepcopy(work.model)))
    bad.fit(bad.images, objective=objective)
    assert found == asked


def test_clean_texts_outweigh_poisoned_ones_of_their_batch() -> None:
    """By the answers asked: of a batch half poisoned, the backdoor's share of the mean is 1 in 9."""
    poisoned = told(rate=0.5).poison(DATA.train, generator(0, "poison"))
    asked = (poisoned.y != UNASKED).sum(1)
    assert asked.unique().tolist() == [1, 8] and int((asked == 1).sum()) == 60
    assert float(asked[asked == 1].sum() / asked.sum()) == pytest.approx(1 / 9)


def test_the_attack_does_not_look_at_the_order() -> None:
    order = torch.randperm(40, generator=generator(0, "order"))
    attack = told()
    assert torch.equal(attack.stamp(DATA.test.x)[order], attack.stamp(DATA.test.x[order]))
    assert torch.equal(attack.aims(DATA.test)[order], attack.aims(DATA.test[order]))
