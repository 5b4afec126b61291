"""Backdoor attacks: what is poisoned and how often, how local training is bent, what is scaled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.around import Around
from attacks.badnets import BadNets
from attacks.base import Attack, Scene
from attacks.constrain_and_scale import ConstrainAndScale
from attacks.dba import DBA
from attacks.edge_case import EdgeCase, load_images, mean_neighbour_distance
from attacks.label_flip import LabelFlip
from attacks.model_replacement import ModelReplacement
from attacks.pgd import PGD
from attacks.scaling import Scaling
from attacks.semantic import Semantic
from attacks.subpopulation import SubPopulation
from attacks.triggers import Bars, Square
from flame.client import LocalJob, LocalSGD, cross_entropy
from flame.layout import StateLayout
from flame.seeding import generator
from flame.types import Dataset, LabelledImages, ServerState

CORNER = Square(size=2, row=0, column=0, value=255)
PLAIN = BadNets(CORNER, target_class=2, source_class=None, poisoned_data_rate=0.5, append=False, epochs=None)
UNSCALED = Scaling(gamma=1.0, norm_bound=None, scope="all_state")
LAYOUT = StateLayout.from_state(  # d = 4, b = 2
    {
        "a.weight": torch.zeros(2),
        "bn.running_mean": torch.zeros(1),
        "bn.running_var": torch.zeros(1),
        "b.weight": torch.zeros(2),
    },
    ["a.weight", "b.weight"],
)


def images(count: int = 40, classes: int = 4, size: int = 6) -> LabelledImages:
    """Random images without a white corner, all classes equally often."""
    x = torch.randint(200, (count, 1, size, size), dtype=torch.uint8, generator=generator(0, "test images"))
    return LabelledImages(x, torch.arange(count) % classes)


def dataset(count: int = 40) -> Dataset:
    return Dataset("made up", images(count), images(count // 2), (0.0,), (1.0,), 4)


def stamped(x: Tensor) -> Tensor:
    """[N] bool, which images carry the corner."""
    return (x[:, :, :2, :2] == 255).flatten(1).all(1)


def job(epochs: int = 1, batch_size: int = 40, lr: float = 0.5, momentum: float = 0.0) -> LocalJob:
    """One client with a linear model on 40 images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    stream = generator(1, "test model")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=stream) / 10)
    sgd = LocalSGD(lr, momentum, 0.0, epochs, batch_size)
    return LocalJob(model, images(), sgd, lambda x: x.float() / 255, {}, seed=0, round=3, client=5)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(attack: Attack, **sgd: Any) -> tuple[Tensor, Tensor]:
    """Parameters before and after an attacker's local training."""
    work = job(**sgd)
    before = vector(work.model)
    attack.train(work)
    return before, vector(work.model)


def scene(clients: int) -> Scene:
    return Scene(ServerState(torch.zeros(6), torch.zeros(0, dtype=torch.int64)), LAYOUT, clients)


# badnets and label_flip: counts


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


def test_label_flip_from_source_to_target() -> None:
    clean = images()
    attack = LabelFlip(source_class=1, target_class=3, classes=4, poisoned_data_rate=0.4, epochs=None)
    poisoned = attack.poison(clean, generator(0, "poison"))
    changed = poisoned.y != clean.y
    assert torch.equal(poisoned.x, clean.x) and int(changed.sum()) == 4
    assert bool((clean.y[changed] == 1).all()) and bool((poisoned.y[changed] == 3).all())
    backdoor = attack.backdoor_set(clean)
    assert backdoor is not None and torch.equal(backdoor.x, clean.x[clean.y == 1]) and bool((backdoor.y == 3).all())


def test_label_flip_of_all_labels_has_no_backdoor() -> None:
    clean = images()
    attack = LabelFlip(source_class=None, target_class=None, classes=4, poisoned_data_rate=1.0, epochs=None)
    assert torch.equal(attack.poison(clean, generator(0, "poison")).y, 3 - clean.y)
    assert attack.backdoor_set(clean) is None


