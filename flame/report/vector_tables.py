"""The tables that answer the question: the two clustering vectors, compared on equal updates and by their own runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from operator import attrgetter

import numpy as np

from flame.report.contrasts import PER_CENT, PLAIN, Contrast, Unit, Values, contrast_table, extent, finished, lacking
from flame.report.markup import Rows
from flame.report.recipes import Plan
from flame.report.records import Kind, Line
from flame.report.statistics import partial_correlation, wilson_interval
from flame.report.vectors import BLOCKS, VECTORS, VectorLine

Records = Sequence[VectorLine]
DEFENSES = ("fedavg", *(f"flame_{vector}" for vector in VECTORS))
BACKDOORED = 0.5  # BA from which a run counts as backdoored


def rejected(records: Records, plan: Plan) -> Rows:
    """Benign clients that each vector rejects of what averaging is sent: the same updates for both."""
    columns = ["`weights_only` %", "`all_state` %", "floor %"]
    return shadow_table(records, plan, columns, lambda v, r: 1 - getattr(r, f"benign_recall_{v}"), ["floor"], PER_CENT)


def caught(records: Records, plan: Plan) -> Rows:
    """Malicious clients that each vector rejects of them, where there are any."""
    columns = ["`weights_only` %", "`all_state` %"]
    return shadow_table(
        records, under_attack(plan), columns, lambda v, r: getattr(r, f"malicious_recall_{v}"), [], PER_CENT
    )


def agreement(records: Records, plan: Plan) -> Rows:
    """How far the two vectors accept the same clients, beside what chance would give."""
    names = cell_fields(plan)
    rows = []
    for labels, arms in cells(records, plan):
        found = [finished(arms["fedavg"], attrgetter(name)) for name in ("agreement", "agreement_by_chance")]
        rows.append([*labels, *map(PLAIN.estimate, found), counted(found[0], arms["fedavg"], records, plan)])
    return [[*names, "agreement", "by chance", "n"], *rows]


def who(records: Records, plan: Plan) -> Rows:
    """Whether clients with skewed labels are rejected more often."""
    columns = ["`weights_only`", "`all_state`"]
    return shadow_table(records, plan, columns, lambda v, r: getattr(r, f"skew_{v}"), [], PLAIN)


def size(records: Records, plan: Plan) -> Rows:
    """The same with the clients' numbers of images held fixed, and what those alone have to do with it."""
    columns = [*(f"`{v}`, size fixed" for v in VECTORS), *(f"size, `{v}`" for v in VECTORS), "skew and size"]
    beside = [*(f"size_{v}" for v in VECTORS), "skew_size"]

    def fixed(vector: str, record: VectorLine) -> float:
        skew, images = getattr(record, f"skew_{vector}"), getattr(record, f"size_{vector}")
        return partial_correlation(skew, images, record.skew_size)

    return shadow_table(records, plan, columns, fixed, beside, PLAIN)


def defended(records: Records, plan: Plan, metric: str) -> Rows:
    """A share of the runs that each vector defended, with averaging beside them."""
    contrasts = []
    for labels, arms in cells(records, plan):
        averaged, *sides = (finished(arms[defense], attrgetter(metric)) for defense in DEFENSES)
        compared = [arms[defense] for defense in DEFENSES[1:]]
        contrasts.append(contrast(labels, sides, [averaged], compared, seeds(records, plan)))
    columns = ["`flame_weights_only` %", "`flame_all_state` %", "`fedavg` %"]
    return contrast_table(cell_fields(plan), columns, contrasts, PER_CENT)


def defended_under_attack(records: Records, plan: Plan, metric: str) -> Rows:
    """The same of a share that is undefined without an attack."""
    return defended(records, under_attack(plan), metric)


