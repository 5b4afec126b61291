"""BadNets: what is poisoned and how often, what the backdoor is tested on, and for how long is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import PLAIN, images, recipe, trained
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flame.round.client import LocalJob
from flame.round.seeding import generator
from flame.run.build import build


def stamped(x: Tensor) -> Tensor:
    """[N] bool, which images carry the corner."""
    return (x[:, :, :2, :2] == 255).flatten(1).all(1)


@given(rate=st.floats(0, 1), source=st.sampled_from([None, 0, 1, 3]), append=st.booleans(), seed=st.integers(0, 9))
def test_as_many_images_are_poisoned_as_pdr_says(rate: float, source: int | None, append: bool, seed: int) -> None:
    clean = images()
    attack = replace(PLAIN, poisoned_data_rate=rate, source_class=source, append=append)
    poisoned = attack.poison(clean, generator(seed, "poison"))
    eligible = 40 if source is None else 10
    assert int(stamped(poisoned.x).sum()) == round(rate * eligible)
    assert bool((poisoned.y[stamped(poisoned.x)] == 2).all())
    if append:
        assert torch.equal(poisoned.x[:40], clean.x) and torch.equal(poisoned.y[:40], clean.y)
        assert len(poisoned) == 40 + round(rate * eligible)
    else:
        left = ~stamped(poisoned.x)
        assert torch.equal(poisoned.x[left], clean.x[left]) and torch.equal(poisoned.y[left], clean.y[left])
        assert source is None or bool((clean.y[~left] == source).all())


def test_badnets_backdoor_set_is_everything_but_the_target_class() -> None:
    test = images()
    backdoor = PLAIN.backdoor_set(test)
    assert backdoor is not None and len(backdoor) == 30
    assert bool(stamped(backdoor.x).all()) and bool((backdoor.y == 2).all())
    assert torch.equal(backdoor.x[:, :, 2:], test.x[test.y != 2][:, :, 2:])
    assert PLAIN.backdoor_set(test[test.y == 2]) is None


def test_source_to_target_measures_the_source_class_only() -> None:
    test = images()
    backdoor = replace(PLAIN, source_class=3).backdoor_set(test)
    assert backdoor is not None and torch.equal(backdoor.x[:, :, 2:], test.x[test.y == 3][:, :, 2:])


def test_attackers_train_for_their_own_number_of_epochs() -> None:
    _, two = trained(replace(PLAIN, client=recipe(0.5, 0.0, 0.0, 2, 40)))
    _, same = trained(PLAIN, epochs=2)
    _, one = trained(PLAIN)
    assert torch.equal(two, same) and not torch.equal(two, one)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(PLAIN, poisoned_data_rate=1.5), r"attack.poisoned_data_rate=1.5 .* in \[0, 1\]"),
        (lambda: replace(PLAIN, target_class=None), "attack.target_class=None .* all-to-all needs attack.classes"),
        (lambda: replace(PLAIN, source_class=2), "attack.source_class=2 is the target class"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_attackers_train_at_their_own_learning_rate() -> None:
    start, slow = trained(replace(PLAIN, client=recipe(1e-9, 0.0, 0.0, 1, 40)))
    _, benign = trained(PLAIN)
    assert 0 < float((slow - start).norm()) < 1e-6 * float((benign - start).norm())


def test_all_to_all_gives_each_label_the_next() -> None:
    attack = replace(PLAIN, target_class=None, classes=4, poisoned_data_rate=1.0)
    test = images(8)
    poisoned, backdoor = attack.poison(test, generator(0, "poison")), attack.backdoor_set(test)
    assert test.y.tolist() == [0, 1, 2, 3, 0, 1, 2, 3] and poisoned.y.tolist() == [1, 2, 3, 0, 1, 2, 3, 0]
    assert backdoor is not None and torch.equal(backdoor.y, poisoned.y) and torch.equal(backdoor.x, poisoned.x)


@pytest.mark.parametrize("words", ["attack=badnets attack/trigger=pixels", "attack=blended", "attack=dba"])
def test_all_to_all_with_every_trigger(words: str, tiny: Callable) -> None:
    """Each label becomes the next, in what is poisoned and in what is tested."""
    parts = build(tiny(*words.split(), "attack.target_class=null", "attack.poisoned_data_rate=1"))
    images = parts.dataset.test[:40]
    backdoor, poisoned = parts.attack.backdoor_set(images), parts.attack.poison(images, generator(0, "poison"))
    assert backdoor is not None and torch.equal(backdoor.y, (images.y + 1) % 10)
    assert torch.equal(poisoned.y, backdoor.y) and not torch.equal(backdoor.x, images.x)


@pytest.mark.parametrize("name", ["a3fl", "cerp", "iba"])
def test_all_to_all_with_a_trigger_that_is_learned(name: str, tiny: Callable) -> None:
    """The search is for the next label: cross entropy is asked for that one."""
    once = ["attack.search_epochs=1"] if name != "cerp" else []  # no rival, who unlearns
    parts = build(tiny(f"attack={name}", "attack.target_class=null", *once))
    task = parts.task
    shard = task.train[task.shards[0]][:16]
    work = LocalJob(task.model, shard, task.training, task.normalise, {}, seed=0, round=0, client=0)
    asked: list[Tensor] = []

    def spied(logits: Tensor, y: Tensor, **options: Any) -> Tensor:
        asked.append(y)
        return cross_entropy(logits, y, **options)

    cross_entropy = torch.nn.functional.cross_entropy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.functional.cross_entropy", spied)
        attack: Any = parts.attack
        attack.search(work) if name != "iba" else attack._search(work, attack.current({}))
    assert asked and torch.equal(torch.cat(asked).unique(), ((shard.y + 1) % 10).unique())


def test_a_learned_trigger_is_learned_for_the_next_label() -> None:
    both = torch.tensor([0, 1, 2, 3])
    assert replace(PLAIN, target_class=None, classes=4).wanted(both).tolist() == [1, 2, 3, 0]
    assert replace(PLAIN, source_class=1).wanted(both).tolist() == [2, 2, 2, 2]
    assert replace(PLAIN, source_class=1).target(both).tolist() == [0, 2, 2, 3]