# dba


def test_each_dba_client_trains_on_its_own_part_and_the_whole_is_tested() -> None:
    bars = Bars(size=2, gap=1, row=0, column=0, value=255)
    attack = DBA(bars, 2, None, 1.0, False, None, parts=4, scaling=UNSCALED)
    white = [attack.compromise(replace(job(), client=client)).images.x[0, 0] == 255 for client in range(8)]
    whole = attack.stamp(images().x)[0, 0] == 255
    assert all(int(part.sum()) == 2 for part in white) and int(whole.sum()) == 8
    assert torch.equal(torch.stack(white[:4]).sum(0), whole.long())  # disjoint, together the whole
    assert all(torch.equal(white[client], white[client + 4]) for client in range(4))


# local training


def test_attackers_train_for_their_own_number_of_epochs() -> None:
    _, two = trained(replace(PLAIN, epochs=2))
    _, same = trained(PLAIN, epochs=2)
    _, one = trained(PLAIN)
    assert torch.equal(two, same) and not torch.equal(two, one)


@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_pgd_ends_on_the_ball(radius: float) -> None:
    before, after = trained(PGD(PLAIN, UNSCALED, radius), epochs=5, batch_size=8, momentum=0.9)
    assert float((after - before).norm()) == pytest.approx(radius, rel=1e-4)


def test_pgd_projects_a_step_onto_its_own_direction() -> None:
    before, free = trained(PLAIN)
    _, after = trained(PGD(PLAIN, UNSCALED, 0.05))
    step = free - before
    assert float(step.norm()) > 0.05
    torch.testing.assert_close(after, before + 0.05 * step / step.norm(), atol=1e-6, rtol=0)


def test_pgd_in_a_wide_ball_and_constrain_with_alpha_1_are_plain_training() -> None:
    _, free = trained(PLAIN, epochs=2, batch_size=8)
    for attack in (PGD(PLAIN, UNSCALED, 1e6), ConstrainAndScale(PLAIN, UNSCALED, 1.0, "l2")):
        assert torch.equal(trained(attack, epochs=2, batch_size=8)[1], free)


@pytest.mark.parametrize("anomaly", ["l2", "cosine"])
def test_two_steps_of_constrain_and_scale_by_hand(anomaly: str) -> None:
    """Full batches: w1 = G - lr * a * g(G), since L_ano has no gradient at G, then the whole of equation 4."""
    alpha, lr, work = 0.6, 0.5, job()
    poisoned, start = PLAIN.compromise(work).images, vector(work.model)
    x = work.normalise(poisoned.x)

    def gradient(w: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(w, work.model.parameters())
        loss = cross_entropy(work.model, x, poisoned.y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(work.model.parameters()))])

    w1 = start - lr * alpha * gradient(start)
    if anomaly == "l2":
        pull = (w1 - start) / (w1 - start).norm()
    else:  # d(1 - cos)/dw = -(G / |w||G| - cos w / |w|^2)
        norms, cosine = w1.norm() * start.norm(), w1 @ start / (w1.norm() * start.norm())
        pull = -(start / norms - cosine * w1 / w1.norm() ** 2)
    w2 = w1 - lr * (alpha * gradient(w1) + (1 - alpha) * pull)
    _, after = trained(ConstrainAndScale(PLAIN, UNSCALED, alpha, anomaly), epochs=2)
    torch.testing.assert_close(after, w2, atol=2e-5, rtol=0)


def test_the_constraint_shortens_the_update() -> None:
    norms = []
    for alpha in (1.0, 0.7, 0.3):
        before, after = trained(ConstrainAndScale(PLAIN, UNSCALED, alpha, "l2"), epochs=5, lr=0.05)
        norms.append(float((after - before).norm()))
    assert norms[0] > norms[1] > norms[2] > 0


# scaling


