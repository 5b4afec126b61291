"""Two arms over the same seeds: a row per contrast, with interval, exact test, Holm's correction and effect size.

A seed that is not run, unfinished or without a value is counted in the last column, never dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flame.report.markup import Rows
from flame.report.records import Kind, Line
from flame.report.statistics import bootstrap_interval, half_width, hedges_g, holm, sign_flip_p, student_interval
from flame.run.record import Array

BOOTSTRAP = "bootstrap 95 %"
INFERENCE = ("difference", "95 % interval", BOOTSTRAP, "p", "p (Holm)", "effect g", "n")
Values = Mapping[int, float]  # seed -> value of a finished run; NaN where it is undefined


@dataclass(frozen=True)
class Unit:
    """How numbers are shown."""

    factor: float
    digits: int

    def interval(self, low: float, high: float) -> str:
        """`[low, high]`; a dash where there is none."""
        return "-" if np.isnan(low) else f"[{self.signed(low)}, {self.signed(high)}]"

    def signed(self, value: float) -> str:
        """With its sign; a dash for NaN."""
        return "-" if np.isnan(value) else f"{self.factor * value:+z.{self.digits}f}"

    def estimate(self, values: Values) -> str:
        """Mean and half the width of Student's 95 % interval over the seeds that have a value."""
        known = self.factor * np.array([value for value in values.values() if not np.isnan(value)])
        width = f" ± {half_width(known):.{self.digits}f}" if len(known) > 1 else ""
        return f"{known.mean():z.{self.digits}f}{width}" if len(known) else "-"


PER_CENT, PLAIN = Unit(100, 1), Unit(1, 2)


@dataclass(frozen=True)
class Contrast:
    """What is to be compared, and what stands beside it."""

    labels: tuple[str, ...]
    sides: tuple[Values, Values]  # the difference is the first minus the second
    beside: tuple[Values, ...]
    lacking: Mapping[str, int]  # why a seed is missing -> how many are

    @cached_property
    def differences(self) -> Array:
        """[n] of the seeds that both sides have a value for."""
        first, second = self.sides
        found = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
        return found[~np.isnan(found)]


def finished(records: Sequence[Kind], value: Callable[[Kind], float]) -> Values:
    """The values of the runs that have finished."""
    return {record.seed: value(record) for record in records if record.state_sha256}


def lacking(arms: Sequence[Sequence[Line]], seeds: Sequence[int]) -> Counter[str]:
    """Seeds of which some arm has no finished run, by the reason."""
    found: Counter[str] = Counter()
    for seed in seeds:
        runs = [next((run for run in arm if run.seed == seed), None) for arm in arms]
        if None in runs:
            found["not run"] += 1
        elif not all(run.state_sha256 for run in runs if run):
            found["unfinished"] += 1
    return found


def extent(n: int, missing: Mapping[str, int]) -> str:
    """`4 (1 unfinished, 1 not run)`."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in missing.items() if count)
    return f"{n} ({reasons})" if reasons else str(n)


def contrast_table(labels: Sequence[str], columns: Sequence[str], contrasts: Sequence[Contrast], unit: Unit) -> Rows:
    """A row for each contrast, and one for their mean by seed.

    That last row is one test and outside of Holm's family: with six seeds no exact p is below 2 / 64, so that of a
    family of two or more none can stay below 0.05, however large the differences are.
    """
    rows = unpooled_table(labels, columns, contrasts, unit)
    pooled = mean_by_seed(contrasts)
    return [*rows, contrast_row(pooled, sign_flip_p(pooled.differences), np.nan, unit)] if pooled else rows


def unpooled_table(labels: Sequence[str], columns: Sequence[str], contrasts: Sequence[Contrast], unit: Unit) -> Rows:
    """A row for each contrast, where they are of unlike things, whose mean would say nothing."""
    p_values = [sign_flip_p(contrast.differences) for contrast in contrasts]
    tests = zip(contrasts, p_values, holm(p_values), strict=True)
    return [[*labels, *columns, *INFERENCE], *(contrast_row(c, p, adjusted, unit) for c, p, adjusted in tests)]


def contrast_row(contrast: Contrast, p: float, adjusted: float, unit: Unit) -> list[str]:
    """The text of a row; dashes where nothing can be said."""
    values, n = contrast.differences, len(contrast.differences)
    effect = hedges_g(values)
    return [
        *contrast.labels,
        *(unit.estimate(side) for side in (*contrast.sides, *contrast.beside)),
        unit.signed(float(values.mean()) if n else np.nan),
        unit.interval(*student_interval(values)),
        unit.interval(*bootstrap_interval(values)),
        f"n = {n}: no test" if n and np.isnan(p) else chance(p),
        chance(adjusted),
        "-" if np.isnan(effect) else f"{effect:+z.2f}",
        extent(n, contrast.lacking),
    ]


def chance(p: float) -> str:
    """A p value; a dash for none."""
    return "-" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_by_seed(contrasts: Sequence[Contrast]) -> Contrast | None:
    """The mean of all contrasts that have a value, over the seeds that all of those have; None for fewer than two."""
    some = [contrast for contrast in contrasts if len(contrast.differences)]
    if len(some) < 2:
        return None
    columns = zip(*((*contrast.sides, *contrast.beside) for contrast in some), strict=True)
    first, second, *beside = map(averaged, columns)
    labels = (f"mean of {len(some)} rows", *[""] * (len(some[0].labels) - 1))
    planned = len(some[0].differences) + sum(some[0].lacking.values())
    return Contrast(labels, (first, second), tuple(beside), {"incomplete": planned - len(first.keys() & second.keys())})


def averaged(column: Sequence[Values]) -> Values:
    """The mean of several values of a seed, where all are defined."""
    whole = set.intersection(*({seed for seed, value in values.items() if not np.isnan(value)} for values in column))
    return {seed: float(np.mean([values[seed] for values in column])) for seed in sorted(whole)}
