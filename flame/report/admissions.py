"""What a run says of its attack: how many malicious updates got in, by its own verdict and by either vector's on the
very same updates, and what of the backdoor is there while the attack lasts and afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from flame.report.records import Line, common
from flame.report.vectors import VECTORS, mean
from flame.run.record import RunRecord


@dataclass(frozen=True)
class AttackLine(Line):
    """Of an attacked run; shares of the malicious updates, mean over all attacked rounds."""

    partition: str
    admitted: float  # by the run's own defense
    admitted_weights_only: float  # by that vector, of the same updates
    admitted_all_state: float

    @classmethod
    def of(cls, run: RunRecord) -> Self:
        """The line of a run."""
        return cls(**common(run) | {"partition": run.choices["partition"]} | cls.measured(run))

    @classmethod
    def measured(cls, run: RunRecord) -> dict[str, Any]:
        """Field -> value, beyond those of every line."""
        recalls = {"admitted": "filter", **{f"admitted_{vector}": f"shadow/{vector}" for vector in VECTORS}}
        return {
            field: 1 - mean(run.metric(f"{of}/malicious_recall")) if run.summary else np.nan
            for field, of in recalls.items()
        }


@dataclass(frozen=True)
class EvasionLine(AttackLine):
    """Of a run against an attacker who knows FLAME."""

    adapt_to: str  # the vectors that it keeps close in
    budget: str  # its distance to unseen benign clients, in their mean distance

    @classmethod
    def measured(cls, run: RunRecord) -> dict[str, Any]:
        """And what the attacker adapts to, and how closely."""
        attack = run.config["attack"]
        return super().measured(run) | {"adapt_to": attack["adapt_to"], "budget": str(attack["budget"])}


@dataclass(frozen=True)
class AblationLine(AttackLine):
    """Of a run whose attack stops before the end."""

    stop: str  # first round without the attack
    ba_attacked: float  # mean over the last attacked rounds, as many as the run reports of its end
    ba_after: float  # mean over all rounds after them

    @classmethod
    def measured(cls, run: RunRecord) -> dict[str, Any]:
        """And the backdoor before and after the stop, in rounds that were evaluated."""
        found = super().measured(run) | {"stop": str(run.config["attack_rounds"]["stop"])}
        if not run.summary:
            return found | {"ba_attacked": np.nan, "ba_after": np.nan}
        ba, last = run.metric("eval/ba"), run.summary["mean_of_last"]
        attacked = np.flatnonzero(~np.isnan(run.metric("filter/malicious_recall")))
        after = attacked.max(initial=-1) + 1
        return found | {"ba_attacked": mean(ba[attacked[-last:]]), "ba_after": mean(ba[after:])}
