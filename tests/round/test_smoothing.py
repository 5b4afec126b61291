"""The vote of noisy copies: by hand, against a twin that copies whole models, the same whichever engine counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from test_defenses import a_round, answer, assert_close, stream
from test_evaluate import NORMALISE
from torch import Tensor, nn

from flame.data.samples import Samples
from flame.defenses.bucketing import Bucketing
from flame.defenses.crfl import CRFL
from flame.defenses.fedavg import FedAvg
from flame.defenses.nnm import NNM
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.federation import Round, rounds
from flame.round.evaluate import Evaluation, evaluate, slices, total
from flame.round.seeding import generator
from flame.round.smoothing import NOISELESS, Smoothing, certified, leading, vote
from flame.round.types import ServerState, digest
from flame.run.build import Parts, build

SMOOTHING = Smoothing(copies=20, noise_std=0.01, alpha=0.001)
CLIPPED = CRFL(bound=5.0, growth=0.0, noise_std=0.1, randomized_smoothing=SMOOTHING)


class Says(nn.Module):
    """The same probabilities [N, classes] whatever it is shown, all N images in one batch."""

    def __init__(self, *probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_three_copies_by_hand() -> None:
    """First image: 0, 0, 1; second: 2, 2, 2, the one certain vote, and wrong; third: 0, 1, 2, a draw."""
    models = [
        Says([0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]),
        Says([0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.1, 0.8, 0.1]),
        Says([0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8]),
    ]
    images = Samples(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 0]))
    found = vote(models, images, NORMALISE, alpha=0.5)
    assert (found.correct, found.count, found.certified) == (2, 3, 1)
    assert found.loss == pytest.approx(-log(0.4) - log(0.2) - log(1 / 3), rel=1e-6)
    alone = vote(models[:1], images, NORMALISE, alpha=0.5)
    assert alone.loss == pytest.approx(-log(0.5) - log(0.1) - log(0.8), rel=1e-6)


def test_certificate_by_hand() -> None:
    """20 copies at alpha 0.001: the leader needs more than sqrt(40 log 1000) = 16.6 votes more than the second."""
    assert certified(torch.tensor([20, 16, 17, 14, 0]), 20, 0.001).tolist() == [True, False, True, False, False]
    assert certified(torch.tensor([13]), 13, 0.001).tolist() == [False]  # sqrt(26 log 1000) = 13.4
    assert certified(torch.tensor([14]), 14, 0.001).tolist() == [True]  # sqrt(28 log 1000) = 13.9


def test_votes_are_counted_without_a_column_for_each_class() -> None:
    answered = torch.tensor([[2, 9999], [0, 5], [2, 9999], [0, 7], [1, 9999]])  # five copies, two images
    winners, first, second = leading(answered)
    assert (winners.tolist(), first.tolist(), second.tolist()) == ([0, 9999], [2, 3], [2, 1])  # of equals the lower one
    answered = torch.randint(0, 4, (9, 6, 7), generator=stream())
    table = torch.stack([(answered == c).sum(0) for c in range(4)])  # [classes, 6, 7]
    top = table.sort(dim=0, descending=True).values
    for found, wanted in zip(leading(answered), (table.argmax(0), top[0], top[1]), strict=True):
        assert torch.equal(found, wanted)
    assert leading(answered[:1])[2].unique().tolist() == [0]  # one copy: nobody is second


@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_the_certificate_errs_as_rarely_as_it_says(alpha: float) -> None:
    """Two classes that are equally likely: any answer is unfounded."""
    heads = torch.binomial(torch.full((20_000,), 50.0), torch.full((20_000,), 0.5), generator=stream())
    unfounded = certified((2 * heads - 50).abs(), 50, alpha)
    assert float(unfounded.double().mean()) <= 2 * alpha


def test_parts_of_a_vote_add_up() -> None:
    assert total([Evaluation(3, 1.5, 4, 2), Evaluation(0, 2.5, 4, 0)]) == Evaluation(3, 4.0, 8, 2)
    assert total([Evaluation(3, 1.5, 4)]).certified is None


def test_crfl_remembers_the_model_without_its_noise() -> None:
    verdict = answer(CLIPPED, a_round([[6, 8, 0]] * 5))
    assert_close(verdict.state.memory[NOISELESS], 3, 4, 0)
    noise = 0.1 * torch.randn(3, generator=stream())
    torch.testing.assert_close(verdict.state.row, torch.tensor([3.0, 4, 0]) + noise)
    assert_close(SMOOTHING.centre(verdict.state).row, 3, 4, 0)
    fresh = ServerState(torch.ones(3), torch.zeros(0, dtype=torch.int64))
    assert SMOOTHING.centre(fresh) is fresh


def test_only_trainable_parameters_are_noised() -> None:
    rows = torch.stack(list(Smoothing(copies=2000, noise_std=0.25, alpha=0.5).noisy(torch.arange(4.0), 3, 7, 1)))
    assert rows.shape == (2000, 4) and bool((rows[:, 3] == 3).all())
    assert (rows[:, :3] - torch.arange(3)).std().item() == pytest.approx(0.25, rel=0.05)  # 6,000 draws: 0.9 %
    again, later = (next(SMOOTHING.noisy(torch.zeros(4), 3, 7, number)) for number in (1, 2))
    torch.testing.assert_close(again[:3] * 25, rows[0, :3] - torch.arange(3))  # the same draw, by its address
    assert not torch.equal(again, later)


def twin(parts: Parts, state: ServerState, images: Samples, smoothing: Smoothing) -> tuple[int, int]:
    """Right and certain answers, from whole models copied one by one, and votes counted in numpy."""
    answers, d = [], parts.task.layout.trainable
    for number in range(smoothing.copies):
        model, row = copy.deepcopy(parts.task.model).eval(), state.row.clone()
        row[:d] = state.memory[NOISELESS] + smoothing.noise_std * torch.randn(
            d, generator=generator(parts.task.seed, "smoothing", state.round, number)
        )
        model.load_state_dict(parts.task.layout.unflatten(row, state.counters))
        with torch.no_grad():
            answers.append(model(parts.task.normalise(images.x)).argmax(1).numpy())
    votes = np.stack([(np.stack(answers) == c).sum(0) for c in range(10)], axis=1)
    ranked = np.sort(votes, axis=1)
    lead = ranked[:, -1] - ranked[:, -2]
    sure = lead / smoothing.copies > 2 * np.sqrt(np.log(1 / smoothing.alpha) / (2 * smoothing.copies))
    return int((votes.argmax(1) == images.y.numpy()).sum()), int(sure.sum())


@pytest.fixture(scope="module")
def smoothed(tiny: Callable) -> Parts:
    """CRFL with few copies, and so much noise that they differ."""
    settings = {"copies": 9, "noise_std": 0.03, "alpha": 0.2}
    prefix = "defense.randomized_smoothing"
    return build(tiny("defense=crfl", *(f"{prefix}.{key}={value}" for key, value in settings.items())))


@pytest.fixture(scope="module")
def played(smoothed: Parts) -> list[Round]:
    with closing(smoothed.start_engine(smoothed.task)) as engine:
        return list(rounds(smoothed.federation(engine), smoothed.initial, 2))


def test_a_tiny_run_is_evaluated_as_the_twin_votes(smoothed: Parts, played: list[Round]) -> None:
    assert smoothed.task.smoothing is not None
    for name, short in (("clean", "ma"), ("backdoor", "ba")):
        images, metrics = smoothed.task.eval_sets[name], played[-1].metrics
        right, sure = twin(smoothed, played[-1].after, images, smoothed.task.smoothing)
        assert metrics[f"eval/{short}"] == right / len(images)
        assert metrics[f"eval/{short}_certified"] == sure / len(images)
        assert 0 < sure < len(images)  # so that the comparison can fail


def test_the_vote_is_not_the_noisy_models_answer(smoothed: Parts, played: list[Round]) -> None:
    """And evaluating it leaves no trace in what is trained next: the states are those of a run without the vote."""
    plain = replace(smoothed.task, smoothing=None)
    with closing(smoothed.start_engine(plain)) as engine:
        alone = list(rounds(smoothed.federation(engine), smoothed.initial, 2))
    assert [digest(record.after) for record in alone] == [digest(record.after) for record in played]
    assert alone[-1].metrics["eval/ma_loss"] != played[-1].metrics["eval/ma_loss"]
    assert "eval/ma_certified" not in alone[-1].metrics


def test_engines_count_the_same_votes(smoothed: Parts, played: list[Round]) -> None:
    """Three slices on two workers."""
    clean = smoothed.task.eval_sets["clean"]
    task = replace(smoothed.task, eval_sets={"clean": clean[torch.arange(2500) % len(clean)]})
    with closing(Pool(task, workers=2)) as engine:
        assert engine.evaluate(played[-1].after) == Sequential(task).evaluate(played[-1].after)


def test_without_noise_a_vote_is_the_model(smoothed: Parts) -> None:
    task = replace(smoothed.task, smoothing=Smoothing(copies=14, noise_std=0.0, alpha=0.001))
    found, images = Sequential(task).evaluate(smoothed.initial)["clean"], task.eval_sets["clean"]
    wanted = total(evaluate(task.model, images[cut], task.normalise) for cut in slices(len(images)))
    assert (found.correct, found.count, found.certified) == (wanted.correct, wanted.count, wanted.count)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)


@pytest.mark.parametrize("wrap", [lambda rule: NNM(0.2, rule), lambda rule: Bucketing(2, rule)])
def test_wrappers_pass_the_vote_on(wrap: Any) -> None:
    assert wrap(CLIPPED).randomized_smoothing is SMOOTHING
    assert wrap(FedAvg(weights="uniform")).randomized_smoothing is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(SMOOTHING, copies=0), "defense.randomized_smoothing.copies=0"),
        (lambda: replace(SMOOTHING, noise_std=-0.1), "defense.randomized_smoothing.noise_std=-0.1"),
        (lambda: replace(SMOOTHING, alpha=1.0), "defense.randomized_smoothing.alpha=1.0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
