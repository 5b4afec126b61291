"""The rate over the rounds: numbers by hand, torch's own schedulers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from flame.round.rates import Constant, Cosine, Linear, MultiStep, Step

HALF = 0.5**0.5


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Constant(0, 3), [1, 1, 1]),
        (Constant(3, 5), [0.25, 0.5, 0.75, 1, 1]),
        (Step(0, 5, every=2, gamma=0.5), [1, 1, 0.5, 0.5, 0.25]),
        (Step(1, 4, every=1, gamma=0.5), [0.5, 0.5, 0.25, 0.125]),
        (MultiStep(0, 5, [2, 4], 0.1), [1, 1, 0.1, 0.1, 0.01]),
        (MultiStep(0, 8, [0.5, 0.75], 0.1), [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (MultiStep(0, 25, [0.28], 0.1), [*[1] * 7, *[0.1] * 18]),  # 0.28 * 25 is 7.000000000000001
        (MultiStep(0, 3, [], 0.1), [1, 1, 1]),
        (Linear(0, 4, 0.0), [1, 0.75, 0.5, 0.25]),
        (Linear(2, 4, 0.5), [1 / 3, 2 / 3, 1, 0.75]),
        (Linear(0, 5, 0.2, falls=2), [1, 0.6, 0.2, 0.2, 0.2]),
        (Linear(1, 4, 0.0, falls=3), [0.5, 1, 2 / 3, 1 / 3]),
        (Cosine(0, 4, 0.5, falls=2), [1, 0.75, 0.5, 0.5]),
        (Cosine(0, 4, 0.0), [1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2]),
        (Cosine(0, 2, 0.2), [1, 0.6]),
        (Cosine(1, 3, 0.0), [0.5, 1, 0.5]),
    ],
)
def test_rates_by_hand(schedule: Constant, wanted: list[float]) -> None:
    assert [schedule(round) for round in range(schedule.rounds)] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (Step(0, 12, 5, 0.3), lambda o: lr_scheduler.StepLR(o, 5, 0.3)),
        (MultiStep(0, 12, [2, 7], 0.3), lambda o: lr_scheduler.MultiStepLR(o, [2, 7], 0.3)),
        (Linear(0, 12, 0.1), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, 12)),
        (Linear(0, 12, 0.1, falls=5), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, 5)),
        (Cosine(0, 12, 0.25), lambda o: lr_scheduler.CosineAnnealingLR(o, 12, 0.25)),
        (Constant(4, 12), lambda o: lr_scheduler.LinearLR(o, 1 / 5, 1.0, 4)),
    ],
)
def test_rates_are_torchs(schedule: Constant, theirs: Callable) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer)
    for round in range(12):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule(round), abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("milestone", [0, -1, 30, 1.5, float("nan")])
def test_milestones_that_no_round_has(milestone: float) -> None:
    with pytest.raises(
        ValueError, match=r"client.schedule.milestones=.*must be whole rounds in \[1, rounds - 1 = 29\]"
    ):
        MultiStep(0, 30, [5, milestone], 0.1)
    MultiStep(0, 30, [1, 29, 0.01, 0.99], 0.1)


def test_a_fall_longer_than_the_rounds() -> None:
    with pytest.raises(
        ValueError, match=r"client.schedule.falls=29 .*must be null \(all\) or in \[1, rounds - warmup = 28"
    ):
        Linear(2, 30, 0.0, falls=29)