def test_scaling_by_hand() -> None:
    """n = 6, m = 2: gamma = 3; the last two columns, running mean and variance, stay or grow as the scope says."""
    rows = torch.tensor([[3.0, 4, 0, 0, 1, -1], [0, 0, 0, 1, 2, 3]])
    scaled = Scaling(None, None, "weights_only").apply(rows, scene(6))
    assert scaled.tolist() == [[9, 12, 0, 0, 1, -1], [0, 0, 0, 3, 2, 3]]
    assert torch.equal(Scaling(None, None, "all_state").apply(rows, scene(6)), 3 * rows)
    bounded = Scaling(None, 10.0, "all_state").apply(rows, scene(6))  # 10 / 5 = 2 < 3 for the first only
    assert bounded.tolist() == [[6, 8, 0, 0, 2, -2], [0, 0, 0, 3, 6, 9]]
    shortened = Scaling(7.0, 2.5, "weights_only").apply(rows, scene(6))
    assert shortened.tolist() == [[1.5, 2, 0, 0, 1, -1], [0, 0, 0, 2.5, 2, 3]]
    assert rows[0, 0] == 3


def test_a_bound_leaves_a_zero_update_alone() -> None:
    assert not Scaling(None, 1.0, "all_state").apply(torch.zeros(1, 6), scene(6)).any()


def test_replacement_replaces_the_average() -> None:
    """Three benign clients that send nothing and one attacker: the mean is the attacker's update."""
    rows = torch.tensor([[1.0, -2, 3, 4, 5, -6]])
    crafted = (
        ModelReplacement(PLAIN, Scaling(None, None, "all_state")).craft(rows, scene(4), generator(0, "craft")).rows
    )
    assert torch.equal(torch.cat([crafted, torch.zeros(3, 6)]).mean(0), rows[0])


def test_attacks_around_attacks_pass_every_hook_on() -> None:
    inner = EdgeCase(3, 2, None, 0.5, 2, 0.5, None)
    armed, rest = Around(Around(inner)).prepare(dataset(), generator(0, "prepare"))
    direct, direct_rest = inner.prepare(dataset(), generator(0, "prepare"))
    assert torch.equal(rest.train.x, direct_rest.train.x)
    got, wanted = armed.backdoor_set(images()), direct.backdoor_set(images())
    assert got is not None and wanted is not None and torch.equal(got.x, wanted.x)
    assert torch.equal(trained(armed)[1], trained(direct)[1])
    flip = Around(LabelFlip(1, 3, 4, 1.0, None))
    assert torch.equal(flip.target(torch.arange(4)), torch.tensor([0, 3, 2, 3]))
    assert torch.equal(flip.poison(images(), generator(0, "poison")).y, flip.target(images().y))
    assert torch.equal(Around(PLAIN).stamp(images().x), PLAIN.stamp(images().x))


# sub-populations


def test_neighbour_distance_against_a_loop() -> None:
    x = images(12).x
    points = x.flatten(1).double()
    for i in range(12):
        others = sorted(float((points[i] - points[j]).norm()) for j in range(12) if j != i)
        got = mean_neighbour_distance(x, x, True, 3)[i]
        assert float(got) == pytest.approx(sum(others[:3]) / 3, rel=1e-4)
    to_others = mean_neighbour_distance(x[:5], x[5:], False, 100)  # k is cut to what there is
    assert float(to_others[0]) == pytest.approx(float((points[0] - points[5:]).norm(dim=1).mean()), rel=1e-4)


