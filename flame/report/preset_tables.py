"""How much the public FLAMEs disagree: with the two vectors on equal updates, and with each other on equal cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from flame.report.contrasts import PER_CENT, PLAIN, finished
from flame.report.markup import Rows
from flame.report.recipes import Plan
from flame.report.vector_tables import counted
from flame.report.vectors import VECTORS, PresetLine, jaccard, mean

SHARES = {"MA %": "ma", "BA %": "ba", "benign accepted %": "benign_recall", "malicious rejected %": "malicious_recall"}


def presets(records: Sequence[PresetLine], plan: Plan) -> Rows:
    """What each preset's own runs came to, and its agreement with either vector's verdict on the updates it got."""
    rows = []
    for name in plan["defense"]:
        arm = [record for record in records if record.defense == name]
        shares = [finished(arm, attrgetter(share)) for share in SHARES.values()]
        agreed = [finished(arm, attrgetter(f"agreement_{vector}")) for vector in VECTORS]
        numbers = [*map(PER_CENT.estimate, shares), *map(PLAIN.estimate, agreed)]
        rows.append([f"`{name}`", *numbers, counted(shares[0], arm, records, plan)])
    return [["preset", *SHARES, *(f"agrees with `{vector}`" for vector in VECTORS), "n"], *rows]


def preset_pairs(records: Sequence[PresetLine], plan: Plan) -> Rows:
    """Mean Jaccard index of two presets' accepted sets: above the diagonal in the first round, below over all rounds.

    In the first round all presets get the same updates. Later the cohorts are the same, but the global models differ.
    """
    names = plan["defense"]
    rows = [
        [f"{i + 1} `{a}`", *("-" if i == j else between(records, a, b, i < j) for j, b in enumerate(names))]
        for i, a in enumerate(names)
    ]
    return [["", *(str(number + 1) for number in range(len(names)))], *rows]


def between(records: Sequence[PresetLine], first: str, second: str, first_round: bool) -> str:
    """The mean over the seeds that both presets have finished, and over rounds."""
    ours, theirs = (
        {r.seed: r.accepted_sets.split() for r in records if r.defense == name and r.state_sha256}
        for name in (first, second)
    )
    of_seeds = []
    for seed in sorted(ours.keys() & theirs.keys()):
        rounds = list(zip(ours[seed], theirs[seed], strict=False))[: 1 if first_round else None]
        of_seeds.append(np.mean([jaccard(members(a), members(b)) for a, b in rounds]))
    return "not run" if not of_seeds else f"{mean(np.array(of_seeds)):.2f}"


def members(digits: str) -> np.ndarray:
    """[n] bool of a string of 0 and 1."""
    return np.array([digit == "1" for digit in digits])
