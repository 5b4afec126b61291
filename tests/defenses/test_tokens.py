"""Every defense on a federation of texts, and what those that try models or look at output layers make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rules import NAMES, defense
from test_defenses import a_round, answer, stream
from tokens import CLIENTS, EACH, LENGTH, WORDS, Reader, federation, task

from flame.data.samples import UNASKED
from flame.defenses import flshield
from flame.defenses.flshield import larger_part
from flame.engine.laboratory import Laboratory, first_of_each
from flame.engine.sequential import Sequential
from flame.federation import play
from flame.geometry.layout import StateLayout
from flame.round.client import cross_entropy
from flame.round.smoothing import leading
from flame.round.types import Cohort, ServerState

SMALL = {"deepsight": {"samples": 4}, "flare": {"label": 4, "root_samples": EACH}, "indicator": {"images": 12}}
TASK = task()
START = ServerState.of(TASK.layout, TASK.model)
COHORT = Cohort(torch.arange(3), torch.zeros(3).bool())


def lab() -> Laboratory:
    return Laboratory.of(TASK, START, COHORT)


def test_what_distils_samples_refuses_tokens() -> None:
    with pytest.raises(ValueError, match=r"defense=fedredefense .* are tokens, which have no gradient: take a"):
        play(*federation(defense("fedredefense"), TASK))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fedredefense"])
def test_every_defense_plays_a_round_of_texts(name: str) -> None:
    rule = replace(defense(name), **SMALL.get(name, {}))  # type: ignore[type-var]
    if name == "deepsight":
        rule = replace(rule, min_cluster_size=2)  # type: ignore[type-var]
    work = replace(TASK, smoothing=getattr(rule, "randomized_smoothing", None))
    record = play(*federation(rule, work))
    assert bool(record.after.row.isfinite().all()) and record.verdict.weights.shape == (5,)
    assert not record.metrics["guard/kept_model"] and 0 <= record.metrics["eval/ma"] <= 1


def test_the_laboratory_answers_at_the_last_token() -> None:
    x = lab().noise(5, stream())
    assert x.shape == (5, LENGTH) and x.dtype == torch.int16 and 0 <= int(x.min()) <= int(x.max()) < WORDS
    whole = TASK.model.eval()(x.long())
    torch.testing.assert_close(lab().logits([START.row], x)[0], whole[..., -1].detach())
    normed = TASK.model.norm(TASK.model.embedding(x.long()).transpose(1, 2)).transpose(1, 2)  # type: ignore[operator]
    torch.testing.assert_close(lab().features([START.row], x)[0], normed.flatten(1).detach())


@pytest.mark.parametrize("most", [1, 2, 99])
def test_losses_of_a_class_are_those_of_its_first_tokens(most: int) -> None:
    found = lab().class_losses([START.row], most)  # [3, 1, words]
    assert found.shape == (3, 1, WORDS)
    for client in range(3):
        own = TASK.train[TASK.shards[client]]
        logits = TASK.model.eval()(own.x.long()).detach()
        losses = F.cross_entropy(logits, own.y, reduction="none").flatten().double()
        for word in range(WORDS):
            told = losses[own.y.flatten() == word][:most]
            torch.testing.assert_close(found[client, 0, word], told.mean(), equal_nan=True)


def test_the_first_of_each_class_are_asked() -> None:
    assert first_of_each(torch.tensor([UNASKED, 3, UNASKED, 3, 0, 3]), 2).tolist() == [1, 3, 4]


def test_flare_shows_texts_that_ask_for_the_class() -> None:
    rule = replace(defense("flare"), label=4, root_samples=EACH)  # type: ignore[type-var]
    root = TASK.train[TASK.shards[CLIENTS]]
    wanted = [i for i, y in enumerate(root.y.tolist()) if 4 in y]
    assert 2 <= len(wanted) < EACH and torch.equal(rule.shown(lab()), root.x[wanted])  # type: ignore[attr-defined]


def test_an_indicator_of_many_classes_has_a_few() -> None:
    rule = replace(defense("indicator"), images=12)  # type: ignore[type-var]
    assert rule.outside(START, lab(), stream()).y.bincount().tolist() == [3, 3, 3, 3]  # type: ignore[attr-defined]


def test_an_autoencoder_of_a_large_vocabulary_is_refused() -> None:
    net = Reader(words=5000, width=60)  # 300,000 numbers in the first layer, 305,000 in the last
    layout = StateLayout.of(net)
    updates = a_round(torch.zeros(1, layout.size), layout)
    with pytest.raises(ValueError, match=r"=snowball trains an autoencoder .* here 605,000 numbers; .* take a smaller"):
        answer(defense("snowball"), updates)
    assert answer(defense("foolsgold"), updates).weights.shape == (1,)


def test_ten_thousand_classes_take_no_matrix_of_classes_and_labels() -> None:
    """One column for each class of each of 20,000 labels would be 1.6 GB."""
    y = torch.arange(20_000) % 10_000
    assert first_of_each(y, 1).tolist() == list(range(10_000))
    winners, first, second = leading(y.view(4, 5000))
    assert torch.equal(winners, torch.arange(5000)) and first.unique().tolist() == second.unique().tolist() == [2]


def test_reports_of_many_classes_are_split_by_their_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = torch.cat([torch.randn(4, 30, generator=stream()), 5 + torch.randn(3, 30, generator=stream(1))]).double()
    whole = larger_part(reports)
    monkeypatch.setattr(flshield, "WIDE", 29)
    assert torch.equal(larger_part(reports), whole) and whole.tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_mean_of_what_is_asked(smoothing: float) -> None:
    logits, y = torch.randn(2, 3, 4, generator=stream()), torch.tensor([[UNASKED, 1, 2, 0], [UNASKED, UNASKED, 1, 1]])
    logs = logits.double().log_softmax(1)
    asked = [(i, t) for i in range(2) for t in range(4) if y[i, t] != UNASKED]
    each = [(1 - smoothing) * logs[i, y[i, t], t] + smoothing * logs[i, :, t].mean() for i, t in asked]
    found = cross_entropy(lambda x: x, logits, y, smoothing)
    torch.testing.assert_close(found.double(), -torch.stack(each).mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("recipe", [{"proximal": 0.5}, {"clip_norm": 0.1, "noise_std": 0.01}, {"label_smoothing": 0.1}])
def test_recipes_train_on_texts(recipe: dict[str, Any]) -> None:
    plain, other = (
        Sequential(replace(TASK, training=training)).train(START, COHORT)[0].rows
        for training in (TASK.training, replace(TASK.training, **recipe))
    )
    assert bool(other.isfinite().all()) and not torch.equal(plain, other)
