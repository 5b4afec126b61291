"""Which attacks break FLAME, which defenses it is set beside, and which of its two vectors is easier to evade."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

import numpy as np

from flame.report.accuracy_tables import accuracies, share
from flame.report.admissions import AttackLine, EvasionLine
from flame.report.contrasts import PER_CENT, Contrast, Values, averaged, extent, finished, lacking, unpooled_table
from flame.report.markup import Rows
from flame.report.recipes import Plan
from flame.report.vector_tables import cell_fields, cells, contrast, seeds
from flame.report.vectors import VECTORS, mean

VARIANTS = tuple(f"flame_{vector}" for vector in VECTORS)
Side = Callable[[str], tuple[str, str]]  # of a vector: the defense whose runs tell, and the field of their records
MEASURES: dict[str, Side] = {
    "BA": lambda vector: (f"flame_{vector}", "ba"),
    "malicious admitted": lambda vector: (f"flame_{vector}", "admitted"),
    "malicious admitted, of what averaging is sent": lambda vector: ("fedavg", f"admitted_{vector}"),
}
UNDEFENDED: dict[str, Side] = {"BA under averaging": lambda _: ("fedavg", "ba")}  # what the budget leaves of it


def later_attacks(records: Sequence[AttackLine], plan: Plan) -> Rows:
    """MA / BA of each attack under each defense; what breaks FLAME most stands first, what was not run last."""
    found = []
    for labels, arms in cells(records, plan):
        missing = lacking(list(arms.values()), seeds(records, plan))
        whole = len(seeds(records, plan)) - sum(missing.values())
        admitted = [share(arms[name], "admitted") for name in VARIANTS]
        row = [*labels, *map(accuracies, arms.values()), *admitted, extent(whole, missing)]
        found.append((breach(arms[name] for name in VARIANTS), row))
    admitting = [f"`{name}`: malicious admitted" for name in VARIANTS]
    header = [*cell_fields(plan), *(f"`{name}`" for name in plan["defense"]), *admitting, "n"]
    return [header, *(row for _, row in sorted(found, key=lambda pair: -pair[0]))]


def breach(arms: Iterable[Sequence[AttackLine]]) -> float:
    """The largest of the arms' mean BAs, in [0, 1]; -1 where none is known."""
    means = [mean(np.array([run.ba for run in arm])) for arm in arms]
    return max((ba for ba in means if not np.isnan(ba)), default=-1.0)


def strongest(records: Sequence[AttackLine], plan: Plan) -> Rows:
    """The ranking, and after it by name the defenses that lack a run and so have no rank."""
    ranked, rows = ranking(records, plan), []
    for name in [*ranked, *sorted(set(plan["defense"]) - set(ranked))]:
        arms = [of_cell(records, attack, name) for attack in plan["attack"]]
        points = margins(records, plan, name)
        rank = str(ranked.index(name) + 1) if name in ranked else "-"
        n = extent(len(points), lacking(arms, seeds(records, plan)))
        rows.append([rank, f"`{name}`", *map(accuracies, arms), PER_CENT.estimate(points), n])
    return [["rank", "defense", *(f"`{attack}`: MA / BA" for attack in plan["attack"]), "MA - BA", "n"], *rows]


def ranking(records: Sequence[AttackLine], plan: Plan) -> list[str]:
    """The defenses with all of their runs, by mean MA - BA over attacks and seeds, the largest first, ties by name."""
    points = {name: margins(records, plan, name) for name in plan["defense"]}
    whole = [name for name, values in points.items() if len(values) == len(plan["seed"])]
    return sorted(whole, key=lambda name: (-np.mean(list(points[name].values())), name))


def margins(records: Sequence[AttackLine], plan: Plan, defense: str) -> Values:
    """Seed -> MA - BA, mean over the attacks, of the seeds that have all of them."""
    return averaged([finished(of_cell(records, a, defense), lambda run: run.ma - run.ba) for a in plan["attack"]])


def of_cell(records: Sequence[AttackLine], attack: str, defense: str) -> list[AttackLine]:
    """The runs of an attack under a defense."""
    return [record for record in records if (record.attack, record.defense) == (attack, defense)]


def evasion(records: Sequence[EvasionLine], plan: Plan) -> Rows:
    """Each vector before the attacker who adapts to it, at every budget: the contrast at equal stealth.

    Stealth is a budget of distance to unseen benign clients, in units of their own mean distance and in the vector that
    is adapted to.
    """
    measures = (MEASURES | UNDEFENDED).items()
    found = [compared(records, plan, budget, VECTORS, of) for budget in plan["budget"] for of in measures]
    return unpooled_table(["budget", "measure"], [f"`{vector}` %" for vector in VECTORS], found, PER_CENT)


def evasion_across(records: Sequence[EvasionLine], plan: Plan) -> Rows:
    """Both vectors before the same attacker, who may be seen in the one that it does not adapt to."""
    found = []
    for name in plan["adapt_to"]:
        for budget in plan["budget"]:
            pairs = [compared(records, plan, budget, (name, name), of) for of in MEASURES.items()]
            found += [replace(pair, labels=(f"`{name}`", *pair.labels)) for pair in pairs]
    return unpooled_table(["adapts to", "budget", "measure"], [f"`{vector}` %" for vector in VECTORS], found, PER_CENT)


def compared(
    records: Sequence[EvasionLine], plan: Plan, budget: str, adapted: tuple[str, ...], of: tuple[str, Side]
) -> Contrast:
    """One measure of the two vectors, the first before the attacker `adapted[0]`, the second before `adapted[1]`."""
    measure, side = of
    sides, arms = [], []
    for vector, adapt_to in zip(VECTORS, adapted, strict=True):
        defense, field = side(vector)
        cell = (adapt_to, budget, defense)
        arms.append([run for run in records if (run.adapt_to, run.budget, run.defense) == cell])
        sides.append(finished(arms[-1], attrgetter(field)))
    return contrast((budget, measure), sides, [], arms, seeds(records, plan))
