"""Clients that are given: each its own images, what others took is in no shard, and wrong lists are told in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from flame.data.samples import Dataset, Holders, Kept, Samples
from flame.partition.deal import deal
from flame.partition.figure import Held, describe, label_skew
from flame.partition.held import Listed, natural
from flame.run.build import ConfigError, build

NAMES = ("anna", "ben", "carla", "dora")
SIZES = (6, 3, 0, 5)


def held(sizes: tuple[int, ...] = SIZES) -> Dataset:
    """Image i shows i; holders have `sizes` images, in the order of the names."""
    of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    at = torch.arange(len(of))
    images = Samples(at.to(torch.uint8).view(-1, 1, 1, 1), at % 2)
    return Dataset("mine", images, images, (0.5,), (0.5,), 2, Holders(of, NAMES[: len(sizes)]))


def dealt(dataset: Dataset, clients: int, min_samples: int = 1, root_samples: int = 0, seed: int = 0) -> dict:
    """Name -> what the client's images show."""

    def partition(labels: torch.Tensor, n: int, stream: torch.Generator, *, holders: Holders) -> Any:
        return natural(labels, n, stream, min_samples=min_samples, holders=holders)

    shards = deal(dataset, partition, clients, root_samples, seed)
    assert shards.names is not None and len(shards.names) == clients == len(shards) - 1
    return {name: dataset.train.x.flatten()[shards[i]].tolist() for i, name in enumerate(shards.names)}


def test_a_client_for_each_holder() -> None:
    found = dealt(held(), 3)
    assert {name: sorted(images) for name, images in found.items()} == {
        **{"anna": [0, 1, 2, 3, 4, 5], "ben": [6, 7, 8]},
        **{"dora": [9, 10, 11, 12, 13]},
    }
    assert list(found) == ["anna", "ben", "dora"]
    assert any(dealt(held(), 3, seed=seed)["anna"] != found["anna"] for seed in range(5))  # in random order


def test_holders_of_few_images_take_no_part_and_of_many_some_are_drawn() -> None:
    assert list(dealt(held(), 2, min_samples=5)) == ["anna", "dora"]  # who holds exactly five, too
    drawn = [tuple(dealt(held(), 2, seed=seed)) for seed in range(30)]
    assert set(drawn) == {("anna", "ben"), ("anna", "dora"), ("ben", "dora")}


