"""Local training: bit for bit a loop written by hand, and every place where an attack may bend it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attackers import recipe
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from flame.data.reading import normalise
from flame.data.samples import Samples
from flame.round.client import LocalJob, LocalTraining, batches, cross_entropy
from flame.round.optimizers import SGD
from flame.round.seeding import generator
from models.resnet8 import ResNet8

USUAL = recipe(lr=0.1, momentum=0.9, weight_decay=0.01, epochs=2, batch_size=8)
BARE = recipe(lr=0.1, momentum=0.0, weight_decay=0.0, epochs=1, batch_size=8)
NORMALISE = partial(normalise, mean=(0.3,), std=(0.4,))


def images(count: int) -> Samples:
    stream = Generator().manual_seed(count)
    x = torch.randint(0, 256, (count, 1, 8, 8), generator=stream, dtype=torch.uint8)
    return Samples(x, torch.randint(0, 10, (count,), generator=stream))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet8(1, 10, "batch").to(memory_format=torch.channels_last)


def by_hand(model: nn.Module, data: Samples, training: LocalTraining, stream: Generator) -> float:
    """v = mu v + (g + wd w); w = w - lr v, over shuffled batches; the mean loss of the last epoch."""
    model.train()
    optimizer = training.optimizer
    assert isinstance(optimizer, SGD)
    velocity: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    for _ in range(int(training.epochs)):
        losses = []
        for batch in torch.randperm(len(data), generator=stream).split(training.batch_size):
            x = NORMALISE(data.x[batch])
            loss = F.cross_entropy(model(x), data.y[batch])
            names, weights = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for name, w, g in zip(names, weights, gradients, strict=True):
                    step = g.add(w, alpha=optimizer.weight_decay)
                    velocity[name] = velocity[name].mul_(optimizer.momentum).add_(step) if name in velocity else step
                    w.add_(velocity[name], alpha=-training.lr)
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("training", [USUAL, BARE, replace(USUAL, epochs=3, batch_size=5)])
def test_training_equals_the_loop_by_hand(training: LocalTraining) -> None:
    data, ours, theirs = images(30), network(), network()
    loss = training.fit(ours, data, NORMALISE, generator(0, "shuffle", 1, 2), round=0)
    assert loss == by_hand(theirs, data, training, generator(0, "shuffle", 1, 2))
    wanted = theirs.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("epochs", "tenths", "powers"),
    [
        (6, [0.2, 0.8], [0, 0, 1, 1, 1, 2]),  # DBA on CIFAR-10: after 1.2 and 4.8 epochs
        (10, [0.2, 0.8], [0, 0, 1, 1, 1, 1, 1, 1, 2, 2]),  # on MNIST: after exactly 2 and 8
        (3, [0.2, 0.8], [0, 1, 1]),  # beside one benign epoch: 2.4 of 3 are never over before the last begins
        (15, [0.13, 0.73], [0, 0, *[1] * 9, *[2] * 4]),  # Bagdasaryan et al.: 2, 9 and 4 epochs
        (25, [0.28], [*[0] * 7, *[1] * 18]),  # 0.28 * 25 is 7.000000000000001
        (1, [0.2, 0.8], [0]),
        (3, [], [0, 0, 0]),
    ],
)
def test_the_rate_falls_to_a_tenth_by_hand(epochs: int, tenths: list[float], powers: list[int]) -> None:
    training = replace(USUAL, lr=0.05, epochs=epochs, lr_tenths=tenths)
    assert [training.rate(epoch, 0) for epoch in range(epochs)] == pytest.approx([0.05 / 10**power for power in powers])


def test_each_epoch_trains_at_its_own_rate() -> None:
    """Two epochs, the second at a tenth, are one epoch twice, as plain USUAL has nothing else that lasts."""
    data, once = images(30), BARE
    falling, stepwise, stream = network(), network(), generator(0, "shuffle")
    replace(once, epochs=2, lr_tenths=[0.5]).fit(falling, data, NORMALISE, generator(0, "shuffle"), round=0)
    once.fit(stepwise, data, NORMALISE, stream, round=0)
    replace(once, lr=once.lr * 0.1).fit(stepwise, data, NORMALISE, stream, round=0)
    wanted = stepwise.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in falling.state_dict().items())


def test_training_starts_afresh() -> None:
    """No momentum, gradient or mode survives from one client to the next."""
    data, model = images(30), network()
    start = copy.deepcopy(model.state_dict())
    finals = []
    for _ in range(2):
        model.load_state_dict(start)
        model.eval()
        USUAL.fit(model, data, NORMALISE, generator(0, "shuffle"), round=0)
        finals.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in start)


@given(count=st.integers(1, 60), size=st.integers(1, 20), seed=st.integers(0, 99))
def test_batches_are_one_shuffled_epoch(count: int, size: int, seed: int) -> None:
    parts = list(batches(count, size, Generator().manual_seed(seed)))
    order = torch.randperm(count, generator=Generator().manual_seed(seed))
    assert torch.equal(torch.cat(parts), order)
    sizes = [len(part) for part in parts]
    assert all(s == size for s in sizes[:-2])
    if size == 1:
        assert sizes == [1] * count
    elif count > 1:
        assert min(sizes) >= 2 and max(sizes) <= size + 1


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert [len(part) for part in batches(9, 4, Generator())] == [4, 5]
    assert [len(part) for part in batches(10, 4, Generator())] == [4, 4, 2]
    assert [len(part) for part in batches(1, 4, Generator())] == [1]


@pytest.mark.parametrize(("sizes", "most", "smallest"), [([1, 9], 8, 1), ([9, 2], 8, 2), ([9, 30], 8, 2), ([9], 1, 1)])
def test_the_smallest_batch(sizes: list[int], most: int, smallest: int) -> None:
    """A client with one image trains on it alone, whatever the others have."""
    assert replace(USUAL, batch_size=most).smallest_batch(torch.tensor(sizes)) == smallest


def test_hooks_are_called_at_every_step() -> None:
    calls: list[str] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        calls.append("objective")
        return cross_entropy(model, x, y)

    def after_backward(model: nn.Module) -> None:
        assert all(p.grad is not None for p in model.parameters())
        calls.append("backward")

    USUAL.fit(
        network(),
        images(20),
        NORMALISE,
        Generator(),
        round=0,
        objective=objective,
        after_backward=after_backward,
        after_step=lambda model: calls.append("step"),
    )
    assert calls == ["objective", "backward", "step"] * (2 * 3)  # two epochs of 8 + 8 + 4


def test_hooks_bend_the_loop() -> None:
    """Gradients set to zero leave the weights; weights set after a step stay; a doubled loss is reported doubled."""
    data, plain = images(20), replace(BARE, batch_size=20)

    def silence(model: nn.Module) -> None:
        for p in model.parameters():
            assert p.grad is not None
            p.grad.zero_()

    def fill(model: nn.Module) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)

    start, model = network(), network()
    loss = plain.fit(model, data, NORMALISE, Generator(), round=0, after_backward=silence)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True))
    plain.fit(model, data, NORMALISE, Generator(), round=0, after_step=fill)
    assert all(bool((p == 0.5).all()) for p in model.parameters())
    doubled = plain.fit(
        network(), data, NORMALISE, Generator(), round=0, objective=lambda m, x, y: 2 * cross_entropy(m, x, y)
    )
    assert doubled == 2 * loss


def test_a_job_trains_with_its_own_streams() -> None:
    data = images(30)
    job = LocalJob(network(), data, USUAL, NORMALISE, {}, seed=3, round=5, client=7)
    assert job.stream("poison").initial_seed() == generator(3, "poison", 5, 7).initial_seed()
    reference = network()
    assert job.fit(data) == USUAL.fit(reference, data, NORMALISE, generator(3, "shuffle", 5, 7), round=5)
    wanted = reference.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in job.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, r"client.lr=0.0 is out of range: must be in \(0, inf\)"),
        ({"lr": float("nan")}, r"client.lr=nan is out of range"),
        ({"epochs": 0}, r"client.epochs=0 is out of range: must be a whole number >= 1 or a share of one pass"),
        ({"batch_size": 0}, r"client.batch_size=0 is out of range"),
        ({"lr_tenths": [0.2, 1.2]}, r"client.lr_tenths=\[0.2, 1.2\] is out of range: must be shares in \(0, 1\)"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(USUAL, **change)
