"""Edge cases: the tail of a class is taken from everyone, poisoned and tested; published images are read safely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attackers import dataset, images

from attacks.edge_case import EdgeCase, load_images, mean_neighbour_distance
from attacks.subpopulation import SubPopulation
from flame.round.seeding import generator


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
    attack = EdgeCase(1, 2, None, share=0.4, neighbours=3, poisoned_data_rate=0.25)
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
    backdoor = armed.backdoor_set(armed.examined(images()))
    assert backdoor is not None and torch.equal(backdoor.x, armed.held_out.x) and bool((backdoor.y == 2).all())


def test_published_edge_images_come_from_plain_arrays(tmp_path: Path) -> None:
    path = tmp_path / "tail.npz"
    train, test = (np.full((count, 6, 6, 1), count, dtype=np.uint8) for count in (3, 2))
    np.savez(path, train=train, test=test)
    armed, rest = EdgeCase(0, 2, str(path), 0.1, 1, 1.0).prepare(dataset(), generator(0, "prepare"))
    assert len(rest.train) == 40
    assert bool((armed.poison(images(), generator(0, "poison")).x == 3).all())
    backdoor = armed.backdoor_set(armed.examined(images()))
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EdgeCase(1, 1, None, 0.1, 1, 0.5), "attack.target_class=1"),
        (lambda: EdgeCase(1, 2, None, 1.0, 1, 0.5), "attack.share=1.0"),
        (lambda: EdgeCase(1, 2, None, 0.1, 0, 0.5), "attack.neighbours=0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
