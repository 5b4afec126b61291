"""Who holds which training image goes with the images, through all that takes some away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from attacks.subpopulation import without
from flame.data.check import checked
from flame.data.datasets import subset
from flame.data.samples import Dataset, Holders, Kept, Samples, Shards
from flame.partition.deal import deal

NAMES = ("anna", "ben", "carla", "dora")


def written(images: int = 12, **changes: Any) -> Dataset:
    """Image i shows the grey level i, its holder is i % 4, its label i % 2."""
    at = torch.arange(images)
    seen = Samples(at.to(torch.uint8).view(-1, 1, 1, 1), at % 2)
    return replace(Dataset("mine", seen, seen[:4], (0.5,), (0.5,), 2, Holders(at % 4, NAMES)), **changes)


def in_step(dataset: Dataset) -> bool:
    assert dataset.holders is not None and dataset.kept is not None
    grey = dataset.train.x.flatten().long()
    return torch.equal(dataset.holders.of, grey % 4) and torch.equal(dataset.kept.at, grey)


def test_holders_go_with_their_images() -> None:
    dataset = written()
    assert in_step(dataset.narrowed(torch.tensor([7, 3, 11, 0])))
    few = subset(without(dataset, torch.tensor([0, 5])), 6, Generator().manual_seed(3))
    assert len(few.train) == 6 and in_step(few) and not {0, 5} & set(few.kept.at.tolist())  # type: ignore[union-attr]
    assert few.kept is not None and few.kept.loaded == 12
    assert few.holders is not None and few.holders.names == NAMES


def test_a_partition_is_given_what_it_asks_for() -> None:
    """Of the images that the server does not keep; those of today ask for nothing."""
    seen: dict[str, Any] = {}

    def asking(labels: Tensor, clients: int, generator: Generator, *, holders: Holders, kept: Kept) -> Shards:
        seen.update(labels=labels, holders=holders, kept=kept)
        return replace(Shards.cut(torch.arange(len(labels)), torch.tensor([len(labels)])), names=("all",))

    drawn = written().narrowed(torch.tensor([9, 8, 7, 6, 5, 1, 0]))
    shards = deal(drawn, asking, clients=1, root_samples=3, seed=0)
    assert shards.sizes.tolist() == [4, 3] and shards.names == ("all",)
    assert torch.equal(seen["kept"].at, drawn.train.x.flatten().long()[shards[0]]) and seen["kept"].loaded == 12
    assert torch.equal(seen["holders"].of, seen["kept"].at % 4) and torch.equal(seen["labels"], seen["kept"].at % 2)


def test_the_digest_knows_holders_where_there_are_some() -> None:
    """The digest of a set without is what it was before there were any, whatever is kept."""
    plain = written(holders=None)
    assert plain.digest() == "ebbd373c98dddcd58b31e02c211dd58f31969f06ed7d1f71015416a19cf86e2a"
    assert plain.narrowed(torch.arange(12)).digest() == plain.digest()
    others = Holders(torch.arange(12) % 3, NAMES), Holders(torch.arange(12) % 4, (*NAMES[:3], "emil"))
    assert len({plain.digest(), written().digest(), *(written(holders=other).digest() for other in others)}) == 4


@pytest.mark.parametrize(
    ("holders", "message"),
    [
        (torch.arange(12), r"mine: holders is a Tensor: must be flame\.data\.samples\.Holders, or None"),
        (Holders(torch.arange(12).int() % 4, NAMES), r"holders\.of must be a tensor \[N\] of torch\.int64"),
        (Holders(torch.arange(12).view(3, 4) % 4, NAMES), r"holders\.of must be a tensor \[N\]"),
        (Holders(torch.arange(11) % 4, NAMES), r"holders\.of has 11 entries for 12 training images"),
        (Holders(torch.arange(12) % 5, NAMES), r"holders\.of is in \[0, 4\] for 4 names: must be in \[0, 3\]"),
        (Holders(torch.arange(12) % 4 - 1, NAMES), r"holders\.of is in \[-1, 2\]"),
        (Holders(torch.arange(12) % 4, ("a", "b", "a", "c")), r"holders\.names has 'a' twice"),
        (Holders(torch.arange(12) % 4, ("a", "b", "c", "d\n")), r"holders\.names has 'd\\n': must be printable text"),
        (Holders(torch.arange(12) % 4, [*NAMES]), r"holders\.names must be a tuple"),  # type: ignore[arg-type]
    ],
)
def test_holders_that_do_not_fit_are_refused(holders: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(written(holders=holders), {})


def test_what_fits_is_kept() -> None:
    dataset = written()
    assert checked(dataset, {}).holders is dataset.holders


def test_an_attack_that_loses_the_holders_is_refused() -> None:
    dataset = written()
    lost = replace(dataset, train=dataset.train[1:])
    with pytest.raises(ValueError, match=r"attack\.prepare: holders\.of has 12 entries for 11 .*Dataset\.narrowed"):
        deal(lost, lambda labels, clients, generator: None, 1, 0, 0)  # type: ignore[arg-type,return-value]