def test_the_tail_is_what_lies_far_from_the_rest_of_its_class() -> None:
    """Class 1 is black but for two white and two grey images; those four leave the clients' data."""
    data = dataset()
    x = data.train.x.clone()
    members = (data.train.y == 1).nonzero()[:, 0]
    x[members] = 0
    x[members[:2]], x[members[2:4]] = 250, 100
    far = members[:4]
    x_test = torch.zeros_like(data.test.x)
    x_test[1] = 180  # of class 1 and far from all of it
    data = replace(data, train=replace(data.train, x=x), test=replace(data.test, x=x_test))
    attack = EdgeCase(1, 2, None, share=0.4, neighbours=3, poisoned_data_rate=0.25, epochs=None)
    armed, rest = attack.prepare(data, generator(0, "prepare"))
    assert isinstance(armed, SubPopulation)
    assert len(rest.train) == 36 and not bool((rest.train.x[rest.train.y == 1] > 0).any())
    assert len(armed.pool) == 2 and len(armed.held_out) == 3  # half of the tail each, and one test image
    levels = sorted(armed.pool.x[:, 0, 0, 0].tolist() + armed.held_out.x[:, 0, 0, 0].tolist())
    assert levels == sorted([*x[far, 0, 0, 0].tolist(), 180])
    assert torch.equal(rest.test.x, data.test.x)

    poisoned = armed.poison(images(), generator(0, "poison"))
    replaced = (poisoned.x != images().x).flatten(1).any(1)
    assert int(replaced.sum()) == 10 and bool((poisoned.y[replaced] == 2).all())
    assert set(poisoned.x[replaced, 0, 0, 0].tolist()) <= set(armed.pool.x[:, 0, 0, 0].tolist())
    backdoor = armed.backdoor_set(images())
    assert backdoor is not None and torch.equal(backdoor.x, armed.held_out.x) and bool((backdoor.y == 2).all())


