"""Inference on a handful of seeds: intervals, an exact test, a correction for many tests, an effect size.

Runs that share a seed share the partition, the cohorts and the initial model, so that two arms are compared by their
differences seed by seed. With six of them an interval must not lean on asymptotics: measured on 2,000 samples of six
normal differences, a nominal 95 % bootstrap interval holds the mean in 86 % (percentile and BCa alike), Student's in
95 %; of six Laplace ones 84 %, 82 % and 97 %. So Student's interval is the one that the tables show; the bootstrap
stands beside it in their CSV files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np

from flame.run.record import Array

LEAST = 6  # differences: fewer cannot reach p < 0.05 in a two-sided sign-flip test, 2 / 2^5 = 0.0625
EXACT = 12  # differences of which all 2^n sign patterns are gone through; of more, so many random ones
RESAMPLES = 9999
Interval = tuple[float, float]


def half_width(sample: Array) -> float:
    """Of Student's 95 % interval for the mean of `sample` [n >= 2]."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))


def student_interval(differences: Array) -> Interval:
    """95 % interval for the mean of paired differences [n]; NaN for n < 2."""
    if len(differences) < 2:
        return np.nan, np.nan
    centre, half = float(differences.mean()), half_width(differences)
    return centre - half, centre + half


def bootstrap_interval(differences: Array) -> Interval:
    """95 % percentile bootstrap interval for the mean of paired differences [n]; NaN for n < 2.

    Not BCa (Efron, JASA 1987): its acceleration is a third moment, which so few values do not give; its coverage is no
    better, and it is undefined where all differences are equal.
    """
    if len(differences) < 2:
        return np.nan, np.nan
    low, high = np.percentile(differences[_resamples(len(differences))].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


@cache
def _resamples(n: int) -> np.ndarray:
    """[RESAMPLES, n] positions, as scipy.stats.bootstrap draws them: kept, as a call with n values wants the same."""
    rng = np.random.default_rng(0)
    return rng.integers(0, n, (RESAMPLES, n))


def sign_flip_p(differences: Array) -> float:
    """Two-sided p of the hypothesis that each of the paired differences [n] is as likely as its negative.

    The share of sign patterns whose mean is at least as far from 0 (Fisher, The Design of Experiments, 1935; section 21
    from memory). Exact up to n = 12; beyond, of 4,095 random patterns and the observed one. NaN for n < 6, where no
    outcome could be called significant at the 5 % level.
    """
    n = len(differences)
    if n < LEAST:
        return np.nan
    flipped = np.abs(sign_patterns(n) @ differences)
    observed = flipped[0]  # the first pattern flips nothing
    return float(np.mean(flipped >= observed - 1e-12 * np.abs(differences).sum()))  # ties in spite of rounding


@cache
def sign_patterns(n: int) -> Array:
    """[patterns, n] of +1 and -1, first the one without a minus."""
    if n <= EXACT:
        return np.array(list(product((1.0, -1.0), repeat=n)))
    rng = np.random.default_rng(0)
    return np.vstack([np.ones(n), rng.choice((1.0, -1.0), (2**EXACT - 1, n))])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of one family of tests (Holm, Scand. J. Statist. 1979); a NaN is no test and stays one.

    The i-th smallest of k is multiplied by k - i + 1, and none ends below a smaller one.
    """
    p = np.array(p_values, dtype=np.float64)
    order = [int(i) for i in np.argsort(p) if not np.isnan(p[i])]
    scaled = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return p.tolist()


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % interval for a proportion (Wilson, JASA 1927); NaN without trials. It holds near 0 and 1, too."""
    from scipy.stats import binomtest

    if not trials:
        return np.nan, np.nan
    found = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def hedges_g(differences: Array) -> float:
    """Mean over standard deviation of the paired differences [n], d_z, without its small-sample bias.

    The factor of Hedges (J. Educ. Statist. 1981) for n - 1 degrees of freedom: 0.84 at n = 6. NaN for n < 6, where
    its own interval spans a factor of ten, and where all differences are equal.
    """
    from scipy.special import gammaln

    free = len(differences) - 1
    if free + 1 < LEAST or np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return np.nan
    unbiased = np.exp(gammaln(free / 2) - gammaln((free - 1) / 2)) / np.sqrt(free / 2)
    return float(unbiased * differences.mean() / differences.std(ddof=1))


def rank_correlation(x: Array, y: Array) -> float:
    """Spearman's, in [-1, 1]; NaN for fewer than three pairs or where one side is constant."""
    from scipy.stats import spearmanr

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(spearmanr(x, y).statistic)
