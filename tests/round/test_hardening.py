"""FLIP's clients against their authors' program, step by step, and what else a recipe with a search must hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import flip_recipe, flip_search
from rules import CONF, defense
from torch import Generator, Tensor, nn

import flame.round.client as client
import flame.round.inversion as inversion
from flame.data.samples import Samples
from flame.defenses import flip
from flame.defenses.nnm import NNM
from flame.engine.workbench import Workbench
from flame.federation import rounds
from flame.round.client import LocalTraining, batches
from flame.round.evaluate import Confident, judged
from flame.round.hardener import Hardener
from flame.round.hardening import Hardening
from flame.round.optimizers import Adam
from flame.round.seeding import generator
from flame.run.build import build
from flame.run.fit import check_recipe

HOW = Hardening(
    share=0.5,
    lr=0.3,
    warmup_steps=3,
    steps=3,
    repeat_steps=2,
    cost=0.05,
    repeat_cost=0.1,
    success=0.4,
    largest=0.6,
    drawn=0.3,
)
RECIPE = LocalTraining(
    lr=0.02,
    optimizer=Adam(beta1=0.5, beta2=0.9, eps=1e-8, weight_decay=0.0),
    epochs=3,
    batch_size=6,
    max_steps=10,
    hardening=HOW,
)


class Net(nn.Module):
    """Two layers on flat images of 3 x 3."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 6), nn.Linear(6, 3)
        g = Generator().manual_seed(seed)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(x.flatten(1)).tanh())
        return logits


def shard(seed: int) -> Samples:
    """21 images, unevenly of three classes; in every fourth shard of two, in every sixth one image is of the third."""
    g = Generator().manual_seed(seed + 500)
    x = torch.randint(0, 256, (21, 1, 3, 3), generator=g, dtype=torch.uint8)
    y = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 21, replacement=True, generator=g)
    if seed % 4 == 3:
        y[y == 2] = 0
    return Samples(x, y)


def scaled(x: Tensor) -> Tensor:
    return x.double() / 255


@pytest.fixture
def hardeners(monkeypatch: pytest.MonkeyPatch) -> list[Hardener]:
    """Those that trainings make."""
    made = list[Hardener]()

    def make(*args: Any) -> Hardener:
        made.append(Hardener(*args))
        return made[-1]

    monkeypatch.setattr(client, "Hardener", make)
    return made


def test_the_authors_program_trains_the_same_model(hardeners: list[Hardener], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (flip_search, inversion):
        monkeypatch.setattr(module, "PATIENCE", 2)  # the masks' costs change within a search of three steps
    seen = Counter[str]()
    for seed in range(20):
        how = replace(HOW, largest=(0.25, 0.6)[seed % 2], drawn=(0.3, 0.0, 1.0)[seed % 3])
        images, ours, theirs = shard(seed), Net(seed).double(), Net(seed).double()
        recipe = replace(RECIPE, hardening=how)
        stream = Generator().manual_seed(seed)
        recipe.fit(ours, images, scaled, stream, round=0)

        again = Generator().manual_seed(seed)
        order = [batch for _ in range(3) for batch in batches(21, 6, again)][:10]
        settings = flip_search.Settings(0.5, 0.3, 3, 3, 2, 0.05, 0.1, 0.4, how.largest, how.drawn)
        adam = torch.optim.Adam(theirs.parameters(), lr=0.02, betas=(0.5, 0.9))
        draws = generator(seed, "hardening")
        wanted = flip_recipe.train(theirs, scaled(images.x), images.y, order, settings, adam, 3, draws)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        found = hardeners[seed]
        torch.testing.assert_close(found.sizes, torch.tensor(wanted["sizes"]), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.growth, torch.tensor(wanted["growth"]), rtol=1e-3, atol=1e-4)
        assert {f"{a}-{b}" for a, b in found.found} == wanted["masks"].keys()
        for (a, b), trigger in found.found.items():
            mask = torch.tensor(wanted["masks"][f"{a}-{b}"])
            torch.testing.assert_close(trigger.mask, mask.view_as(trigger.mask), rtol=1e-3, atol=1e-4)
        seen.update(wanted["seen"])
    assert all(seen[kind] >= 8 for kind in ("warm", "both", "one", "skipped", "large")), seen


QUICK = ("warmup_steps=1", "steps=1", "repeat_steps=1")
FLIP = (
    "client=flip",
    "clients_per_round=2",
    "client.max_steps=3",
    *(f"client.hardening.{setting}" for setting in QUICK),
)


def test_attackers_do_not_search(tiny: Callable, hardeners: list[Hardener]) -> None:
    parts = build(tiny(*FLIP, "clients_per_round=5", "defense=flip", "attack=badnets"))
    assert parts.task.training.hardening is not None and parts.task.training.unhardened.hardening is None
    attack: Any = parts.attack
    assert attack.client.hardening is None and attack.client.lr == parts.task.training.lr
    bench, state = Workbench(parts.task), parts.initial
    for compromised in (True, False):
        bench.train(state.row, state.counters, {}, 0, 1, compromised)
        assert len(hardeners) == (not compromised)
    no_recipe = replace(attack, client=None)
    job = bench.job(state.row, state.counters, {}, 0, 1)
    assert no_recipe.compromise(job).training.hardening is None


def test_a_round_is_trained_and_answers_below_the_confidence_do_not_count(tiny: Callable, start: Callable) -> None:
    with start(tiny(*FLIP, "defense=flip", "attack=none")) as (fed, state):
        (record,) = rounds(fed, state, 1)
    assert not torch.equal(record.after.row, state.row)
    loose, strict = (
        build(tiny("defense=flip", f"defense.answer_confidence={c}", "attack=none")).task.eval_sets["clean"]
        for c in (0, 0.9)
    )
    assert type(loose) is Samples and isinstance(strict, Confident) and strict.least == 0.9


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "defense").glob("*.yaml")))
def test_no_other_defense_changes_what_counts_as_right(name: str) -> None:
    """FoolsGold's own `confidence` once did."""
    assert getattr(defense(name, quiet=True), "answer_confidence", 0.0) == (0.4 if name == "flip" else 0.0)


def test_an_answer_counts_from_its_probability_on() -> None:
    logits = torch.tensor([[0.0, 3.0], [0.0, 3.0], [1.0, 1.5], [3.0, 0.0]])  # 0.953, 0.953, 0.622, 0.953
    samples = judged(Samples(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.tensor([1, 0, 1, 0])), 0.7)
    assert samples.right(logits).tolist() == [True, False, False, True]
    assert samples[1:].to(torch.device("cpu")).right(logits[1:]).tolist() == [False, False, True]
    assert NNM(0.2, flip.FLIP(answer_confidence=0.7)).answer_confidence == 0.7


def test_the_search_stays_within_its_client(tiny: Callable, start: Callable) -> None:
    """Equal bits on one engine or the other, and whoever else is in the round."""
    found = []
    for engine in (["engine=sequential"], ["engine=stacked"]):
        with start(tiny(*FLIP, "defense=fedavg", "attack=none", *engine)) as (fed, state):
            (record,) = rounds(fed, state, 1)
            found.append(record.updates.rows.clone())
    assert torch.equal(*found)


def test_texts_have_no_triggers() -> None:
    words = Samples(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"client\.hardening searches for triggers in images"):
        check_recipe(RECIPE, words)
    check_recipe(RECIPE, shard(0))


def test_what_is_out_of_range_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"client\.hardening\.largest=0"):
        replace(HOW, largest=0)
    with pytest.raises(ValueError, match=r"defense\.answer_confidence=1"):
        flip.FLIP(answer_confidence=1)
