"""Statistics of few seeds: hand-worked and published numbers, slow twins, and error rates measured by simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flame.report.statistics import (
    bootstrap_interval,
    hedges_g,
    holm,
    rank_correlation,
    sign_flip_p,
    student_interval,
    wilson_interval,
)

NAN = math.nan
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_student_by_hand() -> None:
    """1, 2, 3: mean 2, t(0.975, 2) = 4.30265, s / sqrt(3) = 0.57735."""
    assert student_interval(np.array([1.0, 2, 3])) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert all(map(math.isnan, (*student_interval(np.ones(1)), *bootstrap_interval(np.ones(1)))))


def test_what_the_intervals_cover_with_six_seeds() -> None:
    """The reason why the tables show Student's; three standard errors around what was measured."""
    samples = np.random.default_rng(0).normal(3, 2, (2000, 6))
    student, resampled = (
        np.mean([low <= 3 <= high for low, high in map(interval, samples[:repeats])])
        for interval, repeats in ((student_interval, 2000), (bootstrap_interval, 250))
    )
    assert abs(student - 0.95) < 0.015
    assert abs(resampled - 0.86) < 0.066


def test_the_bootstrap_against_all_resamples() -> None:
    """Of three values there are 27 resamples, each as likely: the quantiles of their means, to a step between two."""
    values = np.array([0.0, 1.0, 5.0])
    means = np.sort([np.mean(drawn) for drawn in product(values, repeat=3)])
    assert bootstrap_interval(values) == pytest.approx((means[0], means[-1]))  # 1 in 27 is more than 2.5 %
    assert bootstrap_interval(np.full(6, 0.5)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5, 6], 2 / 64),  # only all signs equal are as far out
        ([-1, 2, 3, 4, 5, 6], 4 / 64),  # and those where 1 has the other sign: sum 19 or 21, of either sign
        ([-6, 1, 1, 1, 1, 1], 1.0),  # all sums are odd, so none is nearer to 0 than -1
        ([0, 0, 0, 0, 0, 0], 1.0),
        ([0.1, 0.1, 0.1, 0.1, 0.1, -0.1], 14 / 64),  # |sum| >= 0.4: none, one, five or six of six flipped
    ],
)
def test_exact_p_values(differences: list[float], p: float) -> None:
    values = np.array(differences, dtype=float)
    twin = [abs(sum(s * d for s, d in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=6)]
    assert sign_flip_p(values) == pytest.approx(np.mean([far >= abs(values.sum()) - 1e-9 for far in twin]))
    assert sign_flip_p(values) == pytest.approx(p) and sign_flip_p(-values) == pytest.approx(p)


def test_fewer_than_six_are_no_test() -> None:
    assert math.isnan(sign_flip_p(np.arange(1.0, 6)))


def test_the_sign_flip_test_is_scipys() -> None:
    a, b = np.random.default_rng(3).normal(0.5, 1, (2, 9))
    paired = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(a - b) == pytest.approx(paired.pvalue)


@pytest.mark.parametrize(("n", "expected"), [(6, 2 / 64), (10, 50 / 1024), (14, 0.05)])
def test_no_difference_is_found_5_times_in_100(n: int, expected: float) -> None:
    """With n = 6 the attainable level is 3.1 %, with 10 it is 4.9 %; within three standard errors of 2,000 repeats."""
    runs = np.random.default_rng(n).normal(0, 1, (2 if n > 12 else 4, 500, 2, n)).reshape(-1, 2, n)
    found = np.mean([sign_flip_p(a - b) < 0.05 for a, b in runs])
    assert abs(found - expected) < 3 * math.sqrt(0.05 * 0.95 / len(runs))


def test_one_in_a_table_without_differences_is_found_at_most_5_times_in_100() -> None:
    tables = np.random.default_rng(1).normal(0, 1, (300, 5, 9))
    found = np.mean([min(holm([sign_flip_p(row) for row in table])) < 0.05 for table in tables])
    assert found < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_known_difference_is_found() -> None:
    """Two standard deviations: by the t test's power, 98 in 100 at n = 6; the exact test needs all six signs alike."""
    runs = np.random.default_rng(2).normal(2, 1, (500, 6))
    assert np.mean([sign_flip_p(row) < 0.05 for row in runs]) == pytest.approx(
        stats.norm.cdf(2) ** 6, abs=3 * math.sqrt(0.13 * 0.87 / 500)
    )
    inside = np.mean([low <= 2 <= high for low, high in map(student_interval, runs)])
    assert abs(inside - 0.95) < 3 * math.sqrt(0.05 * 0.95 / 500)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 * 0.01, 1 * 0.04 < 2 * 0.03
    assert holm([0.02, NAN, 0.03]) == pytest.approx([0.04, NAN, 0.04], nan_ok=True)  # a family of two
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []


@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_is_the_step_down_procedure(p_values: list[float], level: float) -> None:
    """Reject the smallest while p <= level / hypotheses left; an adjusted p says whether that reaches it."""
    rejected: set[int] = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_in_print(successes: int, trials: int, interval: tuple[float, float]) -> None:
    """Newcombe, Statistics in Medicine 1998, table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx(interval, abs=5e-5)


def test_wilson_without_trials() -> None:
    assert all(map(math.isnan, wilson_interval(0, 0)))


def test_effect_size() -> None:
    """1 to 6: d_z = 3.5 / sqrt(3.5); the factor for 5 degrees of freedom is 0.8408."""
    unbiased = 0.75 * math.sqrt(math.pi) / math.sqrt(2.5)
    assert hedges_g(np.arange(1.0, 7)) == pytest.approx(math.sqrt(3.5) * unbiased)
    estimates = [hedges_g(row) for row in np.random.default_rng(0).normal(0.8, 1, (4000, 6))]
    assert np.mean(estimates) == pytest.approx(0.8, abs=0.035)  # three standard errors; d_z itself is at 0.95
    assert math.isnan(hedges_g(np.full(6, 0.3))) and math.isnan(hedges_g(np.arange(5.0)))


def test_rank_correlations_by_hand() -> None:
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40])) == pytest.approx(1 - 6 * 2 / 60)
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
