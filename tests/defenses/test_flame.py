"""Algorithm 1 against a float64 twin, hand-worked numbers, and the statistics of its noise."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.recorded import recorded_round
from sklearn.cluster import HDBSCAN
from torch import Generator

from flame.defenses.base import defend
from flame.defenses.flame import Flame
from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, Updates, Verdict
from flame.run.build import compose_defense
from flame.run.recording import RecordedRound, assemble
from models.cnn import CNN


@cache
def flame(*overrides: str, name: str = "flame_weights_only") -> Flame:
    found = compose_defense([f"defense={name}", *(f"defense.{o}" for o in overrides)])
    assert isinstance(found, Flame)
    return found


QUIET = "noise.factor=0"


def verdict(defense: Flame, record: RecordedRound, seed: int = 0) -> Verdict:
    return defend(defense, record.state, record.updates, Generator().manual_seed(seed))


def twin(record: RecordedRound, columns: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Algorithm 1 in float64 on whole models; `columns` of the row are the clustering vector."""
    u = record.updates
    g, w, d = u.base.double().numpy(), u.models.double().numpy(), u.layout.trainable
    unit = w[:, :columns] / np.linalg.norm(w[:, :columns], axis=1, keepdims=True)
    size = len(w) // 2 + 1
    found = HDBSCAN(size, metric="precomputed", min_samples=1, allow_single_cluster=True, copy=True)
    accepted = found.fit_predict(np.maximum(0, 1 - unit @ unit.T)) == 0
    norms = np.linalg.norm((w - g)[:, :d], axis=1)
    bound = float(np.median(norms))
    scaled = (w - g) * np.where(np.arange(len(g)) < d, np.minimum(1, bound / norms)[:, None], 1)
    return accepted, bound, g + scaled[accepted].mean(0)


@pytest.mark.parametrize("name", ["flame_weights_only", "flame_all_state"])
def test_flame_equals_its_float64_twin(name: str) -> None:
    for seed in range(8):
        for n in (3, 8, 15, 20):
            record = recorded_round(seed, n, with_bn=seed % 4 > 0)
            layout = record.updates.layout
            accepted, bound, row = twin(record, layout.trainable if name == "flame_weights_only" else layout.size)
            found = verdict(flame(QUIET, name=name), record)
            assert found.accepted.tolist() == accepted.tolist()
            assert found.info["flame/clip_bound"] == pytest.approx(bound, rel=1e-6)
            np.testing.assert_allclose(found.state.row.numpy(), row, atol=1e-6)
            assert torch.equal(found.state.counters, record.state.counters)


OFF = {"cluster": "cluster.min_cluster_size=0", "clip": "clip.apply_to=nothing", "noise": QUIET}


@pytest.mark.parametrize(
    ("on", "accepted", "row"),
    [
        ((), [1, 1, 1, 1, 1], [2.0, 2.0, 6.0]),  # the mean
        (("clip",), [1, 1, 1, 1, 1], [2.0, 2.0, 1.0]),  # S_t = 5, so that 30 becomes 5
        (("cluster",), [1, 1, 0, 1, 0], [10 / 3, 10 / 3, 0.0]),
        (("cluster", "clip"), [1, 1, 0, 1, 0], [10 / 3, 10 / 3, 0.0]),
    ],
)
def test_steps_can_be_switched_off(on: tuple[str, ...], accepted: list[int], row: list[float]) -> None:
    """Three clients stand together, two apart; the server's model is not zero, so that cosines can be told apart."""
    clients = [[3.0, 4.0, 0.0], [4.0, 3.0, 0.0], [0.0, 0.0, 30.0], [3.0, 3.0, 0.0], [0.0, 0.0, 0.0]]
    record = assemble(
        {"w": torch.tensor([0.0, 0.0, -1.0])},
        {"w": torch.tensor(clients) + torch.tensor([0.0, 0.0, -1.0])},
        {"trainable": ["w"], "samples": [1] * 5},
    )
    found = verdict(flame(*(switch for step, switch in OFF.items() if step not in on)), record)
    assert found.accepted.tolist() == [bool(a) for a in accepted]
    assert found.state.row.tolist() == pytest.approx([row[0], row[1], row[2] - 1])


def by_hand(clients: list[list[float]], samples: list[int] | None = None) -> RecordedRound:
    """A model of three coordinates, all zero at the server."""
    fields = {"trainable": ["w"], "samples": samples or [1] * len(clients)}
    return assemble({"w": torch.zeros(3)}, {"w": torch.tensor(clients)}, fields)


FIVE = [[1.0, 0.1, 0.0], [2.0, 0.0, 0.0], [4.0, 0.4, 0.0], [0.0, 0.0, 3.0], [0.0, 9.0, 0.0]]


def test_five_clients_and_three_coordinates_by_hand() -> None:
    """Clients 0, 1, 2 point along x; norms sqrt(1.01), 2, 4 sqrt(1.01), 3, 9 have the median 3."""
    found = verdict(flame(QUIET), by_hand(FIVE))
    assert found.accepted.tolist() == [True, True, True, False, False]
    assert found.info["flame/clip_bound"] == 3
    assert found.info["flame/clipped_share"] == pytest.approx(1 / 3)
    shrink = 3 / (4 * math.sqrt(1.01))
    expected = [(1 + 2 + 4 * shrink) / 3, (0.1 + 0.4 * shrink) / 3, 0]
    assert found.state.row.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [
        ([], 3.0),
        (["clip.over=accepted"], 2.0),  # of sqrt(1.01), 2, 4 sqrt(1.01)
    ],
)
def test_the_median_is_over_all_clients(overrides: list[str], bound: float) -> None:
    assert verdict(flame(QUIET, *overrides), by_hand(FIVE)).info["flame/clip_bound"] == bound


