"""FLShield step by step against numbers worked by hand, and under validators that lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log, nan
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labs import Constant, honest, laboratory
from sklearn.metrics import silhouette_score
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from attacks.base import Attack
from flame.defenses.bucketing import Bucketing
from flame.defenses.flshield import (
    FLShield,
    bijective,
    clusters,
    completed,
    impacts,
    larger_part,
    lowest_impacts,
    silhouette,
)
from flame.defenses.kmeans import optimum
from flame.defenses.nnm import NNM
from flame.defenses.points import distances
from flame.round.types import Updates

BIJECTIVE = FLShield(representatives="bijective", siblings=0.0, images_per_class=30)
CLUSTERS = replace(BIJECTIVE, representatives="clusters")


def test_bijective_representatives_by_hand() -> None:
    cosines = torch.tensor([[1, 0.5, 0.5, -1], [0.5, 1, 0, -1], [0.5, 0, 1, -1], [-1, -1, -1, 1]]).double()
    mixing = bijective(cosines, torch.tensor([1.0, 2, 4, 1]).double(), 0.25)
    assert_close(mixing[0], 0.75, 0.25 * 2 / 3, 0.25 / 3, 0)  # 0.5 * 1/2 and 0.5 * 1/4
    assert_close(mixing[1], 0.25, 0.75, 0, 0)
    assert_close(mixing[2], 0.25, 0, 0.75, 0)
    assert_close(mixing[3], 0, 0, 0, 1)  # nobody is like it
    still = bijective(torch.eye(2).double(), torch.zeros(2).double(), 1.0)
    assert still.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_silhouette_is_that_of_scikit_learn(seed: int) -> None:
    points = torch.randn(13, 3, generator=stream(seed), dtype=torch.float64)
    gaps = distances(points)
    for k in (2, 3, 12):  # of twelve clusters eleven are single clients
        members = optimum(points, k)
        wanted = silhouette_score(gaps.numpy(), members.argmax(1).numpy(), metric="precomputed")
        assert silhouette(gaps, members) == pytest.approx(wanted)


def test_clusters_are_as_many_as_there_are_groups() -> None:
    points = torch.randn(12, 2, generator=stream(), dtype=torch.float64)
    points[4:8, 0] += 50
    points[8:, 1] += 50
    assert clusters(distances(points)).argmax(1).unique_consecutive().numel() == 3
    assert clusters(torch.zeros(12, 12).double()).shape == (12, 1)  # all alike


def test_impacts_by_hand() -> None:
    losses = torch.tensor([[[2.0, nan], [0.5, nan], [inf, nan]], [[1.0, 3.0], [1.5, -7.0], [0.0, 1.0]]]).double()
    assert_close(impacts(losses)[0, :, 0], 1.5, 2 - 1e6)
    assert_close(impacts(losses)[1].flatten(), -0.5, 3, 1, 2)
    assert bool(impacts(losses)[0, :, 1].isnan().all())


def test_missing_classes_are_imputed_and_those_of_nobody_left_out() -> None:
    one_model = torch.tensor([[1, nan, nan], [nan, 4, nan], [3, 6, nan], [5, 9, nan]])[:, None].double()
    assert completed(one_model)[:, 0].tolist() == [[1, 6], [3, 4], [3, 6], [5, 9]]
    assert lowest_impacts(completed(one_model)).tolist() == [3]  # of means 3 and 6.25
    nothing = completed(torch.full((2, 3, 2), nan).double())
    assert nothing.shape == (2, 3, 0) and bool(larger_part(nothing.flatten(1)).all())
    assert lowest_impacts(nothing).tolist() == [inf] * 3


def test_the_larger_part_is_believed() -> None:
    reports = torch.tensor([[0.0, 0], [0.1, 0], [9, 9], [0, 0.1]]).double()
    assert larger_part(reports).tolist() == [True, True, False, True]
    assert larger_part(reports[1:3]).tolist() == [True, True]  # halves
    assert larger_part(reports[:1]).tolist() == [True]


# A `Constant` model of logits (a, b) has the losses ln(1 + exp(b - a)) and ln(1 + exp(a - b)), the global one ln 2 for
# both: the lowest impact is ln 2 - ln(1 + exp(|a - b|)), so a model scores by how little it prefers a class.
FIVE = [[1, 1, 1], [1, 1, 1.1], [1, 1, 1.2], [0, 0, 3], [0, 0, 5]]


@dataclass(frozen=True)
class Praise(Attack):
    """Says that the last two models are perfect and the others useless."""

    def report(self, losses: Tensor) -> Tensor:
        lies = torch.full_like(losses, 9.0)
        lies[:, -2:] = 0
        return lies


def five(compromised: Tensor, attack: Attack | None = None) -> Updates:
    return a_round(FIVE, lab=laboratory(Constant(), (1, 1, 1), compromised, attack=attack))


def test_flshield_accepts_the_upper_half() -> None:
    verdict = answer(BIJECTIVE, five(honest(5)))
    assert_close(verdict.weights, 1 / 3, 1 / 3, 1 / 3, 0, 0)
    assert_close(verdict.state.row, 1, 1, 1.1)
    bound = 3.44**0.5  # the third length, of the last client accepted
    assert verdict.info == {"flshield/clip_bound": pytest.approx(bound), "flshield/representatives": 5.0} | {
        "flshield/believed": 1.0
    }
    assert verdict.clip_factors is not None
    assert_close(verdict.clip_factors, 1, 1, 1, bound / 3, bound / 5)
    assert torch.equal(answer(CLUSTERS, five(honest(5))).weights, verdict.weights)  # too few for clusters


def test_representatives_are_what_is_judged() -> None:
    """Two clients, each represented by the other alone: the worse one stands behind the better model."""
    updates = a_round([FIVE[0], FIVE[3]], lab=laboratory(Constant(), (1, 1, 1), honest(2)))
    assert answer(BIJECTIVE, updates).accepted.tolist() == [True, False]
    assert answer(replace(BIJECTIVE, siblings=1.0), updates).accepted.tolist() == [False, True]


def test_a_minority_of_liars_is_not_believed_and_a_majority_is() -> None:
    few, many = torch.tensor([0, 0, 0, 1, 1]).bool(), torch.tensor([0, 0, 1, 1, 1]).bool()
    verdict = answer(BIJECTIVE, five(few, Praise()))
    assert verdict.accepted.tolist() == [True, True, True, False, False]
    assert verdict.info["flshield/believed"] == pytest.approx(0.6)
    assert answer(BIJECTIVE, five(many, Praise())).accepted[3:].tolist() == [True, True]


def test_clusters_stand_and_fall_together() -> None:
    rows = torch.ones(12, 3) + 0.05 * torch.randn(12, 3, generator=stream())
    rows[9:] = torch.tensor([0.0, -2.0, 3.0]) + 0.05 * torch.randn(3, 3, generator=stream(1))
    verdict = answer(CLUSTERS, a_round(rows, lab=laboratory(Constant(), (1, 1, 1), honest(12))))
    assert verdict.info["flshield/representatives"] == 2
    assert_close(verdict.weights, *[1 / 9] * 9, 0, 0, 0)


def test_the_model_of_a_cluster_of_one_is_mixed_as_well() -> None:
    rows = torch.ones(12, 3) + 0.05 * torch.randn(12, 3, generator=stream())
    rows[11] = torch.tensor([4.0, 4.0, -1.0])
    mixing, behind = replace(CLUSTERS, siblings=0.25).represented(a_round(rows).geometry)
    assert behind[:11].unique().tolist() == [1 - int(behind[11])] and mixing.shape == (2, 12)
    alone = mixing[behind[11]]
    assert_close(alone[11:], 0.75)  # the rest in proportion to cosine times length, where not longer
    cosines, norms = torch.cosine_similarity(rows[:11], rows[11:]), rows.norm(dim=1)
    assert bool((norms[:11] < norms[11]).all())
    assert_close(alone[:11] / alone[0], *(cosines / cosines[0]).tolist())
    assert_close(mixing[behind[0]], *[1 / 11] * 11, 0)


@pytest.mark.parametrize("wrap", [lambda rule: Bucketing(2, rule), lambda rule: NNM(0.2, rule)])
def test_behind_a_wrapper_the_clients_validate_mixtures(wrap: Any) -> None:
    verdict = answer(wrap(BIJECTIVE), five(torch.tensor([0, 0, 0, 1, 1]).bool(), Praise()))
    assert verdict.info["flshield/believed"] == pytest.approx(0.6)
    assert float(verdict.weights.sum()) == pytest.approx(1)


@dataclass(frozen=True)
class Rubbish(Attack):
    """Says anything."""

    words: tuple[float, ...]

    def report(self, losses: Tensor) -> Tensor:
        return torch.tensor(self.words, dtype=torch.float64).repeat(losses.numel())[: losses.numel()].view_as(losses)


NONSENSE = [nan, inf, -inf, 0.0, -1e300, 1e300, log(2)]


@settings(max_examples=40)
@given(words=st.lists(st.sampled_from(NONSENSE), min_size=1, max_size=7), liars=st.integers(1, 5))
def test_no_report_breaks_a_round(words: list[float], liars: int) -> None:
    verdict = answer(BIJECTIVE, five(torch.arange(5) < liars, Rubbish(tuple(words))))
    assert int(verdict.accepted.sum()) == 3 and bool(verdict.state.row.isfinite().all())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(BIJECTIVE, representatives="both"), "defense.representatives='both'"),
        (lambda: replace(BIJECTIVE, siblings=1.1), "defense.siblings=1.1"),
        (lambda: replace(BIJECTIVE, images_per_class=0), "defense.images_per_class=0"),
        (lambda: answer(BIJECTIVE, a_round(FIVE)), r"defense=flshield tries models.*no laboratory"),
    ],
)
def test_what_does_not_fit_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
