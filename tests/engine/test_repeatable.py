"""A model may draw at random: every job gives it a stream of its own, so equal runs are equal to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from flame.engine.base import Engine
from flame.engine.memo import Memo, key
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.federation import rounds
from flame.geometry.layout import StateLayout
from flame.round.seeding import addressed, generator
from flame.round.types import ServerState, digest
from flame.run.build import Parts, build
from flame.run.fit import check_repeatable
from models.cnn import CNN
from models.vgg19_bn import VGG19BN

Compose = Callable[..., DictConfig]


class Restless(nn.Module):
    """Drops features in evaluation, too, as Monte Carlo dropout does; `rate` stands in no `repr`."""

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("mask", torch.ones(64), persistent=False)
        self.hidden, self.norm, self.fc = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.hidden(x.flatten(1) * self.mask)))
        return self.fc(F.dropout(x, self.rate, training=True))


def restless(cfg: DictConfig, model: nn.Module | None = None) -> Parts:
    """The parts of a run, with another model in them."""
    parts = build(cfg)
    with addressed(0, "model of a test"):
        model = model or Restless()
    layout = StateLayout.of(model)
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(model.state_dict(), row, counters)
    return replace(parts, task=replace(parts.task, model=model, layout=layout), initial=ServerState(row, counters))


def played(parts: Parts, engine: Engine, start: ServerState | None = None, until: int = 2) -> tuple[str, list[dict]]:
    """The final model's hash and the metrics, from wherever torch's global generator happens to be."""
    torch.randn(3)  # moves it on
    with closing(engine):
        done = list(rounds(parts.federation(engine), start or parts.initial, until))
    metrics = [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in done]
    return digest(done[-1].after), metrics


ATTACKS = ("badnets", "lp", "a3fl", "chameleon", "iba", "neurotoxin")
DEFENSES = ("flshield", "deepsight", "crfl", "fltrust")


@pytest.mark.parametrize("setting", [*(f"attack={a}" for a in ATTACKS), *(f"defense={d}" for d in DEFENSES)])
def test_equal_runs_are_equal_wherever_a_model_runs(tiny: Compose, setting: str) -> None:
    """Training, an attack's own training and trials, evaluation, a vote, the laboratory, the server's own update."""
    cfg = tiny(setting, *(["defense.randomized_smoothing.copies=3"] if "crfl" in setting else []))
    first, second = (played(parts, Sequential(parts.task)) for parts in (restless(cfg), restless(cfg)))
    assert first == second


def test_every_engine_and_a_resumed_run_give_the_same_bits(tiny: Compose, tmp_path: Path) -> None:
    cfg = tiny("attack=model_replacement", "defense=flshield")
    parts = restless(cfg)
    wanted = played(parts, Sequential(parts.task))
    assert played(parts, Pool(restless(cfg).task, workers=2)) == wanted
    for _ in range(2):  # kept, then recalled
        assert played(parts, Memo(str(tmp_path), 1.0).around(Sequential, "")(parts.task)) == wanted
    with closing(Sequential(parts.task)) as engine:
        (first,) = rounds(parts.federation(engine), parts.initial, 1)
    assert played(parts, Sequential(parts.task), first.after)[0] == wanted[0]


def test_the_global_generator_is_left_alone_and_does_not_matter(tiny: Compose) -> None:
    before = torch.random.get_rng_state()
    parts = restless(tiny("defense=flshield"))
    with closing(Sequential(parts.task)) as engine:
        list(rounds(parts.federation(engine), parts.initial, 1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_clients_rounds_and_slices_draw_differently(tiny: Compose) -> None:
    parts = restless(tiny())
    bench = Sequential(parts.task)._bench
    model = parts.initial.row, parts.initial.counters
    x = parts.task.train.x[:40]
    answers = [bench.logits(*model, x, round, client) for round, client in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert torch.equal(answers[0], bench.logits(*model, x, 0, 0))


def test_what_repr_hides_makes_another_memory(tiny: Compose) -> None:
    """A rate for `F.dropout`, and a buffer outside the state_dict."""
    task = restless(tiny()).task
    other, masked = Restless(0.3), Restless()
    masked.mask[3] = 0
    assert repr(other) == repr(task.model) == repr(masked)
    assert len({key(replace(task, model=model), "") for model in (task.model, other, masked)}) == 3
    assert key(task, "") == key(replace(task, model=Restless()), "")


def test_a_stream_is_a_function_of_its_address() -> None:
    before = torch.random.get_rng_state()
    with addressed(3, "model", 2, 1):
        drawn = torch.rand(5)
        with addressed(3, "model", 2, 2):
            assert not torch.equal(torch.rand(5), drawn)
    with addressed(3, "model", 2, 1):
        assert torch.equal(torch.rand(5), drawn)
    assert torch.equal(drawn, torch.rand(5, generator=generator(3, "model", 2, 1)))
    with pytest.raises(ZeroDivisionError), addressed(3, "model"):
        raise ZeroDivisionError
    assert torch.equal(torch.random.get_rng_state(), before)


class Odd(nn.Module):
    """Depends on something that no job sets."""

    def __init__(self, source: Callable[[], float]) -> None:
        super().__init__()
        self.source = source
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) * (1 + self.source()))


class Counting:
    """0, 1, 2, ..."""

    calls = -1

    def __call__(self) -> float:
        self.calls += 1
        return float(self.calls)


class Drawing:
    """A generator of its own."""

    def __init__(self) -> None:
        self.stream = torch.Generator().manual_seed(0)

    def __call__(self) -> float:
        return float(torch.rand((), generator=self.stream))

    def __deepcopy__(self, memo: dict) -> Drawing:
        return self


@pytest.mark.parametrize("source", [random.random, np.random.default_rng().random, Counting(), Drawing()])
def test_a_model_that_cannot_be_repeated_is_refused(tiny: Compose, source: Callable[[], float]) -> None:
    parts = restless(tiny(), Odd(source))
    with pytest.raises(ValueError, match=r"model=Odd gives other numbers for the same job.*torch's global generators"):
        check_repeatable(parts.task, parts.initial)


def test_a_model_that_draws_from_torch_is_not_refused(tiny: Compose) -> None:
    for model in (Restless(), Odd(lambda: float(torch.rand(())))):
        parts = restless(tiny(), model)
        check_repeatable(parts.task, parts.initial)


def test_dropout_is_an_option_that_changes_nothing_at_0(tiny: Compose) -> None:
    """In training 0.5 does; the settings are those of conf/model."""
    finals = {}
    for rate in ("0.0", "0.5"):
        parts = build(tiny("model=cnn", f"model.dropout={rate}"))
        assert parts.task.model.dropout.p == float(rate)
        finals[rate] = played(parts, Sequential(parts.task), until=1)[0]
    parts = build(tiny("model=cnn"))
    assert played(parts, Sequential(parts.task), until=1)[0] == finals["0.0"] != finals["0.5"]


@pytest.mark.parametrize("build_model", [lambda rate: CNN(1, 10, 8, rate), lambda rate: VGG19BN(1, 10, 32, rate)])
def test_dropout_stands_before_the_dense_layers(build_model: Callable[[float], nn.Module]) -> None:
    """Without it the same answers and nothing drawn; with it others, in training alone."""
    with addressed(0, "model of a test"):
        plain, dropping = build_model(0.0), build_model(0.5)
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, *((8, 8) if isinstance(plain, CNN) else (32, 32)), generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain.eval()(x), dropping.eval()(x))
    before = torch.random.get_rng_state()
    answer = plain.train()(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    with addressed(0, "model of a test"):
        assert not torch.equal(dropping.train()(x), answer)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"model.dropout=.* must be in \[0, 1\)"):
            build_model(rate)
