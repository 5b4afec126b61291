"""Augmentation: image by image the same, drawn evenly, at its address, and triggers where they are said to be."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attackers import CORNER, PLAIN, images, job
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from torch import Generator, Tensor

from attacks.blended import Blend
from attacks.iba import Noise
from attacks.mixing import MultiTask, PerBatch, WithClean
from attacks.triggers import Trigger
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.federation import rounds
from flame.round.augment import UNCHANGED, CropFlip, Stamped, as_stored
from flame.round.client import batches
from flame.round.seeding import generator
from flame.round.types import digest
from flame.run.build import Parts, build
from flame.run.config import fingerprint, identity, plain

ATTACKS = Path(__file__).parents[2] / "attacks"
LEFT = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)  # [1, 1, 3, 3]


def one_by_one(augment: CropFlip, x: Tensor, stream: Generator) -> Tensor:
    """The same draws, then Python for each pixel: image (r, c) is frame (r + top, c + left), mirrored if flipped."""
    tops, lefts = torch.randint(2 * augment.pad + 1, (2, len(x)), generator=stream).tolist()
    flips = (torch.rand(len(x), generator=stream) < augment.flip).tolist()
    count, _, height, width = x.shape
    out = torch.zeros_like(x)
    for i in range(count):
        for r in range(height):
            for c in range(width):
                row, column = r + tops[i] - augment.pad, c + lefts[i] - augment.pad
                if 0 <= row < height and 0 <= column < width:
                    out[i, :, r, width - 1 - c if flips[i] else c] = x[i, :, row, column]
    return out


@given(
    count=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    pad=st.integers(0, 5),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_batch_equals_a_loop_over_its_pixels(
    count: int, channels: int, height: int, width: int, pad: int, flip: float, seed: int
) -> None:
    x = torch.randint(256, (count, channels, height, width), generator=generator(seed, "x")).to(torch.uint8)
    augment, stream, again = CropFlip(pad, flip, "after"), generator(seed, "augment"), generator(seed, "augment")
    found = augment.drawn(x, stream)
    assert found.dtype == torch.uint8 and torch.equal(found, one_by_one(augment, x, again))
    assert stream.get_state().equal(again.get_state())  # and no draw more


def test_by_hand() -> None:
    flipped = CropFlip(0, 1.0, "after").drawn(LEFT, Generator())
    assert flipped[0, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    seen = CropFlip(1, 0.0, "after").drawn(LEFT.expand(400, -1, -1, -1), generator(0, "augment"))
    assert {tuple(x[0, 0].tolist()) for x in seen} == {
        *((0, 0, 0), (0, 1, 2), (1, 2, 3), (2, 3, 0)),  # the frame above; the first row from left, whole, from right
        *((0, 4, 5), (4, 5, 6), (5, 6, 0)),
    }


def test_all_places_and_sides_are_as_likely() -> None:
    """Chi-square of 81 places below its 0.9999 quantile, 144; flips within five standard deviations; no correlation."""
    count, spot = 40_000, torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    spot[0, 0, 4, 4] = 1  # in every crop
    augment, x = CropFlip(4, 0.0, "after"), spot.expand(count, -1, -1, -1)
    places = augment.drawn(x, generator(0, "augment")).flatten(1).max(1).indices
    found = places.bincount(minlength=81).double()
    assert float(((found - count / 81) ** 2 / (count / 81)).sum()) < 144
    side = torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    side[..., 0] = 1
    for chance in (0.5, 0.1):
        drawn = CropFlip(0, chance, "after").drawn(side.expand(count, -1, -1, -1), generator(1, "augment"))
        right = drawn[:, 0, 0, 1].double()
        assert abs(float(right.mean()) - chance) < 5 * (chance * (1 - chance) / count) ** 0.5
        assert abs(float((right[1:] * right[:-1]).mean()) - chance**2) < 5 * chance / count**0.5


@pytest.mark.parametrize("order", ["after", "before"])
def test_a_trigger_stands_still_or_moves_along(order: str) -> None:
    """Random images with a white corner on every second one, at the top left: flips put it, if at all, on the right."""
    bare, marked = images(20), torch.arange(20) % 2 == 0
    x = torch.where(marked.view(-1, 1, 1, 1), CORNER.stamp(bare.x), bare.x)
    stamped, index = Stamped(x, bare.y, bare.x, marked, CORNER.stamp), torch.randperm(20, generator=Generator())
    augment = CropFlip(2, 1.0, order)
    seen = augment.view(generator(0, "augment"))(stamped, index)
    corners = (seen[:, :, :2, :2] == 255).flatten(1).all(1)
    if order == "after":
        assert corners.equal(marked[index])
        plain = augment.drawn(bare.x[index], generator(0, "augment"))
        assert seen[~marked[index]].equal(plain[~marked[index]])
        assert seen[marked[index]].equal(CORNER.stamp(plain[marked[index]]))
    else:
        assert not corners.any()
        assert seen.equal(augment.drawn(x[index], generator(0, "augment")))


@pytest.mark.parametrize("trigger", [CORNER, Blend(0.2, seed=1), Noise(2, 30.0, seed=0)])
@pytest.mark.parametrize("append", [False, True])
def test_a_poisoner_says_what_it_stamped(trigger: Trigger, append: bool) -> None:
    attack, clean = replace(PLAIN, trigger=trigger, append=append), images()
    poisoned = attack.poison(clean, generator(0, "poison"))
    assert isinstance(poisoned, Stamped)
    assert int(poisoned.marked.sum()) == 20 and len(poisoned) == (60 if append else 40)
    assert poisoned.x[~poisoned.marked].equal(poisoned.bare[~poisoned.marked])
    assert poisoned.x[poisoned.marked].equal(poisoned.stamp(poisoned.bare[poisoned.marked]))
    assert poisoned.bare[: len(clean)].equal(clean.x) and bool((poisoned.y[poisoned.marked] == 2).all())
    part = poisoned.to(torch.device("cpu"))[torch.tensor([3, 1])]
    assert part.bare.equal(poisoned.bare[[3, 1]]) and part.marked.equal(poisoned.marked[[3, 1]])


@pytest.mark.parametrize("poisoned", [False, True])
def test_a_job_trains_on_what_its_own_stream_draws(poisoned: bool) -> None:
    """As on a batch that a loop has augmented with (seed, "augment", round, client), in the order of the batches."""
    augment, work = CropFlip(2, 0.5, "after"), job(epochs=2, batch_size=16)
    data = PLAIN.poison(work.images, generator(0, "poison")) if poisoned else work.images
    seen: list[Tensor] = []

    def normalise(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.float() / 255

    replace(work, augment=augment, normalise=normalise).fit(data)
    order, draws = (generator(0, role, round=3, client=5) for role in ("shuffle", "augment"))
    index = [batch for _ in range(2) for batch in batches(len(data), 16, order)]
    bare = data.bare if isinstance(data, Stamped) else data.x
    wanted = [one_by_one(augment, bare[batch], draws) for batch in index]
    if isinstance(data, Stamped):
        for x, batch in zip(wanted, index, strict=True):
            x[data.marked[batch]] = CORNER.stamp(x[data.marked[batch]])
    assert len(seen) == len(wanted) and all(map(torch.equal, seen, wanted))


def test_nothing_is_done_to_images_as_stored() -> None:
    stream, data = Generator(), images()
    before = stream.get_state()
    assert UNCHANGED.view(stream) is as_stored and as_stored(data, torch.tensor([2, 0])).equal(data.x[[2, 0]])
    assert before.equal(stream.get_state())


def test_every_training_of_an_attack_says_how_it_sees_batches() -> None:
    """`LocalJob.fit` does so itself; a loop on another model, which is given images and normalisation, must be told."""
    told = 0
    for path in ATTACKS.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".fit") and len(call.args) > 1:
                assert "view" in {keyword.arg for keyword in call.keywords}, f"{path.name}:{call.lineno}"
                told += 1
    assert told >= 4  # a3fl, chameleon, lp, threedfed


def played(parts: Parts, engine: Sequential | Pool) -> tuple[str, list[dict], list]:
    (record,) = rounds(parts.federation(engine), parts.initial, 1)
    metrics = {key: value for key, value in record.metrics.items() if not key.startswith("time/")}
    return digest(record.after), [metrics], list(record.classes)


def test_engines_draw_alike(tiny: Callable[..., DictConfig]) -> None:
    """With everything that is counted on request, too; other bits than without augmentation."""
    asked = ("evaluate.per_class=true", "evaluate.clients=2", "defense=fedavg")
    parts = build(tiny("augment=crop_flip", "augment.pad=2", *asked))
    wanted = played(parts, Sequential(parts.task))
    with closing(Pool(parts.task, workers=2)) as pool:
        assert played(parts, pool) == wanted
    plain_parts = build(tiny(*asked))
    assert played(plain_parts, Sequential(plain_parts.task))[0] != wanted[0]


def test_what_is_as_ever_is_no_part_of_the_identity(tiny: Callable[..., DictConfig]) -> None:
    """Runs from before there was a choice stay finished; any choice is another run."""
    before = {key: value for key, value in plain(tiny()).items() if key not in ("augment", "evaluate", "precision")}
    assert identity(tiny()) == fingerprint(before)
    others = ("augment=crop_flip", "augment=crop_flip augment.stamp=before", "evaluate.per_class=true")
    found = {identity(tiny(*words.split())) for words in (*others, "evaluate.clients=3")}
    assert len(found | {identity(tiny())}) == 5


@pytest.mark.parametrize("mixing", [PerBatch(), MultiTask(0.25), WithClean(0.5)])
def test_triggers_stand_still_however_images_are_mixed(mixing: PerBatch | MultiTask | WithClean) -> None:
    """Of what is trained on, all images with the attacker's label alone have the white corner in its place."""
    attack, work = replace(PLAIN, mixing=mixing), job(epochs=2, batch_size=16)
    seen: list[Tensor] = []

    def normalise(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.float() / 255

    attack.train(replace(work, augment=CropFlip(2, 0.5, "after"), normalise=normalise))
    corners = torch.cat([(x[:, :, :2, :2] == 255).flatten(1).all(1) for x in seen])
    white = torch.cat([(x == 255).flatten(1).any(1) for x in seen])
    assert corners.equal(white) and int(corners.sum()) == 2 * 20  # half of 40 images, in two epochs
