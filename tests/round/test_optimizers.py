"""What a recipe may be beside plain SGD, each against a bare loop or numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attackers import images, recipe
from torch import Generator, Tensor, nn

from flame.data.samples import Samples
from flame.round.client import LocalTraining, batches
from flame.round.optimizers import SGD, Adam, AdamW, Optimizer
from flame.round.rates import Step
from flame.round.seeding import generator

USUAL = recipe(lr=0.1, momentum=0.0, weight_decay=0.0, epochs=2, batch_size=8)


def normalise(x: Tensor) -> Tensor:
    return x.float() / 255


def network(inputs: int = 36, classes: int = 4) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(1, "net")) / 10)
    return model


def fit(training: LocalTraining, data: Samples | None = None, round: int = 0, **bent: Any) -> tuple[nn.Module, float]:
    model = network()
    stream = generator(0, "shuffle")
    return model, training.fit(model, data or images(), normalise, stream, round=round, **bent)


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (SGD(0.9, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
        (Adam(0.8, 0.99, 1e-6, 0.01), lambda p: torch.optim.Adam(p, 0.1, (0.8, 0.99), 1e-6, 0.01)),
        (AdamW(0.9, 0.999, 1e-8, 0.01), lambda p: torch.optim.AdamW(p, 0.1)),
    ],
)
def test_optimisers_are_torchs_to_the_bit(optimizer: Optimizer, theirs: Callable) -> None:
    data, model, stream = images(), network(), generator(0, "shuffle")
    bare = theirs(model.parameters())
    for _ in range(2):
        losses = []
        for batch in torch.randperm(len(data), generator=stream).split(8):
            loss = F.cross_entropy(model(normalise(data.x[batch])), data.y[batch])
            bare.zero_grad()
            loss.backward()
            bare.step()
            losses.append(loss.detach())
    ours, loss = fit(replace(USUAL, optimizer=optimizer))
    assert same(ours, model) and loss == float(torch.stack(losses).mean())


def test_the_round_says_the_rate() -> None:
    falling = replace(USUAL, schedule=Step(0, 9, every=2, gamma=0.5))
    assert [falling.rate(0, round) for round in (1, 2, 4)] == [0.1, 0.05, 0.025]
    assert same(fit(falling, round=4)[0], fit(replace(USUAL, lr=0.025))[0])
    assert replace(falling, lr_tenths=[0.5]).rate(1, 2) == pytest.approx(0.005)


def test_fedprox_by_hand() -> None:
    """Two steps on one batch: the first has no pull, the second is drawn back by mu (w - w0)."""
    data, mu, lr = images(8), 0.5, 0.1
    start, model = network(), network()
    for _ in range(2):
        gradients = torch.autograd.grad(F.cross_entropy(model(normalise(data.x)), data.y), list(model.parameters()))
        with torch.no_grad():
            for p, g, w0 in zip(model.parameters(), gradients, start.parameters(), strict=True):
                p -= lr * (g + mu * (p - w0))
    ours, _ = fit(replace(USUAL, proximal=mu), data)
    for p, q in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert not same(ours, fit(USUAL, data)[0])


def test_fedprox_is_the_loss_of_its_paper() -> None:
    """mu / 2 ||w - w0||^2 in the objective has the same gradient; momentum and decay see it, too."""
    start, usual = network(), replace(USUAL, optimizer=SGD(0.9, 0.01))

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        square = sum(
            ((p - w0.detach()) ** 2).sum() for p, w0 in zip(model.parameters(), start.parameters(), strict=True)
        )
        return F.cross_entropy(model(x), y) + 0.3 / 2 * square

    theirs, _ = fit(usual, objective=objective)
    ours, _ = fit(replace(usual, proximal=0.3))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_gradient_is_clipped_to_its_norm() -> None:
    """One step of rate 1 moves the weights by the gradient: 0.01 long where it was longer, as it is where not."""
    once = replace(USUAL, lr=1.0, epochs=1, batch_size=40)

    def moved(**changes: Any) -> Tensor:
        pairs = zip(fit(replace(once, **changes))[0].parameters(), network().parameters(), strict=True)
        return torch.cat([(p - q).flatten() for p, q in pairs]).detach()

    free, clipped = moved(), moved(clip_norm=0.01)
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3) and float(free.norm()) > 0.02
    torch.testing.assert_close(clipped, 0.01 * free / free.norm(), rtol=1e-3, atol=1e-6)
    assert torch.equal(moved(clip_norm=100.0), free)


def test_noise_comes_after_clipping_and_leaves_the_order_of_the_batches() -> None:
    """One step of rate 1: what differs from the clipped gradient is N(0, std^2), the same again for the same stream."""
    once = replace(USUAL, lr=1.0, epochs=1, batch_size=40, clip_norm=0.01)

    def weights(training: LocalTraining) -> Tensor:
        return torch.cat([p.flatten() for p in fit(training)[0].parameters()]).detach()

    quiet, noisy = weights(once), weights(replace(once, noise_std=0.5))
    assert torch.equal(noisy, weights(replace(once, noise_std=0.5)))
    noise = (quiet - noisy) / 0.5
    assert abs(float(noise.mean())) < 4 / len(noise) ** 0.5
    assert float(noise.std()) == pytest.approx(1, abs=3 / len(noise) ** 0.5)

    def labels(training: LocalTraining) -> Tensor:
        seen: list[Tensor] = []
        fit(training, objective=lambda model, x, y: seen.append(y) or F.cross_entropy(model(x), y))
        return torch.cat(seen)

    assert torch.equal(labels(USUAL), labels(replace(USUAL, noise_std=0.5)))


def test_what_an_attack_changes_is_not_clipped_again() -> None:
    def long(model: nn.Module) -> None:
        for p in model.parameters():
            assert p.grad is not None
            p.grad.fill_(1.0)

    model, _ = fit(replace(USUAL, lr=1.0, epochs=1, batch_size=40, clip_norm=0.01, proximal=1.0), after_backward=long)
    for p, q in zip(model.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(p, q - 1.0)


@pytest.mark.parametrize(
    ("epochs", "most", "steps"), [(2, None, 10), (2, 7, 7), (2, 5, 5), (2, 99, 10), (7, 7, 7), (50, 50, 50)]
)
def test_steps_are_counted(epochs: int, most: int | None, steps: int) -> None:
    """40 images in batches of 8 are five steps an epoch; epochs=k with max_steps=k is k steps, whatever the shard."""
    calls: list[None] = []
    fit(replace(USUAL, epochs=epochs, max_steps=most), after_step=lambda _: calls.append(None))
    assert len(calls) == steps


def test_equal_steps_on_unequal_shards() -> None:
    calls: list[None] = []
    for done, count in enumerate((2, 9, 40), start=1):
        fit(replace(USUAL, epochs=6, max_steps=6), images(count), after_step=lambda _: calls.append(None))
        assert len(calls) == 6 * done


def test_cut_short_is_the_beginning_of_the_whole() -> None:
    """Five steps of ten are the first epoch, and the loss is that of what was trained last."""
    assert same(fit(replace(USUAL, max_steps=5))[0], fit(replace(USUAL, epochs=1))[0])
    assert fit(replace(USUAL, max_steps=5))[1] == fit(replace(USUAL, epochs=1))[1]


def test_labels_are_smoothed_in_the_recipes_own_loss() -> None:
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=0.2)

    smooth = replace(USUAL, label_smoothing=0.2)
    assert same(fit(smooth)[0], fit(USUAL, objective=objective)[0])
    assert not same(fit(smooth)[0], fit(USUAL)[0])


def test_a_share_of_one_pass_is_drawn() -> None:
    """Half of 40 images, each once; two at least, for BatchNorm; a whole pass is all of them in the same order."""
    half = torch.cat(list(batches(40, 8, generator(0, "x"), share=0.5)))
    assert len(half) == 20 == len(half.unique())
    assert torch.equal(half, torch.cat(list(batches(40, 8, generator(0, "x"))))[:20])
    assert [sum(map(len, batches(3, 8, Generator(), share=share))) for share in (0.01, 0.5, 0.9)] == [2, 2, 3]
    assert sum(map(len, batches(1, 8, Generator(), share=0.5))) == 1
    calls: list[int] = []
    fit(replace(USUAL, epochs=0.5), after_step=lambda _: calls.append(1))
    assert len(calls) == 3  # 8 + 8 + 4