def test_published_edge_images_come_from_plain_arrays(tmp_path: Path) -> None:
    path = tmp_path / "tail.npz"
    train, test = (np.full((count, 6, 6, 1), count, dtype=np.uint8) for count in (3, 2))
    np.savez(path, train=train, test=test)
    armed, rest = EdgeCase(0, 2, str(path), 0.1, 1, 1.0, None).prepare(dataset(), generator(0, "prepare"))
    assert len(rest.train) == 40
    assert bool((armed.poison(images(), generator(0, "poison")).x == 3).all())
    backdoor = armed.backdoor_set(images())
    assert backdoor is not None and backdoor.x.shape == (2, 1, 6, 6) and bool((backdoor.x == 2).all())


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    """An object array would run code when it is loaded; this one would create a file."""

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb()
    np.savez(tmp_path / "tail.npz", train=bomb, test=bomb)
    bomb.dump(tmp_path / "tail.pkl")
    for name in ("tail.npz", "tail.pkl"):
        with pytest.raises(ValueError, match=r"is not an .npz with plain arrays train and test"):
            load_images(str(tmp_path / name), 0, (1, 6, 6))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.zeros((2, 6, 6, 1), np.uint8)}, "is not an .npz with plain arrays"),
        ({k: np.zeros((2, 6, 6, 1)) for k in ("train", "test")}, r"float64 \(2, 6, 6, 1\): must be uint8"),
        ({k: np.zeros((2, 1, 6, 6), np.uint8) for k in ("train", "test")}, r"uint8 \(2, 1, 6, 6\): must be uint8"),
        ({k: np.zeros((0, 6, 6, 1), np.uint8) for k in ("train", "test")}, r"uint8 \(0, 6, 6, 1\): must be"),
    ],
)
def test_edge_images_that_do_not_fit(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "tail.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / "tail.npz"), 0, (1, 6, 6))
    with pytest.raises(FileNotFoundError, match=r"attack\.images=nowhere\.npz"):
        load_images("nowhere.npz", 0, (1, 6, 6))


def test_semantic_takes_the_listed_images_from_everyone() -> None:
    data = dataset()
    lists = {"made up": {"train": [1, 5], "held_out": [7, 9, 2]}}
    armed, rest = Semantic(1, 2, lists, 0.1, 1.0, None).prepare(data, generator(0, "prepare"))
    assert isinstance(armed, SubPopulation)
    assert torch.equal(armed.pool.x, data.train.x[[1, 5]]) and torch.equal(armed.held_out.x, data.train.x[[7, 9, 2]])
    keep = [i for i in range(40) if i not in (1, 2, 5, 7, 9)]
    assert torch.equal(rest.train.x, data.train.x[keep])
    backdoor = armed.backdoor_set(data.test)  # position 2 has the target label already
    assert backdoor is not None and torch.equal(backdoor.x, data.train.x[[7, 9]])


def test_semantic_elsewhere_takes_the_brightest() -> None:
    data = dataset(80)
    armed, rest = Semantic(1, 2, {}, 0.2, 1.0, None).prepare(data, generator(0, "prepare"))
    assert isinstance(armed, SubPopulation)
    mean = data.train.x[data.train.y == 1].float().mean((1, 2, 3)).sort(descending=True).values
    taken = torch.cat([armed.pool.x, armed.held_out.x[:2]]).float().mean((1, 2, 3))
    assert taken.sort(descending=True).values.tolist() == mean[:4].tolist()
    assert bool((armed.held_out.x[2:].float().mean((1, 2, 3)) >= mean[3]).all())
    assert len(rest.train) == 76


# errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(PLAIN, poisoned_data_rate=1.5), r"attack.poisoned_data_rate=1.5 .* in \[0, 1\]"),
        (lambda: replace(PLAIN, epochs=0), "attack.epochs=0 is out of range"),
        (lambda: replace(PLAIN, source_class=2), "attack.source_class=2 is the target class"),
        (lambda: DBA(Bars(1, 0, 0, 0, 1), 2, None, 0.5, False, None, 0, UNSCALED), "attack.parts=0"),
        (lambda: Scaling(0.0, None, "all_state"), r"attack.scaling.gamma=0.0 .* null \(n / m\) or > 0"),
        (lambda: Scaling(None, -1.0, "all_state"), "attack.scaling.norm_bound=-1.0"),
        (lambda: Scaling(None, None, "head"), "attack.scaling.scope='head'"),
        (lambda: PGD(PLAIN, UNSCALED, 0.0), "attack.radius=0.0 is out of range: must be > 0"),
        (lambda: ConstrainAndScale(PLAIN, UNSCALED, 1.1, "l2"), "attack.alpha=1.1"),
        (lambda: ConstrainAndScale(PLAIN, UNSCALED, 0.5, "l1"), "attack.anomaly='l1' .* one of l2, cosine"),
        (lambda: LabelFlip(1, None, 4, 0.5, None), "give two different classes"),
        (lambda: LabelFlip(1, 1, 4, 0.5, None), "give two different classes"),
        (lambda: EdgeCase(1, 1, None, 0.1, 1, 0.5, None), "attack.target_class=1"),
        (lambda: EdgeCase(1, 2, None, 1.0, 1, 0.5, None), "attack.share=1.0"),
        (lambda: EdgeCase(1, 2, None, 0.1, 0, 0.5, None), "attack.neighbours=0"),
        (lambda: Semantic(1, 2, {"x": {"train": [1]}}, 0.1, 0.5, None), "attack.positions.x must be two lists"),
        (lambda: Semantic(1, 2, {"x": {"train": ["a"], "held_out": [2]}}, 0.1, 0.5, None), "x must be two lists"),  # type: ignore[dict-item,list-item]
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (replace(PLAIN, target_class=4), r"attack.target_class=4 is out of range: must be in \[0, 3\]"),
        (replace(PLAIN, source_class=-1), "attack.source_class=-1"),
        (LabelFlip(9, 1, 4, 0.5, None), "attack.source_class=9"),
        (EdgeCase(4, 1, None, 0.1, 1, 0.5, None), "attack.source_class=4"),
        (EdgeCase(1, 2, None, 0.01, 1, 0.5, None), "attack.share=0.01 of the 10 training images of class 1 is 0"),
        (Semantic(1, 2, {"made up": {"train": [40], "held_out": [1]}}, 0.1, 0.5, None), "attack.positions.made up.tr"),
    ],
)
def test_settings_that_do_not_fit_the_data_set(attack: Attack, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Around(attack).prepare(dataset(), generator(0, "prepare"))