def backdoored(records: Records, plan: Plan) -> Rows:
    """In how many of the runs the backdoor got through, with Wilson's interval for the share."""
    rows = []
    for labels, arms in cells(records, under_attack(plan)):
        runs = [finished(arms[defense], attrgetter("ba")) for defense in DEFENSES]
        missing = lacking(list(arms.values()), seeds(records, plan))
        whole = len(seeds(records, plan)) - sum(missing.values())
        rows.append([*labels, *map(through, runs), extent(whole, missing)])
    return [[*cell_fields(plan), *(f"`{defense}`" for defense in DEFENSES), "n"], *rows]


def through(runs: Values) -> str:
    """`2 of 6 [10, 70] %`."""
    known = [value for value in runs.values() if not np.isnan(value)]
    hit = sum(value > BACKDOORED for value in known)
    low, high = wilson_interval(hit, len(known))
    return f"{hit} of {len(known)} [{100 * low:.0f}, {100 * high:.0f}] %" if known else "-"


def blocks(records: Records, plan: Plan) -> Rows:
    """What each block of the model adds to the distances between the clients that averaging is sent."""
    rows = []
    for labels, arms in cells(records, plan):
        found = [finished(arms["fedavg"], attrgetter(f"distance_share_{block}")) for block in BLOCKS]
        head = finished(
            arms["fedavg"], lambda r: r.distance_share_head / (r.distance_share_head + r.distance_share_trunk)
        )
        shares = map(PER_CENT.estimate, (*found, head))
        rows.append([*labels, *shares, counted(found[0], arms["fedavg"], records, plan)])
    return [[*cell_fields(plan), *(f"{block} %" for block in BLOCKS), "head in `weights_only` %", "n"], *rows]


def shadow_table(
    records: Records,
    plan: Plan,
    columns: Sequence[str],
    value: Callable[[str, VectorLine], float],
    beside: Sequence[str],
    unit: Unit,
) -> Rows:
    """A contrast of the two vectors' verdicts on the updates of averaging's runs, for each cell of the plan."""
    contrasts = []
    for labels, arms in cells(records, plan):
        arm = arms["fedavg"]
        sides = [finished(arm, partial(value, vector)) for vector in VECTORS]
        others = [finished(arm, attrgetter(name)) for name in beside]
        contrasts.append(contrast(labels, sides, others, [arm], seeds(records, plan)))
    return contrast_table(cell_fields(plan), columns, contrasts, unit)


def contrast(
    labels: tuple[str, ...],
    sides: Sequence[Values],
    beside: Sequence[Values],
    arms: Sequence[Sequence[Line]],
    all_: Sequence[int],
) -> Contrast:
    """Of one cell, with what it lacks."""
    missing = lacking(arms, all_)
    found = Contrast(labels, (sides[0], sides[1]), tuple(beside), missing)
    missing["undefined"] = len(all_) - sum(missing.values()) - len(found.differences)
    return found


def cells(records: Sequence[Kind], plan: Plan) -> Iterator[tuple[tuple[str, ...], dict[str, Sequence[Kind]]]]:
    """The labels of each planned cell, and its runs by defense."""
    names = cell_fields(plan)
    for labels in product(*(plan[name] for name in names)):
        here = [record for record in records if tuple(getattr(record, name) for name in names) == labels]
        yield labels, {defense: [record for record in here if record.defense == defense] for defense in plan["defense"]}


def cell_fields(plan: Plan) -> list[str]:
    """What is swept beside seed and defense."""
    return [name for name in plan if name not in ("seed", "defense")]


def under_attack(plan: Plan) -> Plan:
    """The plan without the cells that have no attack, whose BA and malicious recall are undefined."""
    return {name: tuple(v for v in values if name != "attack" or v != "none") for name, values in plan.items()}


def seeds(records: Sequence[Line], plan: Plan) -> list[int]:
    """The planned ones, and others that were run."""
    return sorted({*map(int, plan["seed"]), *(record.seed for record in records)})


def counted(values: Values, arm: Sequence[Line], records: Sequence[Line], plan: Plan) -> str:
    """How many seeds have a value, and what became of the others."""
    missing, known = lacking([arm], seeds(records, plan)), sum(not np.isnan(value) for value in values.values())
    missing["undefined"] = len(values) - known
    return extent(known, missing)
