"""Every defense on a federation of texts, and what those that try models or look at output layers make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rules import NAMES, defense
from test_defenses import stream
from tokens import CLIENTS, EACH, LENGTH, WORDS, Reader, federation, task

from flame.data.samples import UNASKED
from flame.engine.laboratory import Laboratory, first_of_each
from flame.federation import play
from flame.round.types import Cohort, ServerState

SMALL = {"deepsight": {"samples": 4}, "flare": {"label": 4, "root_samples": EACH}, "indicator": {"images": 12}}
TASK = task()
START = ServerState.of(TASK.layout, TASK.model)


def lab() -> Laboratory:
    return Laboratory.of(TASK, START, Cohort(torch.arange(3), torch.zeros(3).bool()))


@pytest.mark.parametrize("name", NAMES)
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
    work = task(model=Reader(words=10_000, width=30))
    rule = replace(defense("snowball"))  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"defense=snowball trains an autoencoder .* here 610,000 numbers: .*smaller"):
        rule.top_down.check_width(610_000)  # type: ignore[attr-defined]
    assert work.layout.size > 610_000
