"""Snowball: votes and differences by hand, its autoencoder against a float64 twin, equal bits whatever surrounds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import exp, log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from flame.defenses.snowball import (
    Snowball,
    TopDown,
    among,
    between,
    end_layers,
    part_of,
    ranks,
    typical_difference,
    votes,
)
from flame.defenses.vae import VAE, errors, fit, loss
from flame.federation import rounds
from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, digest

TOP_DOWN = TopDown(target=0.5, step=0.05, hidden=32, latent=4, first_epochs=100, epochs=10)
SNOWBALL = Snowball(suspects=2, elected=0.1, start=0, top_down=TOP_DOWN)


def test_votes_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)  # everyone sees {0, 1} and {10}
    assert_close(votes(points, 1), 2, 2, 1)
    given, far = torch.tensor([2.0, 1.0, 2.0, 1.0 + 1e-12]), torch.tensor([0.0, 9.0, 1.0, 8.0])
    assert ranks(given, far).tolist() == [2, 1, 3, 0]
    entries = {"a.w": torch.zeros(2), "a.b": torch.zeros(1), "mid.w": torch.zeros(4), "out.w": torch.zeros(3)}
    assert end_layers(StateLayout.from_state(entries, entries)) == [slice(0, 2), slice(2, 3), slice(7, 10)]


def test_votes_of_the_first_and_the_last_layer_count() -> None:
    """Client 4 is alone in one layer and client 0 in the other: 4 + 1 votes, the rest have 4 + 4."""
    layers = [torch.tensor([[0.0], [0], [0], [0], [10]]), torch.tensor([[10.0], [0], [0], [0], [0]])]
    remote = torch.tensor([0.0, 3, 3, 3, 0])  # who is preferred among equals
    rule = replace(SNOWBALL, suspects=1, elected=0.6)
    assert rule.elect(layers, remote).tolist() == [False, True, True, True, False]


def test_differences_by_hand() -> None:
    rows = torch.tensor([[0.0, 0], [3, 4], [6, 8]])  # squared distances 25, 100, 25
    assert typical_difference(rows) == pytest.approx(sqrt(25 / 2))
    assert typical_difference(torch.zeros(3, 2)) == torch.finfo(torch.float32).tiny
    rows = torch.tensor([[0.0], [2.0], [log(3.0)]])
    squashed = [1 / (1 + exp(-d)) for d in (-2, -log(3), 2, 2 - log(3), log(3), log(3) - 2)]
    assert_close(among(rows, 1.0).flatten(), *squashed)
    assert_close(among(rows[:2], 2.0).flatten(), 1 / (1 + exp(1)), 1 / (1 + exp(-1)))
    assert_close(between(rows[2:], rows[:1], 0.5).flatten(), 0.9, 0.1)  # 9 to 1: sigmoid(2 log 3)
    assert between(torch.zeros(2, 5), torch.ones(3, 5), 1.0).shape == (2, 6, 5)
    assert between(torch.full((1, 2), 1e14), torch.zeros(1, 2), 1e-38).flatten().tolist() == [1, 1, 0, 0]
    assert [part_of(share, 30) for share in (0.1, 0.11, 1.0)] == [3, 4, 30]  # 0.1 * 30 = 3.0000000000000004


def test_loss_by_hand() -> None:
    given = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    assert float(loss(*given, torch.zeros(1, 2), torch.zeros(1, 2))) == 0.5
    divergence = (1 + 1 - 1 - 0) / 2 + (0 + 4 - 1 - log(4)) / 2
    found = loss(*given, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, log(4)]]))
    assert float(found) == pytest.approx(0.5 + divergence)


def twin(weights: Mapping[str, np.ndarray], x: np.ndarray, noise: np.ndarray) -> float:
    """The loss in plain float64."""

    def layer(name: str, inputs: np.ndarray) -> np.ndarray:
        return inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    h = np.maximum(layer("encoder.2", np.maximum(layer("encoder.0", x), 0)), 0)
    mean, log_variance = layer("mean", h), np.log1p(np.exp(layer("spread", h)))
    z = mean + noise * np.sqrt(np.exp(log_variance))
    h = np.maximum(layer("decoder.2", np.maximum(layer("decoder.0", z), 0)), 0)
    again = 1 / (1 + np.exp(-layer("decoder.4", h)))
    divergence = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    return float(((again - x) ** 2).sum() + divergence.sum())


def test_loss_and_gradient_are_the_float64_twins() -> None:
    model, x = VAE(7, 5, 3, stream()), torch.rand(4, 7, generator=stream(1))
    noise = model.noise(4, stream(2))
    weights = {key: value.double().numpy().copy() for key, value in model.state_dict().items()}
    given = x.double().numpy(), noise.double().numpy()
    assert loss(x, *model(x, noise)).item() == pytest.approx(twin(weights, *given), rel=1e-5)
    model.double()
    loss(x.double(), *model(x.double(), noise.double())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        place = np.unravel_index(int(parameter.grad.abs().argmax()), tuple(parameter.shape))
        value, sides = weights[name][place], []
        for step in (1e-6, -1e-6):
            weights[name][place] = value + step
            sides.append(twin(weights, *given))
        weights[name][place] = value
        assert float(parameter.grad[place]) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4), name


def test_what_it_was_trained_on_is_reconstructed_best() -> None:
    """Differences along one direction, and equally long ones across it."""
    lengths = torch.linspace(1, 2, 6)[:, None]
    along = torch.cat([lengths, -lengths]) + 0.1 * torch.randn(12, 200, generator=stream())
    across = torch.cat([lengths, -lengths]) * torch.tensor([1.0, -1.0]).repeat(100)
    model = VAE(200, 32, 4, stream())
    fit(model, along.sigmoid(), 200, stream())
    usual, unusual = (errors(model, x.sigmoid(), stream(1)) for x in (along, across))
    assert bool((2 * usual < unusual).all()) and bool((unusual <= 200).all())


def crowd(outside: float) -> Tensor:
    """[10, 12], eight alike, and clients 3 and 8 in the direction of ones and against it."""
    rows = 0.01 * torch.randn(10, 12, generator=stream())
    rows[3] += outside
    rows[8] -= outside
    return rows


@pytest.mark.parametrize("outside", [0.05, 1.0, 1e14])
def test_the_elected_admit_who_is_like_them(outside: float) -> None:
    elected = torch.arange(10) < 2
    inside = TOP_DOWN.extend(elected, crowd(outside), stream())
    assert int(inside.sum()) == 5 and bool(inside[:2].all()) and not bool(inside[[3, 8]].any())
    assert elected.tolist() == [True] * 2 + [False] * 8  # as it was


def test_nothing_is_trained_when_enough_are_elected() -> None:
    elected, draws = torch.arange(10) < 5, stream()
    assert torch.equal(TOP_DOWN.extend(elected, crowd(1.0), draws), elected)
    assert torch.equal(draws.get_state(), stream().get_state())


def test_the_scale_of_updates_does_not_matter() -> None:
    elected = torch.arange(10) < 2
    one, other = (TOP_DOWN.extend(elected, scale * crowd(0.02), stream()) for scale in (1.0, 2.0**-20))
    assert torch.equal(one, other)


def test_bits_do_not_depend_on_what_surrounds_it() -> None:
    def trained() -> list[Tensor]:
        model, draws = VAE(12, 16, 3, stream()), stream(1)
        x = among(crowd(0.05), 0.01)
        fit(model, x, 2, draws)
        return [*model.state_dict().values(), errors(model, x, draws)]

    torch.manual_seed(1)
    state, wanted = torch.get_rng_state(), trained()
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is neither used nor moved
    torch.manual_seed(2)
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            assert all(map(torch.equal, wanted, trained()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_second_stage_starts_when_told() -> None:
    layout = StateLayout.from_state({"w": torch.zeros(6), "out.w": torch.zeros(6)}, ["w", "out.w"])
    updates, rule = a_round(crowd(1.0), layout=layout), replace(SNOWBALL, start=3)
    states = [ServerState(updates.base, updates.base_counters, round=number) for number in (2, 3)]
    few, more = (answer(rule, updates, state).accepted for state in states)
    assert int(few.sum()) == 2 and int(more.sum()) == 5 and bool(more[few].all())
    assert not bool(more[[3, 8]].any())
    assert bool(answer(rule, updates.first(2)).accepted.all())  # no majority


def test_a_tiny_run(tiny: Callable, start: Callable) -> None:
    """Two of five are elected, a third is admitted; the global generator plays no part."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with start(tiny("defense=snowball")) as (fed, state):
            runs.append(list(rounds(fed, state, 2)))
    assert all(int(record.verdict.accepted.sum()) == 3 for record in runs[0])
    assert [digest(record.after) for record in runs[0]] == [digest(record.after) for record in runs[1]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(SNOWBALL, suspects=0), "defense.suspects=0"),
        (lambda: replace(SNOWBALL, elected=0.0), "defense.elected=0.0"),
        (lambda: replace(SNOWBALL, start=-1), "defense.start=-1"),
        (lambda: replace(TOP_DOWN, target=1.5), "defense.top_down.target=1.5"),
        (lambda: replace(TOP_DOWN, step=0.0), "defense.top_down.step=0.0"),
        (lambda: replace(TOP_DOWN, latent=0), "defense.top_down.latent=0"),
        (lambda: replace(TOP_DOWN, epochs=0), "defense.top_down.epochs=0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
