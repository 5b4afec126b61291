"""CerP, IBA and DarkFed: a tuned trigger, a network that makes one, and clients without data; each by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attackers import CORNER, honest, images, job, normed_job, scene, trigger_loss
from torch import Tensor

from attacks.badnets import BadNets
from attacks.cerp import CerP, likeness
from attacks.collusion import others
from attacks.darkfed import KEY, SMOOTH, DarkFed, diverse, forecast, head, smoothed
from attacks.iba import HISTORY, IBA, ROUNDS, THETA, Noise
from attacks.snapshot import Snapshot
from attacks.triggers import Painted, Square
from flame.build import build
from flame.checkpoint import latest_checkpoint, write_checkpoint
from flame.client import LocalJob, LocalSGD, cross_entropy
from flame.engine.sequential import Sequential
from flame.evaluate import evaluate
from flame.federation import play, rounds
from flame.layout import StateLayout
from flame.seeding import generator
from flame.types import digest

START = Square(2, 1, 1, 128)


def model_row(work: LocalJob) -> Tensor:
    return Snapshot.of(work.model).row


def moved(work: LocalJob, start: Snapshot) -> Tensor:
    """[d] by which training has moved the trainable part."""
    return (model_row(work) - start.row)[: start.layout.trainable]


# cerp


def cerp(**changes: Any) -> CerP:
    return replace(CerP(START, 2, None, 0.5, False, None, 0.5, 5.0, 0.0, 0.0), **changes)


def test_a_step_of_the_trigger_is_the_gradient() -> None:
    """One batch; the slope from difference quotients over 20 grey levels."""
    work = job()
    found = cerp().search(work)[0]
    for i, value in enumerate(found.tolist()):
        ends = torch.full((2, 1, 4), 128.0)
        ends[0, 0, i], ends[1, 0, i] = 118, 138
        slope = (trigger_loss(work.model, work, ends[1]) - trigger_loss(work.model, work, ends[0])) / 20
        assert value - 128 == pytest.approx(-0.5 * 255**2 * slope, rel=0.05)


def test_the_trigger_stays_in_its_ball() -> None:
    found = cerp(lr=50.0, radius=0.1).search(normed_job())
    assert float((found - 128).norm()) == pytest.approx(25.5, rel=1e-4)


def test_without_its_controls_it_is_badnets_with_the_found_trigger() -> None:
    work, plain = normed_job(), normed_job()
    cerp().train(work)
    BadNets(Painted(START, work.notes[CerP.key]), 2, None, 0.5, False, None).train(plain)
    assert torch.equal(model_row(work), model_row(plain))


def test_it_keeps_near_the_benign_model() -> None:
    distances = []
    for alpha in (0.0, 0.3):
        work = normed_job()
        d, wanted = StateLayout.of(work.model).trainable, honest(work).row
        cerp(alpha=alpha).train(work)
        distances.append(float((model_row(work) - wanted)[:d].norm()))
    assert distances[1] < 0.8 * distances[0]


def test_likeness_by_hand() -> None:
    """Cosines 1 for the weights and -1 for the biases of one layer."""
    model = torch.nn.Linear(2, 2)
    layout = StateLayout.of(model)
    row = torch.cat([3 * model.weight.detach().flatten(), -model.bias.detach()])
    assert float(likeness(model, row, layout).detach()) == pytest.approx(0, abs=1e-6)


def test_colluders_remember_each_other_and_grow_unlike() -> None:
    """Client 5 has two friends; with beta it ends less like them than without."""
    work = normed_job()
    start = Snapshot.of(work.model)
    rows = torch.randn(3, len(start.row), generator=generator(0, "rows"))
    values = torch.full((1, 4), 90.0)
    notes = [{CerP.key: values, "client": torch.tensor(i)} for i in (3, 5, 8)]
    told = cerp().craft(rows, scene(start.layout, notes), generator(0, "craft"))
    assert torch.equal(told.rows, rows) and torch.equal(told.memory[CerP.key], values)
    friends = others(replace(work, memory=told.memory), CerP.key, start.layout.trainable)
    sent = scene(start.layout, notes).state.row + rows
    assert torch.equal(friends, sent[[0, 2], : start.layout.trainable])
    likenesses = []
    for beta in (0.0, 1.0):
        again = normed_job(memory=told.memory)
        cerp(beta=beta).train(again)
        likenesses.append(sum(float(likeness(again.model, f, start.layout).detach()) for f in friends))
    assert likenesses[1] < likenesses[0] - 0.1


# iba


def iba(**changes: Any) -> IBA:
    attack = IBA(Noise(4, 40.0, 0), 2, None, 1.0, True, None, 10.0, 0.5, 0.7, 6, 0.02, 0.3)
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


# darkfed


def darkfed(**changes: Any) -> DarkFed:
    sgd = LocalSGD(0.05, 0.0, 0.0, 4, 40)
    return replace(DarkFed(CORNER, 2, 60, 0.5, 0.2, 0.0, 0.0, 0.5, sgd), **changes)


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
    darkfed(sgd=LocalSGD(0.05, 0.0, 0.0, 30, 40)).train(work)
    assert evaluate(work.model, exam, work.normalise).mean_loss < before - 0.5


def test_mimicry_makes_updates_short_and_unlike() -> None:
    """A friend has sent the very update that the client would send; its own copy in memory does not count."""
    free = normed_job()
    start = Snapshot.of(free.model)
    before = head(free.model, start.layout).detach().clone()
    darkfed().train(free)
    update = head(free.model, start.layout).detach() - before
    short = normed_job()
    darkfed(magnitude=5.0).train(short)
    assert float(moved(short, start).norm()) < 0.8 * float(moved(free, start).norm())
    cosines = []
    for friend in (5, 6):  # the client itself, another one
        work = normed_job(memory={f"{KEY}/sent": update[None], f"{KEY}/clients": torch.tensor([friend])})
        darkfed(orthogonality=10.0).train(work)
        own = head(work.model, start.layout).detach() - before
        cosines.append(float(torch.cosine_similarity(own, update, dim=0)))
    assert cosines[0] > 0.99 and cosines[1] < 0.8


def test_what_colluders_sent_and_the_model_seen_are_remembered() -> None:
    layout = StateLayout.of(normed_job().model)
    around = scene(layout, [{"client": torch.tensor(i)} for i in (4, 9)])
    rows = torch.randn(2, layout.size, generator=generator(0, "rows"))
    told = darkfed().craft(rows, around, generator(0, "craft"))
    span = layout.spans["head"]
    assert torch.equal(told.rows, rows) and torch.equal(told.memory[f"{KEY}/sent"], rows[:, span])
    assert told.memory[f"{KEY}/clients"].tolist() == [4, 9]
    assert all(torch.equal(told.memory[key], around.state.row[span]) for key in SMOOTH)


# all of them


@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("threedfed", "backdoor.epochs=1"),
        ("cerp", "epochs=1"),
        ("iba", "search_epochs=1"),
        ("darkfed", "sgd.epochs=1"),
    ],
)
def test_what_they_remember_survives_a_checkpoint(
    name: str, shorter: str, tiny: Callable, start: Callable, tmp_path: Path
) -> None:
    """Two colluders, two rounds: as one run, and with the state written and read between them."""
    few = (f"attack={name}", f"attack.{shorter}", "poisoned_model_rate=0.6", "clients=3", "clients_per_round=3")
    with start(tiny(*few, "train_samples=60")) as (fed, initial):
        first, second = (record.after for record in rounds(replace(fed, evaluate_at=()), initial, 2))
        write_checkpoint(tmp_path, first, "identity")
        read = latest_checkpoint(tmp_path, build(tiny()).task.layout, "identity")
        assert read is not None and first.memory and read.memory.keys() == first.memory.keys()
        again = play(replace(fed, evaluate_at=()), read).after
    assert digest(again) == digest(second)
    assert all(torch.equal(again.memory[key], value) for key, value in second.memory.items())


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (cerp, "lr", 0.0),
        (cerp, "beta", -1.0),
        (iba, "least_epsilon", 41.0),
        (iba, "decay", 1.0),
        (darkfed, "kept", 0.0),
        (darkfed, "smoothing", 1.0),
    ],
)
def test_settings_out_of_range(make: Callable, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"attack\.{key}={value} is out of range"):
        make(**{key: value})
