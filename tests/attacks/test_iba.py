"""IBA: the network that makes the noise, its phases, and where the poison goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import honest, images, model_row, moved, normed_job, scene

from attacks.iba import HISTORY, IBA, ROUNDS, THETA, Noise
from attacks.snapshot import Snapshot
from flame.data.samples import Samples
from flame.engine.sequential import Sequential
from flame.geometry.layout import StateLayout
from flame.round.client import cross_entropy
from flame.round.evaluate import evaluate
from flame.round.seeding import generator
from flame.run.build import build


def iba(**changes: Any) -> IBA:
    attack = IBA(Noise(4, 40.0, 0), 2, None, 1.0, True, 10.0, 0.5, 0.7, 6, 0.02, 0.3)
    return replace(attack, **changes)


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_faint_and_different_for_each_image(channels: int) -> None:
    x = images().x.expand(-1, channels, -1, -1)
    noise = Noise(4, 12.0, 0)
    stamped = noise.stamp(x)
    off = stamped.float() - x.float()
    assert stamped.dtype == torch.uint8 and float(off.abs().max()) <= 12.5 and float(off.abs().mean()) > 1
    assert float((off[0] - off[1]).abs().max()) > 2 and torch.equal(stamped, noise.stamp(x))
    assert len(noise.parameters(channels)) == sum(
        o * (i * 9 + 1) for o, i in ((4, channels), (4, 4), (channels, 4 + channels))
    )


def test_epsilon_falls_once_poisoning_has_begun() -> None:
    """40 until the first round of phase 2 is over, then by half to the floor of 10."""
    epsilons = [iba().current({ROUNDS: torch.tensor(k)}).epsilon for k in range(5)]
    assert epsilons == [40, 40, 20, 10, 10]


def test_the_backdoor_is_tested_with_the_noise_that_was_poisoned_with() -> None:
    """After the second round of phase 2 (20), not with that of the third (10); before and after its first with 40."""
    x = images().x
    for begun, epsilon in enumerate((40, 40, 40, 20, 10, 10)):
        stamped = iba(exam=x).restamp(torch.zeros_like(x), {ROUNDS: torch.tensor(begun)})
        assert stamped is not None and torch.equal(stamped, Noise(4, epsilon, 0).stamp(x))


def test_the_network_learns_while_the_client_trains_as_a_benign_one() -> None:
    work = normed_job()
    wanted = honest(work)
    iba(search_epochs=20).train(work)
    assert torch.equal(model_row(work), wanted.row) and "movement" not in work.notes
    losses = []
    for theta in (None, work.notes[THETA]):
        x = work.normalise(Noise(4, 40.0, 0, theta).stamp(work.images.x))
        losses.append(float(cross_entropy(work.model.eval(), x, torch.full((40,), 2)).detach()))
    assert losses[1] < losses[0] - 0.02


def test_success_is_the_local_models_on_images_of_other_classes() -> None:
    """In large noise, so that it takes some of the images; those of the target class would count otherwise."""
    work = normed_job()
    iba(trigger=Noise(4, 255.0, 0), search_epochs=20).train(work)
    noise, wrong = Noise(4, 255.0, 0, work.notes[THETA]), work.images.y != 2
    stamped = Samples(noise.stamp(work.images.x), torch.full((40,), 2))
    wanted, of_all = (evaluate(work.model, part, work.normalise).accuracy for part in (stamped[wrong], stamped))
    assert float(work.notes["success"]) == pytest.approx(wanted) and 0 < wanted < of_all < 1


def test_poisoning_moves_what_clean_data_leaves_alone() -> None:
    work = normed_job(memory={ROUNDS: torch.tensor(1)})
    start = Snapshot.of(work.model)
    iba(ratio=0.3).train(work)
    quiet = work.notes["movement"].argsort()[: round(0.3 * start.layout.trainable)]
    change = moved(work, start) != 0
    assert int(change.sum()) == int(change[quiet].sum()) > 0
    assert not torch.equal(work.notes[THETA], iba().trigger.parameters(1))  # an odd round: the network learns, too
    even = normed_job(memory={ROUNDS: torch.tensor(2), THETA: work.notes[THETA]})
    iba().train(even)
    assert torch.equal(even.notes[THETA], work.notes[THETA])


def test_phases_and_history_by_hand() -> None:
    """Mean successes of 0.6 and 0.8 against 0.7; then the running mean of the movements of two rounds."""
    layout, rows = StateLayout.of(normed_job().model), torch.zeros(2, 344)
    theta = {THETA: torch.tensor([1.0, 3.0])}
    for low, begun in ((0.4, 0), (0.8, 1)):
        notes = [theta | {"success": torch.tensor(s)} for s in (low, 0.8)]
        memory = iba().craft(rows, scene(layout, notes), generator(0, "craft")).memory
        assert int(memory[ROUNDS]) == begun and HISTORY not in memory
    work = normed_job(memory={ROUNDS: torch.tensor(2), HISTORY: torch.zeros(layout.trainable)})
    iba().train(work)
    first = normed_job(memory={ROUNDS: torch.tensor(1)})
    iba().train(first)
    torch.testing.assert_close(work.notes["movement"], first.notes["movement"] / 2)


def test_noise_is_never_stamped_over_noise(tiny: Callable) -> None:
    """The backdoor set after any evaluation is the clean images with the noise of that moment."""
    parts = build(tiny("attack=iba"))
    engine, attack = Sequential(parts.task), parts.attack
    test = parts.dataset.test
    clean = test.x[test.y != 5]
    for scale in (0.0, 2.0, 0.0):
        theta = scale * attack.trigger.parameters(1)
        engine.evaluate(replace(parts.initial, memory={THETA: theta}))
        wanted = Noise(16, 76.5, 0, theta).stamp(clean)
        assert torch.equal(parts.task.eval_sets["backdoor"].x, wanted)
    assert torch.equal(wanted, clean)  # no noise from zeros


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (iba, "least_epsilon", 41.0),
        (iba, "decay", 1.0),
    ],
)
def test_settings_out_of_range(make: Callable, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"attack\.{key}={value} is out of range"):
        make(**{key: value})
