"""Whether the attacks' own ideas work here: each beside its control, which differs in that idea alone.

The papers have such comparisons (what they lead one to expect is from memory): LP's critical layers against as many
random ones, Neurotoxin's coordinates against all of them and Chameleon's encoder against an ordinary one once the
attack has stopped, A3FL's trigger against one that does not adapt, 3DFed's update with and without noise masks. Rows
with `_slow` take Neurotoxin apart: coordinates and learning rate, which its authors' commands change together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from flame.report.admissions import AblationLine
from flame.report.contrasts import PER_CENT, finished, unpooled_table
from flame.report.markup import Rows
from flame.report.recipes import Plan
from flame.report.vector_tables import contrast, seeds

MEASURES = {"ba_attacked": "BA under attack", "ba_after": "BA afterwards", "admitted": "malicious admitted"}


@dataclass(frozen=True)
class Ablation:
    """An attack, the same without its idea, and what should differ."""

    attack: str
    control: str
    expected: Mapping[str, str]  # field of a record -> the sign of the attack's value minus the control's; -: either


ABLATIONS = (
    Ablation("lp", "lp_random", {"ba_attacked": "> 0"}),
    Ablation("neurotoxin", "badnets", {"ba_attacked": "-", "ba_after": "> 0"}),
    Ablation("neurotoxin", "badnets_slow", {"ba_attacked": "-", "ba_after": "> 0"}),
    Ablation("badnets", "badnets_slow", {"ba_attacked": "-", "ba_after": "-"}),
    Ablation("neurotoxin_slow", "badnets_slow", {"ba_attacked": "-", "ba_after": "> 0"}),
    Ablation("chameleon", "badnets", {"ba_attacked": "-", "ba_after": "> 0"}),
    Ablation("a3fl", "a3fl_fixed", {"ba_attacked": "> 0", "ba_after": "> 0"}),
    Ablation("threedfed", "threedfed_unmasked", {"admitted": "> 0", "ba_attacked": ">= 0"}),
)


def ablations(records: Sequence[AblationLine], plan: Plan) -> Rows:
    """A row for each planned ablation, measure and defense, but for whom averaging admits: everybody."""
    rows = [
        (ablation, field, defense)
        for ablation in ABLATIONS
        if {ablation.attack, ablation.control} <= set(plan["attack"])
        for field in ablation.expected
        for defense in plan["defense"]
        if (field, defense) != ("admitted", "fedavg")
    ]
    contrasts = []
    for ablation, field, defense in rows:
        names = (ablation.attack, ablation.control)
        arms = [[run for run in records if (run.attack, run.defense) == (name, defense)] for name in names]
        sides = [finished(arm, attrgetter(field)) for arm in arms]
        labels = (*(f"`{name}`" for name in (*names, defense)), MEASURES[field], ablation.expected[field])
        contrasts.append(contrast(labels, sides, [], arms, seeds(records, plan)))
    header = ["attack", "control", "defense", "measure", "expected"]
    return unpooled_table(header, ["attack %", "control %"], contrasts, PER_CENT)