@pytest.mark.parametrize(("median", "bound"), [("midpoint", 2.5), ("lower", 2.0)])
def test_even_n_takes_the_midpoint(median: str, bound: float) -> None:
    clip = flame(f"clip.median={median}").clip
    assert clip.bound(torch.tensor([4.0, 1.0, 3.0, 2.0]).double(), torch.ones(4).bool()) == bound


@pytest.mark.parametrize(
    ("overrides", "total"),
    [
        (["aggregate.weights=samples"], [1 / 6, 2 / 6, 3 / 6, 0, 0]),
        (["aggregate.divide_by=participants"], [1 / 5, 1 / 5, 1 / 5, 0, 0]),
        (["aggregate.server_lr=0.5"], [1 / 6, 1 / 6, 1 / 6, 0, 0]),
    ],
)
def test_weights_are_what_each_client_is_multiplied_by(overrides: list[str], total: list[float]) -> None:
    found = verdict(flame(QUIET, *overrides), by_hand(FIVE, [1, 2, 3, 4, 5]))
    assert found.weights.tolist() == pytest.approx(total)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_no_clipped_update_is_longer_than_the_bound(lengths: list[float]) -> None:
    norms, everyone = torch.tensor(lengths, dtype=torch.float64), torch.ones(len(lengths)).bool()
    clip = flame().clip
    bound = clip.bound(norms, everyone)
    factors = clip.factors(norms, bound, everyone)
    assert bool(((factors > 0) & (factors <= 1)).all())
    assert bool((norms * factors <= bound * (1 + 1e-12)).all())
    assert bool((factors[norms <= bound] == 1).all())


@pytest.mark.parametrize("name", ["flame_weights_only", "flame_all_state"])
def test_noise_has_the_std_that_is_reported_and_spares_statistics(name: str) -> None:
    """lambda * S_t on 2,066 trainable parameters (3 standard errors are 4.7 %), exactly nothing on the statistics."""
    record = recorded_round(0, 10)
    quiet, loud = verdict(flame(QUIET, name=name), record), verdict(flame("noise.factor=0.01", name=name), record)
    noise, d = loud.state.row - quiet.state.row, record.updates.layout.trainable
    std = loud.info["flame/noise_std"]
    assert std == pytest.approx(0.01 * loud.info["flame/clip_bound"])
    assert noise[:d].std().item() == pytest.approx(std, rel=0.05)
    assert abs(noise[:d].mean().item()) < 4 * std / math.sqrt(d)
    assert not noise[d:].any()


def test_noise_is_a_function_of_the_stream() -> None:
    record = recorded_round(0, 10)
    first, again, other = (verdict(flame(), record, seed).state.row for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_lambda_from_epsilon_and_delta() -> None:
    """The paper's (3705, 0.001): sqrt(2 ln 1250) / 3705 = 0.00102."""
    assert flame("noise.factor=null", "noise.epsilon=3705", "noise.delta=0.001").noise.level == pytest.approx(
        0.00102, abs=5e-6
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"factor": None}, "either factor"),
        ({"epsilon": 3000.0, "delta": 0.001}, "either factor"),
        ({"factor": -1.0}, "must be >= 0"),
        ({"factor": None, "epsilon": 3000.0, "delta": 0.0}, r"\(0, 1\]"),
        ({"scale": "variance"}, "bound_squared"),
        ({"scope": "all"}, "weights_only"),
    ],
)
def test_wrong_noise_is_refused_in_words(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(flame().noise, **values)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_clients_are_accepted(n: int) -> None:
    found = verdict(flame(QUIET), recorded_round(3, n))
    assert found.accepted.all()


def test_identical_clients_give_their_model() -> None:
    record = by_hand([[0.5, -2.0, 1.0]] * 6)
    found = verdict(flame(QUIET), record)
    assert found.accepted.all()
    assert found.state.row.tolist() == pytest.approx([0.5, -2.0, 1.0])


def cnn_round(n: int) -> RecordedRound:
    """A model of the project without BatchNorm."""
    stream = Generator().manual_seed(5)
    layout = StateLayout.of(CNN(in_channels=1, num_classes=10, image_size=8, dropout=0.0))
    rows, counters = layout.zeros(n)
    base = torch.randn(layout.size, generator=stream) * 0.1
    rows.normal_(0, 0.01, generator=stream)
    samples, ids = torch.ones(n, dtype=torch.int64), torch.arange(n)
    updates = Updates(layout, base, counters[0], ids, rows, counters, samples, torch.zeros(n))
    return RecordedRound(ServerState(base, counters[0]), updates, 0, {})


@pytest.mark.parametrize("record", [recorded_round(2, 10, False), cnn_round(7)], ids=["norm=none", "cnn"])
def test_without_statistics_both_vectors_are_the_same_defense(record: RecordedRound) -> None:
    a, b = (verdict(flame(name=name), record) for name in ("flame_weights_only", "flame_all_state"))
    assert torch.equal(a.weights, b.weights)
    assert torch.equal(a.state.row, b.state.row)
    assert a.info == b.info
