"""Two arms over the same seeds as text: estimates, and a row per contrast with interval, exact test, Holm and effect.

A seed that is not run, unfinished or without a value is counted in the last column, never dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pandas as pd

from flame.report.statistics import bootstrap_interval, half_width, hedges_g, holm, sign_flip_p, student_interval
from flame.run.record import Array

BOOTSTRAP = "bootstrap 95 %"  # stands in the CSV alone
INFERENCE = ("difference", "95 % interval", BOOTSTRAP, "p", "p (Holm)", "effect g", "n")
TOO_SMALL, MIXED = "n too small", " ‡"
Values: TypeAlias = pd.Series  # by seed, of finished runs; NaN where undefined


class Text(str):
    """A cell as CSV has it, and as a document shows it: an interval wider than the scale is no number to read."""

    read: str
    mark: str

    def __new__(cls, plain: str, shown: str | None = None, mixed: bool = False) -> Text:
        """`mixed`: it joins runs of different code, which is marked wherever people read it."""
        text = super().__new__(cls, plain)
        text.mark = MIXED * mixed
        text.read = plain if shown is None else shown
        return text


@dataclass(frozen=True)
class Unit:
    """How numbers are shown, and how long their scale is as shown."""

    factor: float
    digits: int
    scale: float

    def interval(self, low: float, high: float) -> Text:
        """`[low, high]`; a dash where there is none. The scale of a difference is twice as long."""
        plain = "-" if np.isnan(low) else f"[{self.signed(low)}, {self.signed(high)}]"
        return Text(plain, TOO_SMALL if self.factor * (high - low) > 2 * self.scale else plain)

    def signed(self, value: float) -> str:
        """With its sign, which what rounds to 0 keeps: whether an interval holds 0 hangs on it; a dash for NaN."""
        shown = 0.0 if abs(value) < 1e-12 else self.factor * value  # rounding alone has no sign
        return "-" if np.isnan(value) else f"{shown:+.{self.digits}f}"

    def estimate(self, values: Values, mixed: bool = False) -> Text:
        """Mean and half the width of Student's 95 % interval over the seeds that have a value; how many, if not all."""
        known = self.factor * values.dropna().to_numpy(dtype=np.float64)
        if not len(known):
            return Text("-")
        middle = f"{round(float(known.mean()), 9):z.{self.digits}f}"  # as `one_digit`, and so as the page
        half = round(half_width(known), 9) if len(known) > 1 else 0.0
        width = f" ± {half:.{self.digits}f}" if len(known) > 1 else ""
        count = "" if len(known) == len(values) else f" ({len(known)} of {len(values)} seeds)"
        shown = f" ({TOO_SMALL})" if 2 * half > self.scale else width
        return Text(middle + width + count, middle + shown + count, mixed)


PER_CENT, PLAIN, CLIENTS, NUMBER = Unit(100, 1, 100), Unit(1, 2, 2), Unit(1, 1, np.inf), Unit(1, 3, np.inf)
UNITS = {"per_cent": PER_CENT, "plain": PLAIN, "clients": CLIENTS, "number": NUMBER}


@dataclass(frozen=True)
class Contrast:
    """What is to be compared, and what stands beside it."""

    labels: Sequence[str]
    sides: Sequence[Values]  # the difference is the first minus the second; others stand beside
    lacking: Mapping[str, int]  # why a seed is missing -> how many are
    mixed: Sequence[bool]  # whether a side joins runs of different code, and last whether the first two do
    unit: Unit = PER_CENT

    @cached_property
    def differences(self) -> Array:
        """[n] of the seeds that the first two sides have a value for."""
        first, second = self.sides[:2]
        found: Array = (first - second).dropna().sort_index().to_numpy(dtype=np.float64)
        return found


def extent(n: int, missing: Mapping[str, int]) -> str:
    """`4 (1 unfinished, 1 not run)`."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in missing.items() if count)
    return f"{n} ({reasons})" if reasons else str(n)


def lacking(arms: Sequence[pd.DataFrame], seeds: Sequence[int]) -> Counter[str]:
    """Seeds of which some arm (lines by seed) has no finished run, by the reason."""
    found: Counter[str] = Counter()
    for seed in seeds:
        if not all(seed in arm.index for arm in arms):
            found["not run"] += 1
        elif not all(arm.at[seed, "state_sha256"] for arm in arms):
            found["unfinished"] += 1
    return found


def contrast_rows(contrasts: Sequence[Contrast], pooled: bool = False) -> list[list[str]]:
    """A row for each contrast; `pooled`: and one for their mean by seed.

    That last row is one test and outside of Holm's family: with six seeds no exact p is below 2 / 64, so that of a
    family of two or more none can stay below 0.05, however large the differences are. Rows of unlike things have none.
    """
    p_values = [sign_flip_p(contrast.differences) for contrast in contrasts]
    rows = [contrast_row(*test) for test in zip(contrasts, p_values, holm(p_values), strict=True)]
    together = mean_by_seed(contrasts) if pooled else None
    return [*rows, contrast_row(together, sign_flip_p(together.differences), np.nan)] if together else rows


def contrast_row(contrast: Contrast, p: float, adjusted: float) -> list[str]:
    """The text of a row; dashes where nothing can be said."""
    unit, values, n = contrast.unit, contrast.differences, len(contrast.differences)
    return [
        *contrast.labels,
        *(unit.estimate(side, mark) for side, mark in zip(contrast.sides, contrast.mixed[:-1], strict=True)),
        Text(unit.signed(float(values.mean()) if n else np.nan), mixed=n > 0 and contrast.mixed[-1]),
        unit.interval(*student_interval(values)),
        unit.interval(*bootstrap_interval(values)),
        f"n = {n}: no test" if n and np.isnan(p) else chance(p),
        chance(adjusted),
        PLAIN.signed(hedges_g(values)),
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
    sides = [averaged(column) for column in zip(*(contrast.sides for contrast in some), strict=True)]
    labels = (f"mean of {len(some)} rows", *[""] * (len(some[0].labels) - 1))
    planned = len(some[0].differences) + sum(some[0].lacking.values())
    mixed = [any(marks) for marks in zip(*(contrast.mixed for contrast in some), strict=True)]
    missing = {"incomplete": planned - len(sides[0].index.intersection(sides[1].index))}
    return Contrast(labels, sides, missing, mixed, some[0].unit)


def averaged(column: Sequence[Values]) -> Values:
    """The mean of several values of a seed, where all are defined."""
    whole = pd.concat(list(column), axis=1, join="inner").dropna().sort_index()
    return pd.Series(np.ascontiguousarray(whole.to_numpy(dtype=np.float64)).mean(axis=1), index=whole.index)
