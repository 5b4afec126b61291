"""DarkFed: clients without data, what they train on, and how they pass for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import CORNER, job, model_row, moved, normed_job, recipe, scene
from conftest import Compose, Start
from torch import Tensor

from attacks.darkfed import KEY, SMOOTH, DarkFed, diverse, forecast, head, smoothed
from attacks.snapshot import Snapshot
from flame.federation import rounds
from flame.geometry.layout import StateLayout
from flame.round.evaluate import evaluate
from flame.round.seeding import generator


def darkfed(**changes: Any) -> DarkFed:
    client = recipe(0.05, 0.0, 0.0, 4, 40)
    return replace(DarkFed(CORNER, 2, 60, 0.5, 0.2, 0.0, 0.0, 0.5, client), **changes)


def test_fake_clients_have_no_data() -> None:
    """Other images, the same model; BatchNorm's statistics and counters are nobody's."""
    one, other = normed_job(), normed_job()
    start = Snapshot.of(one.model)
    other = replace(other, images=replace(other.images, x=255 - other.images.x, y=other.images.y.flip(0)))
    for work in (one, other):
        darkfed().train(work)
    after = Snapshot.of(one.model)
    assert torch.equal(after.row, model_row(other))
    assert torch.equal(after.row[after.layout.trainable :], start.row[after.layout.trainable :])
    assert torch.equal(after.counters, start.counters) and bool(moved(one, start).any())


def test_shadow_images_carry_the_models_own_logits_or_the_trigger() -> None:
    work = normed_job()
    x, logits, poisoned = darkfed().shadow(work)
    assert x.shape == (30, 1, 6, 6) and int(poisoned.sum()) == 6
    with torch.no_grad():
        own = work.model.eval()(work.normalise(x))
    torch.testing.assert_close(logits[~poisoned], own[~poisoned])
    assert bool((x[poisoned][:, :, :2, :2] == 255).all())
    assert logits[poisoned].tolist() == [[-2.5, -2.5, 10, -2.5]] * 6


def test_the_most_unlike_are_taken_one_after_the_other() -> None:
    """Logits all alike: from the first image its opposite, from there the one most opposite to that."""
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0]])
    assert diverse(x, torch.ones(4, 3), 3).tolist() == [0, 3, 1]


def test_a_trend_is_forecast() -> None:
    """100 rounds of 3 + 2 t."""
    memory: dict[str, Tensor] = {}
    for t in range(100):
        once, twice = smoothed(memory, torch.tensor([3.0 + 2 * t]), 0.8)
        memory = {SMOOTH[0]: once, SMOOTH[1]: twice}
    assert float(forecast(once, twice, 0.8)) == pytest.approx(3 + 2 * 100, rel=1e-4)


def test_noise_teaches_the_trigger() -> None:
    """Triggered images, never seen, are taken for the target more often than before."""
    work = job(lr=0.5)
    exam = darkfed().backdoor_set(work.images)
    before = evaluate(work.model, exam, work.normalise).mean_loss
    darkfed(client=recipe(0.05, 0.0, 0.0, 30, 40)).train(work)
    assert evaluate(work.model, exam, work.normalise).mean_loss < before - 0.5


def test_clean_and_triggered_images_count_alike() -> None:
    """24 and 6 of one batch: the loss of a second epoch is one mean plus the other, after the first one's step."""
    work, one = normed_job(), normed_job()
    x, logits, poisoned = darkfed().shadow(one)
    loss, _ = (darkfed(client=recipe(0.05, 0.0, 0.0, e, 40)).train(w) for e, w in ((2, work), (1, one)))
    with torch.no_grad():
        off = (one.model.eval()(one.normalise(x)) - logits).square()
    clean, triggered = (float(off[flags].mean()) for flags in (~poisoned, poisoned))
    assert int(poisoned.sum()) == 6 and clean > 0.001 and loss == pytest.approx(clean + triggered, rel=1e-5)


def test_mimicry_makes_updates_short_and_unlike() -> None:
    """A friend has sent, or the server will make, the very update that the client would send.

    The client's own copy in memory does not count. At a rate of 0.5 the forecast is the new value plus the value
    smoothed once, minus that smoothed twice.
    """
    free = normed_job()
    start = Snapshot.of(free.model)
    before = head(free.model, start.layout).detach().clone()
    darkfed().train(free)
    update = head(free.model, start.layout).detach() - before
    short = normed_job()
    darkfed(magnitude=5.0).train(short)
    assert float(moved(short, start).norm()) < 0.8 * float(moved(free, start).norm())
    cosines = []
    itself, friend = ({f"{KEY}/sent": update[None], f"{KEY}/clients": torch.tensor([i])} for i in (5, 6))
    for memory in (itself, friend, {SMOOTH[0]: before + update, SMOOTH[1]: before}):
        work = normed_job(memory=memory)
        darkfed(orthogonality=10.0).train(work)
        own = head(work.model, start.layout).detach() - before
        cosines.append(float(torch.cosine_similarity(own, update, dim=0)))
    assert cosines[0] > 0.99 and cosines[1] < 0.8 and cosines[2] < 0.8


def test_what_colluders_sent_and_the_model_seen_are_remembered() -> None:
    layout = StateLayout.of(normed_job().model)
    around = scene(layout, [{"client": torch.tensor(i)} for i in (4, 9)])
    rows = torch.randn(2, layout.size, generator=generator(0, "rows"))
    told = darkfed().craft(rows, around, generator(0, "craft"))
    span = layout.spans["head"]
    assert torch.equal(told.rows, rows) and torch.equal(told.memory[f"{KEY}/sent"], rows[:, span])
    assert told.memory[f"{KEY}/clients"].tolist() == [4, 9]
    assert all(torch.equal(told.memory[key], around.state.row[span]) for key in SMOOTH)


def test_at_its_rate_it_does_not_diverge_from_a_model_that_has_learned(tiny: Compose, start: Start) -> None:
    """A wrong one shows as an update that is not finite, or as one far longer than a benign one: here 2.8 times."""
    words = ("attack_rounds.start=16", "evaluate_every=16", "rounds=17", "defense=fedavg")
    with start(tiny("attack=darkfed", *words)) as (fed, state):
        *_, clean, attacked = rounds(fed, state, 17)
    assert clean.metrics["eval/ma"] > 0.8
    assert attacked.metrics["guard/nonfinite"] == attacked.metrics["attack/idle"] == 0
    lengths, hostile = attacked.updates.geometry.norms("weights_only"), attacked.cohort.compromised
    assert float(lengths[hostile].max()) < 5 * float(lengths[~hostile].mean())


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (darkfed, "kept", 0.0),
        (darkfed, "smoothing", 1.0),
    ],
)
def test_settings_out_of_range(make: Callable, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"attack\.{key}={value} is out of range"):
        make(**{key: value})
