"""Anticipate against a transcription in float64 that has no functional model: a linear one, by its formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attackers import PLAIN, job, model_row, normed_job, recipe
from torch import Tensor

from attacks.anticipate import Anticipate
from attacks.snapshot import Snapshot
from flame.federation import play
from flame.round.client import LocalJob, batches

ATTACK = Anticipate(PLAIN, horizon=3, steps=2, clients=5)


def work(seed: int = 0) -> LocalJob:
    return replace(job(batch_size=16, lr=0.5, momentum=0.9), seed=seed)


def stepped(w: Tensor, b: Tensor, x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """One step of gradient descent of softmax regression, in closed form, so that it can be differentiated again."""
    off = (F.softmax(x @ w.T + b, dim=1) - F.one_hot(y, 4)) / len(x)
    return w - rate * off.T @ x, b - rate * off.sum(0)


def transcribed(attack: Anticipate, job: LocalJob) -> Tensor:
    """[d], the weights that the authors' loop ends with, for the linear model of `job`."""
    linear = job.model[1]  # type: ignore[index]
    start = [linear.weight.detach().double(), linear.bias.detach().double()]
    own = [p.clone().requires_grad_() for p in start]
    poisoned = attack.compromise(job)
    optimizer = torch.optim.SGD(own, job.training.lr, momentum=0.9)
    clean_stream, shuffle, waiting = job.stream("anticipate"), job.stream("shuffle"), list[Tensor]()
    for batch in batches(40, 16, shuffle):
        total, current, bad = torch.zeros(()), start, poisoned.images[batch]
        for move in range(attack.horizon):
            waiting = waiting or list(batches(40, 16, clean_stream))
            seen = job.images[waiting.pop(0)]
            for _ in range(attack.steps):
                current = list(stepped(*current, seen.x.flatten(1).double() / 255, seen.y, job.training.lr))
            if move == 0:
                n = attack.clients
                current = [(mine + (n - 1) * p) / n for mine, p in zip(own, current, strict=True)]
            total = total + F.cross_entropy(bad.x.flatten(1).double() / 255 @ current[0].T + current[1], bad.y)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in own]).float()


def test_the_loop_of_the_authors() -> None:
    for seed in range(20):
        one, two = work(seed), work(seed)
        wanted = transcribed(ATTACK, two)
        ATTACK.train(one)
        torch.testing.assert_close(model_row(one), wanted, rtol=1e-4, atol=1e-5)


def test_without_a_look_ahead_it_is_training_on_the_average() -> None:
    """One client and no others: the next global model is its own, and nothing else is looked at."""
    alone, plain = replace(ATTACK, horizon=1, clients=1), work()
    looking = work()
    alone.train(looking)
    PLAIN.train(plain)
    torch.testing.assert_close(model_row(looking), model_row(plain), rtol=1e-5, atol=1e-6)


def test_statistics_are_the_global_models() -> None:
    one = normed_job(training=recipe(0.1, 0.0, 0.0, 1, 8))
    start = Snapshot.of(one.model)
    ATTACK.train(one)
    now, d = Snapshot.of(one.model), start.layout.trainable
    assert torch.equal(now.row[d:], start.row[d:]) and torch.equal(now.counters, start.counters)
    assert bool((now.row[:d] != start.row[:d]).any())


@pytest.mark.parametrize(
    "words", ["attack/mixing@attack.backdoor.mixing=per_batch", "attack@attack.backdoor=edge_case"]
)
def test_it_goes_with_what_poisons(words: str, tiny: Callable, start: Callable) -> None:
    cfg = tiny("attack=anticipate", words, "attack.horizon=2", "attack.steps=1", "defense=fedavg")
    with start(cfg) as (fed, state):
        record = play(replace(fed, evaluate_at=()), state)
    assert fed.attack.clients == 5 and bool(record.after.row.isfinite().all())
    assert record.metrics["attack/idle"] == 0
