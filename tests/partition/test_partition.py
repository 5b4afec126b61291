"""Partitions: every image where it is promised, the statistics of the papers, and errors that say what to change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from flame.data.samples import Shards
from flame.partition.figure import label_histogram, label_skew
from flame.partition.rules import dirichlet, iid, label_groups, main_label, shards

Partition = Callable[[Tensor, int, torch.Generator], Shards]
DISJOINT: dict[str, Partition] = {
    "iid": iid,
    "dirichlet": partial(dirichlet, alpha=2.0, min_size=2),
    "label_groups": partial(label_groups, q=0.6),
    "shards": partial(shards, shards_per_client=2),
}
ALL = DISJOINT | {"main_label": partial(main_label, q=0.6, samples_per_client=25)}
SEEDS = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_labels(images: int, classes: int, seed: int = 0) -> Tensor:
    """[images] int64, shuffled, each class equally often up to one image."""
    return (torch.arange(images) % classes)[torch.randperm(images, generator=generator(seed))]


def held(*parts: Tensor) -> Shards:
    """The images of each client, joined."""
    return Shards.cut(torch.cat(parts), torch.tensor([len(part) for part in parts]))


def homogeneity_z(histogram: Tensor) -> float:
    """Standard deviations of the chi-square statistic of a [clients, classes] table above its mean under one mix."""
    counts = histogram.double()
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return (float(((counts - expected) ** 2 / expected).sum()) - freedom) / sqrt(2 * freedom)


@pytest.mark.parametrize("name", DISJOINT)
@given(seed=SEEDS, images=st.integers(80, 600), classes=st.integers(1, 5), clients=st.integers(5, 12))
def test_disjoint_shards_hold_every_image_once(name: str, seed: int, images: int, classes: int, clients: int) -> None:
    parts = DISJOINT[name](random_labels(images, classes, seed), clients, generator(seed))
    assert len(parts) == clients
    assert all(part.dtype == torch.int64 and len(part) > 0 for part in parts)
    assert torch.equal(parts.index.sort().values, torch.arange(images))


@given(seed=SEEDS, images=st.integers(1, 400), share=st.floats(0, 1), q=st.floats(0, 1), clients=st.integers(1, 30))
def test_main_label_gives_equal_shards_without_repeats(
    seed: int, images: int, share: float, q: float, clients: int
) -> None:
    labels, size = random_labels(images, 4, seed), max(1, round(share * images))
    assume(round(q * size) <= labels.bincount().min())
    parts = main_label(labels, clients, generator(seed), q=q, samples_per_client=size)
    assert len(parts) == clients
    for part in parts:
        assert len(part.unique()) == len(part) == size
        assert labels[part].bincount().max() >= round(q * size)


@given(seed=SEEDS, clients=st.integers(1, 20), size=st.integers(1, 20), spare=st.integers(0, 20))
def test_main_label_with_q_0_overlaps_only_when_the_images_run_out(
    seed: int, clients: int, size: int, spare: int
) -> None:
    labels = random_labels(clients * size + spare, 3)
    dealt = main_label(labels, clients, generator(seed), q=0, samples_per_client=size)
    assert len(dealt.index.unique()) == clients * size


@given(seed=SEEDS, images=st.integers(1, 300), share=st.floats(0, 1))
def test_iid_sizes_differ_by_at_most_one(seed: int, images: int, share: float) -> None:
    sizes = [len(part) for part in iid(torch.zeros(images), max(1, round(share * images)), generator(seed))]
    assert max(sizes) - min(sizes) <= 1


@given(seed=SEEDS, alpha=st.floats(0.05, 100), min_size=st.integers(1, 10))
def test_dirichlet_keeps_its_minimum_size(seed: int, alpha: float, min_size: int) -> None:
    parts = dirichlet(random_labels(500, 10), 4, generator(seed), alpha=alpha, min_size=min_size)
    assert min(map(len, parts)) >= min_size


@pytest.mark.parametrize("name", ALL)
def test_the_generator_decides_everything(name: str) -> None:
    labels, untouched = random_labels(600, 5), torch.get_rng_state()
    first, same, other = (ALL[name](labels, 10, generator(seed)).index for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), untouched)


@pytest.mark.parametrize("name", ALL)
def test_the_most_frequent_label_lies_evenly_in_both_halves_of_a_shard(name: str) -> None:
    labels = torch.arange(600) // 120  # sorted, so that an order within the shards would show
    parts = ALL[name](labels, 10, generator())
    first, second = (label_histogram(labels, held(*(p.tensor_split(2)[half] for p in parts)), 5) for half in (0, 1))
    top = (first + second).argmax(1, keepdim=True)
    difference, total = (first - second).gather(1, top), (first + second).gather(1, top)
    assert (difference**2 / total).sum() < 10 + 5 * sqrt(2 * 10)  # chi-square with a degree per client


IID_LIMITS: dict[str, Partition] = {
    "iid": iid,
    "dirichlet": partial(dirichlet, alpha=1e9, min_size=1),
    "main_label": partial(main_label, q=0, samples_per_client=1000),
    "label_groups": partial(label_groups, q=0.1),
}


@pytest.mark.parametrize("name", IID_LIMITS)
def test_the_iid_limit_has_one_mix_of_labels(name: str) -> None:
    labels = random_labels(20_000, 10)
    histogram = label_histogram(labels, IID_LIMITS[name](labels, 20, generator()), 10)
    assert homogeneity_z(histogram) < 4
    assert label_skew(histogram).max() < 0.08


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 10.0])
def test_dirichlet_shares_have_the_mean_and_concentration_of_theory(alpha: float) -> None:
    classes, supply, clients = 1000, 200, 5  # a thousand draws, each seen with a resolution of 1 / 200
    labels = torch.arange(classes).repeat_interleave(supply)
    parts = dirichlet(labels, clients, generator(), alpha=alpha, min_size=1)
    share = label_histogram(labels, parts, classes).double() / supply  # [clients, classes]
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert (share.mean(1) - 1 / clients).abs().max() < 5 * sqrt(variance / classes)
    concentration = (share**2).sum(0)  # of each draw
    expected = (alpha + 1) / (clients * alpha + 1)
    assert abs(float(concentration.mean()) - expected) < 5 * float(concentration.std()) / sqrt(classes) + 1e-3


def test_dirichlet_with_a_tiny_alpha_gives_whole_classes_to_evenly_drawn_clients() -> None:
    labels = torch.arange(1000).repeat_interleave(20)
    histogram = label_histogram(labels, dirichlet(labels, 4, generator(), alpha=1e-6, min_size=1), 1000)
    assert set(histogram.unique().tolist()) == {0, 20}
    winners = (histogram > 0).sum(1)  # Binomial(1000, 1/4)
    assert (winners - 250).abs().max() < 5 * sqrt(1000 * 0.25 * 0.75)


@pytest.mark.parametrize("q", [0.2, 0.5, 0.9])
def test_main_label_share_follows_q(q: float) -> None:
    clients, size, images, classes = 200, 100, 20_000, 10
    labels = random_labels(images, classes)
    histogram = label_histogram(labels, main_label(labels, clients, generator(), q=q, samples_per_client=size), classes)
    own, supply = round(q * size), images // classes
    chance = (supply - own) / (images - own)  # of the main label among the other images
    rest = clients * (size - own)
    extra = histogram.amax(1).sum() - clients * own
    assert abs(float(extra) - rest * chance) < 5 * sqrt(rest * chance * (1 - chance))
    assert abs(float(histogram.amax(1).double().mean()) / size - (q + (1 - q) / classes)) < 0.02
    mains = histogram.argmax(1).bincount(minlength=classes)
    assert (mains - clients / classes).abs().max() < 5 * sqrt(clients / classes)


@pytest.mark.parametrize("q", [0.5, 0.8])
def test_label_groups_keep_a_label_with_probability_q(q: float) -> None:
    images, classes = 20_000, 5
    labels = random_labels(images, classes)
    histogram = label_histogram(labels, label_groups(labels, classes, generator(), q=q), classes)  # a client a group
    own = histogram.amax(1)
    assert sorted(histogram.argmax(1).tolist()) == list(range(classes))
    assert abs(int(own.sum()) - q * images) < 5 * sqrt(images * q * (1 - q))
    other = histogram[histogram < own[:, None]].double()  # Binomial(4000, (1 - q) / 4) each
    expected = images / classes * (1 - q) / (classes - 1)
    assert (other - expected).abs().max() < 5 * sqrt(expected)


def test_label_groups_deal_evenly_to_their_clients() -> None:
    labels = torch.tensor([0] * 12 + [1] * 9)
    parts = label_groups(labels, 5, generator(), q=1.0)  # three clients share label 0, two share label 1
    assert sorted((int(labels[part][0]), len(part)) for part in parts) == [(0, 4), (0, 4), (0, 4), (1, 4), (1, 5)]
    assert (label_histogram(labels, parts, 2) > 0).sum() == 5
    swapped = label_groups(labels, 2, generator(), q=0.0)  # of two groups, the other one
    assert sorted(len(part) for part in swapped) == [9, 12]


def test_shards_of_two_labels_each() -> None:
    labels = torch.tensor([1, 0, 1, 0, 2, 3, 2, 3])  # four shards of one label
    parts = shards(labels, 2, generator(), shards_per_client=2)
    assert all(sorted(labels[part].bincount(minlength=4).tolist()) == [0, 0, 2, 2] for part in parts)
    drawn = (shards(labels, 2, generator(seed), shards_per_client=2)[0] for seed in range(100))
    assert len({frozenset(labels[part].tolist()) for part in drawn}) == 6  # every pair of the four shards
    one = shards(labels, 4, generator(), shards_per_client=1)
    assert sorted(sorted(part.tolist()) for part in one) == [[0, 2], [1, 3], [4, 6], [5, 7]]


ERRORS: dict[str, tuple[Partition, int, str]] = {
    "alpha": (partial(dirichlet, alpha=0, min_size=1), 4, r"^partition\.alpha=0 is out of range: must be > 0"),
    "alpha nan": (partial(dirichlet, alpha=float("nan"), min_size=1), 4, r"partition\.alpha=nan"),
    "alpha text": (partial(dirichlet, alpha="low", min_size=1), 4, r"partition\.alpha=low"),  # type: ignore[arg-type]
    "min_size": (partial(dirichlet, alpha=1, min_size=0), 4, r"partition\.min_size=0 .* integer >= 1"),
    "min_size high": (partial(dirichlet, alpha=1, min_size=26), 4, r"104 of N=100 .*lower partition\.min_size=26"),
    "unreached": (
        partial(dirichlet, alpha=0.01, min_size=9),
        10,
        r"partition\.min_size=9 .*partition\.alpha=0\.01, clients=10 and N=100 .*cannot fill every client: raise",
    ),
    "q": (partial(main_label, q=1.5, samples_per_client=1), 4, r"partition\.q=1\.5 .* in \[0, 1\]"),
    "q negative": (partial(label_groups, q=-0.1), 4, r"partition\.q=-0\.1 .* in \[0, 1\]"),
    "samples": (partial(main_label, q=0, samples_per_client=101), 4, r"samples_per_client=101 .* <= N=100"),
    "samples fraction": (partial(main_label, q=0, samples_per_client=1.5), 4, r"=1\.5 .* integer"),  # type: ignore[arg-type]
    "label short": (partial(main_label, q=1, samples_per_client=26), 4, r"label 0 has 25, .* cannot fill every client"),
    "no client": (partial(main_label, q=0, samples_per_client=1), 0, r"^clients=0 .* integer >= 1"),
    "few clients": (partial(label_groups, q=0.5), 3, r"^clients=3 .* >= 4"),
    "small group": (partial(label_groups, q=0.9), 100, r"partition\.q=0\.9 .*cannot fill every client: lower clients"),
    "many clients": (iid, 101, r"clients=101 .*cannot fill every client: lower clients, or take partition=main_label"),
    "many shards": (partial(shards, shards_per_client=26), 4, r"lower partition\.shards_per_client=26 or clients"),
    "shards": (partial(shards, shards_per_client=0), 4, r"partition\.shards_per_client=0 .* integer >= 1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_names_key_value_range_and_remedy(case: str) -> None:
    partition, clients, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        partition(random_labels(100, 4), clients, generator())


def test_a_hundred_thousand_overlapping_clients() -> None:
    labels = random_labels(60_000, 10)
    parts = main_label(labels, 100_000, generator(), q=0.5, samples_per_client=20)
    assert len(parts) == 100_000
    held = parts.index.bincount(minlength=60_000)  # how many clients hold each image
    assert held.sum() == 2_000_000
    assert held.min() > 0


@pytest.mark.parametrize("name", DISJOINT)
def test_a_thousand_disjoint_clients(name: str) -> None:
    assert sum(map(len, DISJOINT[name](random_labels(60_000, 10), 1000, generator()))) == 60_000