@settings(max_examples=30)
@given(seed=st.integers(0, 999), root=st.integers(0, 6), taken=st.sets(st.integers(0, 13), max_size=4))
def test_what_others_took_is_in_no_shard(seed: int, root: int, taken: set[int]) -> None:
    """Of a server that keeps some and an attack that took some, each client's images are still its holder's."""
    keep = torch.tensor([i for i in (3, 11, 0, 13, 6, 9, 1, 12, 7, 5, 2, 10, 4, 8) if i not in taken])
    dataset = held().narrowed(keep)
    found = dealt(dataset, 1, root_samples=root, seed=seed)
    ((name, images),) = found.items()
    assert not set(images) & taken and {held().holders.of[i].item() for i in images} == {NAMES.index(name)}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("clients", "min_samples", "message"),
    [
        (4, 1, r"clients=4 do not fit .* of 4 holders 3 have partition\.min_samples=1 .* \(carla has 0, the fewest\)"),
        (3, 4, r"of 4 holders 2 have partition\.min_samples=4 .*; set clients to at most 2, or lower partition\.min"),
        (1, 7, r"of 4 holders 0 have partition\.min_samples=7 samples or more \(.*\); lower partition\.min_samples"),
    ],
)
def test_too_few_holders(clients: int, min_samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dealt(held(), clients, min_samples)


def test_the_array_that_names_the_holders_is_named() -> None:
    dataset = held()
    assert dataset.holders is not None
    named = replace(dataset, holders=replace(dataset.holders, told_by="client_train of dataset.path=w.npz"))
    with pytest.raises(ValueError, match=r"of 4 holders in client_train of dataset\.path=w\.npz 3 have"):
        dealt(named, 4)


def test_data_that_do_not_know(tiny: Callable[..., DictConfig]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"partition=natural needs data that say who holds what, and dataset=digits does not.*client_train",
    ):
        build(tiny("partition=natural"))


def lists(folder: Path, content: Any, ending: str = "json") -> Listed:
    path = folder / f"lists.{ending}"
    if ending == "json":
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    else:
        np.savez(path, **content)
    return Listed(str(path), "refuse")


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_lists_of_a_file(tmp_path: Path, ending: str) -> None:
    partition = lists(tmp_path, {"zoo": [5, 0, 2], "lab": [1, 4, 3, 6]}, ending)
    shards = partition(torch.zeros(7).long(), 2, stream(), kept=Kept.whole(7))
    assert shards.names == ("zoo", "lab") and [sorted(shards[i].tolist()) for i in (0, 1)] == [[0, 2, 5], [1, 3, 4, 6]]


def test_lists_without_names(tmp_path: Path) -> None:
    shards = lists(tmp_path, [[1], [0, 2]])(torch.zeros(3).long(), 2, stream(), kept=Kept.whole(3))
    assert shards.names == ("0", "1") and shards.sizes.tolist() == [1, 2]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(root=st.integers(0, 4), kept=st.permutations(range(14)), count=st.integers(9, 14))
def test_positions_are_of_the_set_as_it_was_loaded(tmp_path: Path, root: int, kept: list[int], count: int) -> None:
    """Whatever was drawn, taken or kept by the server: image i, which shows i, is with the client that lists it."""
    partition = lists(tmp_path, {"even": [*range(0, 14, 2)], "odd": [*range(1, 14, 2)]})
    dataset = held().narrowed(torch.tensor(kept[:count]))
    shards = deal(dataset, partition, 2, root, seed=0)
    seen = dataset.train.x.flatten()
    assert bool((seen[shards[0]] % 2 == 0).all()) and bool((seen[shards[1]] % 2 == 1).all())
    assert torch.equal(seen[shards.index].sort().values.long(), torch.tensor(sorted(kept[:count])))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"a": [0, 1], "b": [2]},
            r"1 of 4 samples are in no list, the first is 3: list them, or say partition\.unl",
        ),
        (
            {"a": [0, 1, 4], "b": [2, 3]},
            r"list a has the index 4 \(1 are out of range\): must be in \[0, 3\].* test samples, .*test_share",
        ),
        ({"a": [0, 1], "b": [2, -1]}, r"list b has the index -1"),
        ({"a": [0, 1, 2], "b": [2, 3]}, r"index 2 is there 2 times, in the lists a, b \(1 are there more than once\)"),
        ({"a": [0, 1, 2, 3, 3], "b": [0]}, r"index 0 is there 2 times, in the lists a, b \(2 are"),
        ({"a": [0, 1, 2, 3]}, r"clients=2 does not fit .*lists\.json, which has 1 lists: say clients=1"),
        ({"a": [0, 1, 2, 3], "b": []}, r"list b must be a list of whole numbers, at least one"),
        ({"a": [0, 1, 2], "b": [3.0]}, r"list b must be a list of whole numbers"),
        ({"a": [0, 1, 2], "b": [True]}, r"list b must be a list of whole numbers"),
        ({"a": [0, 1, 2], "b": 3}, r"list b must be a list of whole numbers"),
        ({"a": [0, 1, 2], "b": [1 << 70]}, r"list b must be a list of whole numbers"),
        ({"a": [0, 1, 2], "b,c": [3]}, r"lists\.json has 'b,c': must be printable text, without the characters"),
        ('{"a": [0, 1], "a": [2, 3]}', r"is damaged: a name is there twice"),
        ("[[0, 1], [2, 3]", r"lists\.json is damaged: .*; write it with json\.dump"),
        ("[" * 100_000, r"lists\.json is damaged"),
        ("7", r"must be an object of name -> list of indices, or a list of lists"),
        ("{}", r"has no list: must have one for each client"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lists(tmp_path, content)(torch.zeros(4).long(), 2, stream(), kept=Kept.whole(4))


def test_images_in_no_list_are_left_out_if_asked(tmp_path: Path) -> None:
    partition = Listed(lists(tmp_path, {"a": [0], "b": [2]}).path, "leave_out")
    assert partition(torch.zeros(4).long(), 2, stream(), kept=Kept.whole(4)).index.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"list b has no sample left, once train_samples, the attack and the server"):
        partition(torch.zeros(3).long(), 2, stream(), kept=Kept(torch.tensor([3, 0, 1]), 4))


@pytest.mark.parametrize(
    ("path", "unlisted", "message"),
    [
        (None, "refuse", r"partition\.path=null: partition=file needs a \.json or \.npz"),
        ("x.json", "ignore", r"partition\.unlisted=ignore is unknown: must be refuse or leave_out"),
    ],
)
def test_settings_that_cannot_be(path: str | None, unlisted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Listed(path, unlisted)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"partition\.path=.*: it is a folder: name a \.json"):
        Listed(str(tmp_path), "refuse")(torch.zeros(4).long(), 2, stream(), kept=Kept.whole(4))
    with pytest.raises(FileNotFoundError, match=r"partition\.path=.*nowhere\.json: there is no such file"):
        Listed(str(tmp_path / "nowhere.json"), "refuse")(torch.zeros(4).long(), 2, stream(), kept=Kept.whole(4))
    (tmp_path / "lists.txt").write_text("[[0]]")
    with pytest.raises(ValueError, match=r"ends in \.txt: must be a \.json or \.npz"):
        Listed(str(tmp_path / "lists.txt"), "refuse")(torch.zeros(1).long(), 1, stream(), kept=Kept.whole(1))
    np.savez(tmp_path / "lists.npz", a=np.array([[1], [2, 3]], dtype=object))
    with pytest.raises(ValueError, match=r"lists\.npz: a holds pickled objects"):
        Listed(str(tmp_path / "lists.npz"), "refuse")(torch.zeros(1).long(), 1, stream(), kept=Kept.whole(1))


def test_the_table_has_the_names() -> None:
    counts = torch.tensor([[3, 1], [0, 2]])
    lines = describe(Held(counts.sum(1), label_skew(counts), counts), ["anna", "bo"]).splitlines()
    assert lines[:3] == [
        "client  name  size  skew  0  1",
        "     0  anna     4  0.25  3  1",
        "     1    bo     2  0.50  0  2",
    ]
