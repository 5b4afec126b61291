"""AlterMin against a transcription in float64, step by step, on twenty seeded clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attackers import PLAIN, honest, images, job, model_row
from torch import Tensor

from attacks.alter_min import AlterMin
from attacks.differences import changed
from flame.data.samples import Samples
from flame.federation import play
from flame.round.client import LocalJob, batches
from flame.run.build import ConfigError, build

ATTACK = AlterMin(PLAIN, rho=0.3, every=2, boost=4.0)


def work(seed: int = 0) -> LocalJob:
    return replace(job(epochs=2, batch_size=8, lr=0.1), seed=seed)


def flat(data: Samples) -> tuple[Tensor, Tensor]:
    return data.x.flatten(1).double() / 255, data.y


def slopes(model: list[Tensor], x: Tensor, y: Tensor, near: Tensor | None = None, rho: float = 0.0) -> list[Tensor]:
    loss = F.cross_entropy(x @ model[0].T + model[1], y)
    if near is not None:
        loss = loss + rho / 2 * (model[0] - near).square().sum()
    return list(torch.autograd.grad(loss, model))


def moved(model: list[Tensor], steps: list[Tensor], rates: tuple[float, float]) -> list[Tensor]:
    return [(p - rate * g).detach().requires_grad_() for p, g, rate in zip(model, steps, rates, strict=True)]


def transcribed(attack: AlterMin, job: LocalJob) -> Tensor:
    """[d], alternate_train of the authors for softmax regression."""
    linear = job.model[1]  # type: ignore[index]
    start = [p.detach().double().requires_grad_() for p in (linear.weight, linear.bias)]
    order = [batch for stream in [job.stream("shuffle")] for _ in range(2) for batch in batches(40, 8, stream)]
    benign = start
    for batch in order:
        benign = moved(benign, slopes(benign, *flat(job.images[batch])), (0.1, 0.1))
    near = benign[0].detach()
    poisoned = PLAIN.poison(job.images, job.stream("poison"))
    bad = poisoned[changed(job.images, poisoned)]
    stream, waiting, model = job.stream("poisoned batches"), list[Tensor](), start
    for step, batch in enumerate(order, start=1):
        model = moved(model, slopes(model, *flat(job.images[batch]), near, attack.rho), (0.1, 0.1))
        if step % attack.every == 0:
            waiting = waiting or list(batches(len(bad), 8, stream))
            part = bad[waiting.pop(0)]
            model = moved(model, slopes(model, *flat(part)), (0.1 * attack.boost, 0.1))
    return torch.cat([p.detach().flatten() for p in model]).float()


def test_the_steps_of_the_authors() -> None:
    for seed in range(20):
        one, two = work(seed), work(seed)
        wanted = transcribed(ATTACK, two)
        ATTACK.train(one)
        torch.testing.assert_close(model_row(one), wanted, rtol=1e-4, atol=1e-5)
        assert int(one.notes["poisoned"]) == 20


def test_without_poison_and_distance_it_is_a_benign_client() -> None:
    one = work()
    replace(ATTACK, backdoor=replace(PLAIN, poisoned_data_rate=0.0), rho=0.0).train(one)
    assert torch.equal(model_row(one), honest(work()).row) and int(one.notes["poisoned"]) == 0


def test_what_is_newly_poisoned() -> None:
    clean = images(6)
    x, y = clean.x.clone(), clean.y.clone()
    x[1, 0, 0, 0] += 1
    y[4] = 3
    longer = Samples(torch.cat([x, x[:1]]), torch.cat([y, y[:1]]))
    assert changed(clean, longer).nonzero().flatten().tolist() == [1, 4, 6] and not changed(clean, clean).any()


def test_it_has_its_own_way_to_mix(tiny: Callable, start: Callable) -> None:
    with pytest.raises(ConfigError, match=r"attack\.backdoor\.mixing .* must be null"):
        build(tiny("attack=alter_min", "attack/mixing@attack.backdoor.mixing=per_batch"))
    with start(tiny("attack=alter_min", "attack@attack.backdoor=edge_case", "attack.every=1")) as (fed, state):
        assert play(replace(fed, evaluate_at=()), state).metrics["attack/idle"] == 0
