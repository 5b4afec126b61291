"""LP: critical layers are found, poisoned, given up to a detector and drawn at random, by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import LAYOUT, PLAIN, images, lp, normed_job, scene

from attacks.base import share_of
from attacks.lp import critical_layers, drawn, trainable_layers
from attacks.snapshot import Snapshot
from attacks.subpopulation import SubPopulation
from flame.data.samples import Samples
from flame.geometry.layout import StateLayout
from flame.round.evaluate import evaluate
from flame.round.seeding import generator

LAYERS = {e.key: e for e in LAYOUT.entries}


def model_of(values: Iterable[float]) -> Snapshot:
    """Five layers of one number each."""
    layout = StateLayout.from_state({f"l{i}.w": torch.zeros(1) for i in range(5)}, [f"l{i}.w" for i in range(5)])
    return Snapshot(layout, torch.tensor(list(values), dtype=torch.float32), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(0.5, ["l3.w"]), (0.8, ["l3.w", "l1.w"]), (1.0, ["l3.w", "l1.w", "l0.w"])]
)
def test_planted_critical_layers_are_found(threshold: float, wanted: list[str]) -> None:
    """Malicious layers are 1; layer 3 is worth 0.6 of the backdoor, layer 1 0.3 and layer 0 0.1."""
    worth = torch.tensor([0.1, 0.3, 0, 0.6, 0])
    found = critical_layers(model_of([0] * 5), model_of([1] * 5), lambda m: round(float(m.row @ worth), 6), threshold)
    assert [e.key for e in found] == wanted


def test_layers_that_only_work_together() -> None:
    def both(model: Snapshot) -> float:
        return float(model.row[2] * model.row[4])

    assert {e.key for e in critical_layers(model_of([0] * 5), model_of([1] * 5), both, 0.95)} == {"l2.w", "l4.w"}
    assert critical_layers(model_of([0] * 5), model_of([0] * 5), both, 0.95) == []  # no backdoor, nothing critical


@pytest.mark.parametrize(("gain", "first"), [(0.5, [6, 2.5, 4, 5]), (1.0, [10, 0, 4, 5]), (2.0, [20, 0, 4, 5])])
def test_lp_sends_the_benign_mean_but_for_the_critical_layers(gain: float, first: list[float]) -> None:
    """Two colluders, benign mean (2, 5, 4, 5 | 7, 8); a.weight is the first's critical layer, b.weight the second's."""
    benign = torch.tensor([[1.0, 5, 4, 6, 6, 8], [3, 5, 4, 4, 8, 8]])
    rows = torch.tensor([[10.0, 0, 9, 9, -1, -1], [9, 9, 0, 10, -1, -1]])
    places = [torch.tensor([LAYOUT.entries.index(LAYERS[key])]) for key in ("a.weight", "b.weight")]
    notes = [{"benign": u, "layers": p} for u, p in zip(benign, places, strict=True)]
    sent = lp(gain).craft(rows, scene(LAYOUT, notes), generator(0, "craft")).rows
    assert sent[0].tolist() == [*first, 7, 8]
    rest = max(0.0, 1 - gain)
    assert sent[1].tolist() == [2, 5, rest * 4, gain * 10 + rest * 5, 7, 8]


@pytest.mark.parametrize("detector", ["krum", "flame"])
def test_layers_are_given_up_until_the_detector_is_content(detector: str) -> None:
    """Four colluders; a.weight is near the benign ones, b.weight so far off that it would be found."""
    benign = torch.randn(4, 6, generator=generator(3, "benign"))
    rows = benign.clone()
    rows[:, 2:4] += 50
    places = torch.tensor([LAYOUT.entries.index(LAYERS[key]) for key in ("a.weight", "b.weight")])
    around = scene(LAYOUT, [{"benign": u, "layers": places} for u in benign])
    sent = lp(detector=detector).craft(rows, around, generator(0, "craft")).rows
    assert torch.equal(sent[:, :2], rows[:, :2]) and torch.equal(sent[:, 2:4], benign.mean(0)[2:4].expand(4, 2))
    blind = lp().craft(rows, around, generator(0, "craft")).rows
    assert torch.equal(blind[:, :4], rows[:, :4])


@pytest.mark.parametrize(("detector", "content"), [("flame", True), ("krum", False)])
def test_flames_detector_sees_statistics_and_krums_does_not(detector: str, content: bool) -> None:
    """The weights are far off, but in a model whose statistics are far larger, and the mean of the others'."""
    benign = torch.randn(4, 6, generator=generator(3, "benign"))
    benign[:, 4:] *= 1000
    rows = benign.clone()
    rows[:, 2:4] += 50
    places = torch.tensor([LAYOUT.entries.index(LAYERS[key]) for key in ("a.weight", "b.weight")])
    around = scene(LAYOUT, [{"benign": u, "layers": places} for u in benign])
    sent = lp(detector=detector).craft(rows, around, generator(0, "craft")).rows
    assert torch.equal(sent[:, 2:4], rows[:, 2:4] if content else benign.mean(0)[2:4].expand(4, 2))


