"""Accuracies and filter over one setting or several: the recipes `figure_*`, `components*` and `zhmzm*`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from operator import attrgetter
from typing import Any, Self

from flame.report.accuracy_tables import accuracies, share
from flame.report.contrasts import PER_CENT, averaged, extent, finished, lacking, unpooled_table
from flame.report.markup import Rows
from flame.report.recipes import Plan, field_of
from flame.report.records import Line, common
from flame.report.vector_tables import DEFENSES, cell_fields, cells, contrast, seeds
from flame.run.record import RunRecord

SETTINGS = {
    "poisoned_model_rate": "PMR",
    "attack.poisoned_data_rate": "PDR",
    "partition.q": "q",
    "defense.noise.factor": "lambda",
    "clients_per_round": "clients a round",
    "defense.cluster.min_cluster_size": "clustering",
    "defense.clip.apply_to": "clipping",
}  # key of the config -> its name in a table
NAMES = {field_of(key): name for key, name in SETTINGS.items()}
STEPS = NAMES | {"factor": "noise"}  # where it is on or off
SHARES = {
    "ma": "MA %",
    "ba": "BA %",
    "benign_recall": "benign accepted %",
    "malicious_recall": "malicious rejected %",
}
OFF = {"min_cluster_size": "0", "apply_to": "nothing", "factor": "0"}  # FLAME's steps -> what leaves them out


@dataclass(frozen=True)
class SettingLine(Line):
    """Of a run, with the settings that a recipe may sweep, as its YAML writes them; `-` where a part has none."""

    partition: str
    poisoned_model_rate: str
    poisoned_data_rate: str
    q: str
    factor: str
    clients_per_round: str
    min_cluster_size: str
    apply_to: str

    @classmethod
    def of(cls, run: RunRecord) -> Self:
        """The line of a run."""
        settings = {field_of(key): written(run.settings.get(key, "-")) for key in SETTINGS}
        return cls(**common(run) | settings | {"partition": run.choices["partition"]})


def written(value: Any) -> str:
    """A value as a recipe writes it: 1 for 1.0, null for None."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def over_settings(records: Sequence[SettingLine], plan: Plan) -> Rows:
    """A row for each planned cell: settings, defense, accuracies, filter."""
    rows = []
    for values, arm in arms(records, plan):
        missing = lacking([arm], seeds(records, plan))
        whole = len(seeds(records, plan)) - sum(missing.values())
        rows.append([*values, *(share(arm, name) for name in SHARES), extent(whole, missing)])
    return [[*(NAMES.get(field, field) for field in plan if field != "seed"), *SHARES.values(), "n"], *rows]


def by_defense(records: Sequence[SettingLine], plan: Plan) -> Rows:
    """A row for each planned setting, MA / BA under each defense beside one another."""
    rows = []
    for labels, arms in cells(records, plan):
        missing = lacking(list(arms.values()), seeds(records, plan))
        whole = len(seeds(records, plan)) - sum(missing.values())
        rows.append([*labels, *map(accuracies, arms.values()), extent(whole, missing)])
    names = [NAMES.get(field, field) for field in cell_fields(plan)]
    return [[*names, *(f"`{name}`: MA / BA" for name in plan["defense"]), "n"], *rows]


def vectors_over_settings(records: Sequence[SettingLine], plan: Plan) -> Rows:
    """For each planned setting and each share, the runs that one vector defended minus those of the other."""
    contrasts = []
    for labels, arms in cells(records, plan):
        for name, shown in SHARES.items():
            averaging, *sides = (finished(arms[defense], attrgetter(name)) for defense in DEFENSES)
            both = [arms[defense] for defense in DEFENSES[1:]]
            row = (*labels, shown.removesuffix(" %"))
            contrasts.append(contrast(row, sides, [averaging], both, seeds(records, plan)))
    columns = [f"`{defense}` %" for defense in (*DEFENSES[1:], DEFENSES[0])]
    names = [NAMES.get(field, field) for field in cell_fields(plan)]
    return unpooled_table([*names, "share"], columns, contrasts, PER_CENT)


def pairs_over_settings(
    records: Sequence[SettingLine], plan: Plan, field: str, pairs: Sequence[tuple[str, str]], shown: Sequence[str]
) -> Rows:
    """For each planned setting, the runs with one value of `field` minus those with another, share by share."""
    others = [other for other in plan if other not in ("seed", field)]
    contrasts = []
    for labels, pair, name in product(product(*(plan[other] for other in others)), pairs, shown):
        here = {other: (label,) for other, label in zip(others, labels, strict=True)}
        found = [runs for value in pair for _, runs in arms(records, {**here, field: (value,)})]
        sides = [finished(runs, attrgetter(name)) for runs in found]
        row = (*labels, " minus ".join(f"`{value}`" for value in pair), SHARES[name].removesuffix(" %"))
        contrasts.append(contrast(row, sides, [], found, seeds(records, plan)))
    names = [NAMES.get(swept, swept) for swept in (*others, field)]
    return unpooled_table([*names, "share"], ["first %", "second %"], contrasts, PER_CENT)


def arms(records: Sequence[SettingLine], plan: Plan) -> Iterator[tuple[tuple[str, ...], list[SettingLine]]]:
    """The values of each planned cell, and its runs."""
    fields = [field for field in plan if field != "seed"]
    for values in product(*(plan[field] for field in fields)):
        yield values, [record for record in records if tuple(getattr(record, field) for field in fields) == values]


def components(records: Sequence[SettingLine], plan: Plan) -> Rows:
    """The same where the settings are FLAME's steps: which of them are on."""
    header, *rows = over_settings(records, plan)
    fields = [field for field in plan if field != "seed"]
    shown = [[*map(step, row, map(OFF.get, fields)), *row[len(fields) :]] for row in rows]
    return [[*(STEPS.get(field, field) for field in fields), *header[len(fields) :]], *shown]


def step_costs(records: Sequence[SettingLine], plan: Plan) -> Rows:
    """What each of FLAME's steps does to MA: runs with it minus runs without, the other steps on and off alike."""
    fields = [field for field in plan if field not in ("seed", *OFF)]
    contrasts = []
    for labels in product(*(plan[field] for field in fields)):
        here = {**plan, **{field: (label,) for field, label in zip(fields, labels, strict=True)}}
        for field in [field for field in plan if field in OFF]:
            on = tuple(value for value in plan[field] if value != OFF[field])
            sides = [[arm for _, arm in arms(records, {**here, field: values})] for values in (on, (OFF[field],))]
            with_it, without = (averaged([finished(arm, attrgetter("ma")) for arm in side]) for side in sides)
            row = (*labels, STEPS[field])
            contrasts.append(contrast(row, [with_it, without], [], list(chain(*sides)), seeds(records, plan)))
    return unpooled_table([*fields, "step"], ["MA with it %", "without %"], contrasts, PER_CENT)


def step(value: str, left_out: str | None) -> str:
    """Whether a step is there; what is none stays as it is."""
    return value if left_out is None else "no" if value == left_out else "yes"