def test_lp_trains_its_malicious_model_from_the_global_one() -> None:
    work, plain = normed_job(), normed_job()
    lp().train(work)
    PLAIN.train(plain)
    assert torch.equal(Snapshot.of(work.model).row, Snapshot.of(plain.model).row)
    layout = StateLayout.of(work.model)
    found = [layout.entries[i].block for i in work.notes["layers"].tolist()]
    assert set(found) <= {"trunk", "head"} and len(found) == len(set(work.notes["layers"].tolist()))


@pytest.mark.parametrize(("seed", "fit_accuracy"), [(1, 0.9), (2, 0.9), (1, 0.0)])
def test_critical_layers_are_sought_on_images_that_nothing_was_trained_on(seed: int, fit_accuracy: float) -> None:
    """Steps 1 to 3 in a row, on three quarters of 160 images: three epochs of benign training, or one that will do."""
    work, twin = (normed_job(seed=seed, images=images(160)) for _ in range(2))
    replace(lp(), fit_accuracy=fit_accuracy).train(work)
    held = share_of(160, 0.25, twin.stream("validation"))
    exam = PLAIN.backdoor_set(twin.images[held])
    training = twin.images[torch.tensor(sorted(set(range(160)) - set(held.tolist())))]
    stream = twin.stream("identify")
    for _ in range(3 if fit_accuracy else 1):
        twin.training.fit(twin.model, training, twin.normalise, stream, round=twin.round)
    benign = Snapshot.of(twin.model)
    PLAIN.train(replace(twin, images=training))

    def success(model: Snapshot) -> float:
        model.load(twin.model)
        return evaluate(twin.model, exam, twin.normalise).accuracy

    wanted = critical_layers(benign, Snapshot.of(twin.model), success, 0.95)
    assert wanted and work.notes["layers"].tolist() == [benign.layout.entries.index(e) for e in wanted]


def test_layers_are_ranked_on_images_of_the_pool_where_the_attack_has_its_own() -> None:
    """Of a pool of eight, two are held back: those are the exam, the other six are trained on; one is never all."""
    pool, held_out = images(8), Samples(images(9).x + 50, images(9).y)
    attack = SubPopulation(pool, held_out, 3, 0.5)
    less, exam = attack.rehearsal(images(), 0.25, generator(0, "rehearsal"))
    assert isinstance(less, SubPopulation) and len(less.pool) == 6 and exam is not None
    left = {x.numpy().tobytes() for x in pool.x} - {x.numpy().tobytes() for x in less.pool.x}
    assert {x.numpy().tobytes() for x in exam.x} <= left and len(left) == 2  # images of the target class are left out
    assert bool((exam.y == 3).all()) and less.held_out is held_out
    alone = SubPopulation(pool[:1], held_out, 3, 0.5).rehearsal(images(), 0.25, generator(0, "rehearsal"))
    assert alone[1] is None
    work, other = normed_job(), normed_job()
    replace(lp(), backdoor=attack).train(work)
    replace(lp(), backdoor=replace(attack, held_out=images(5))).train(other)  # whatever it is evaluated on
    assert torch.equal(work.notes["layers"], other.notes["layers"])
    assert torch.equal(Snapshot.of(work.model).row, Snapshot.of(other.model).row)


def test_random_layers_are_as_many_and_nothing_else_changes() -> None:
    """The default notes what was identified, bit by bit; the control has the same models and as many other layers."""
    critical, random, identified = normed_job(), normed_job(), normed_job()
    lp().train(critical)
    lp(layers="random").train(random)
    layout = StateLayout.of(critical.model)
    found = [layout.entries.index(e) for e in lp()._identify(identified)]
    assert found and critical.notes["layers"].tolist() == found
    assert len(random.notes["layers"]) == len(found)
    assert torch.equal(random.notes["benign"], critical.notes["benign"])
    assert torch.equal(Snapshot.of(random.model).row, Snapshot.of(critical.model).row)


def test_layers_are_drawn_from_all_without_repetition() -> None:
    """Two of five, a thousand times: each in two fifths of the draws, four standard errors."""
    layers, hits = trainable_layers(model_of([0] * 5).layout), Counter()
    for seed in range(1000):
        hits.update({e.key for e in drawn(layers, 2, generator(seed, "layers"))})
    assert sum(hits.values()) == 2000 and all(abs(hits[f"l{i}.w"] - 400) < 4 * math.sqrt(1000 * 0.24) for i in range(5))
    assert [e.key for e in trainable_layers(LAYOUT)] == ["a.weight", "b.weight"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(lp(), threshold=1.1), "attack.threshold=1.1"),
        (lambda: replace(lp(), gain=0.0), "attack.gain=0.0"),
        (lambda: replace(lp(), validation_share=1.0), "attack.validation_share=1.0"),
        (lambda: replace(lp(), fit_accuracy=1.1), "attack.fit_accuracy=1.1"),
        (lambda: replace(lp(), fit_epochs=0), "attack.fit_epochs=0"),
        (lambda: lp(detector="median"), "attack.detector='median' .* one of none, krum, flame"),
        (lambda: lp(layers="all"), "attack.layers='all' .* one of critical, random"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
