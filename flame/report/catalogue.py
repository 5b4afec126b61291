"""Which tables README.md and RESULTS.md have: the runs of a recipe that belong to each, and what is shown of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flame.report.ablation_tables import ablations
from flame.report.accuracy_tables import COMPARED, attacks, defenses
from flame.report.admissions import AblationLine, AttackLine, EvasionLine
from flame.report.attack_tables import evasion, evasion_across, later_attacks, strongest
from flame.report.markup import Rows
from flame.report.preset_tables import preset_pairs, presets
from flame.report.recipes import Plan, plan
from flame.report.records import Line
from flame.report.setting_tables import (
    SettingLine,
    by_defense,
    components,
    over_settings,
    pairs_over_settings,
    step_costs,
    vectors_over_settings,
)
from flame.report.vector_tables import (
    agreement,
    backdoored,
    blocks,
    caught,
    defended,
    defended_under_attack,
    rejected,
    size,
    who,
)
from flame.report.vectors import PresetLine, VectorLine

LAST = "In per cent, mean of the last {mean_of_last} of {rounds} rounds"
SHARES = "In per cent, mean over all {rounds} rounds"
INDICES = "Mean over all {rounds} rounds"
EVADED = "In per cent; BA: mean of the last {mean_of_last} of {rounds} rounds; malicious admitted: of all rounds. "
OVER_SETTINGS = (
    "figure_pmr",
    "figure_pdr",
    "figure_pdr_equal",
    "figure_non_iid",
    "figure_noise",
    "figure_clients",
    "zhmzm",
    "zhmzm_fashion",
)  # recipes, and the tables made of them
BY_VECTOR = (
    "figure_non_iid_equal",
    "dominant_label",
    "poison_or_skew",
    "all_poisoned",
    "all_poisoned_digits",
    "forged_statistics",
)  # likewise, with the vectors compared by seed
RANKS = "Rank correlations over clients, of all {rounds} rounds"


@dataclass(frozen=True)
class Block:
    """One table as it is printed."""

    rows: Callable[[Any, Plan], Rows]  # header and rows, from the records
    caption: str  # what the numbers are, with fields of the records in braces


@dataclass(frozen=True)
class Table:
    """What is made of one recipe's runs."""

    recipe: str
    document: str
    kind: type[Line]
    blocks: Mapping[str, Block]
    belongs: Callable[[Line, Plan], bool]  # whether a run is one of its


def planned(record: Line, swept: Plan) -> bool:
    """Whether the recipe's sweep has such a run, whatever the seed."""
    return all(getattr(record, name) in values for name, values in swept.items() if name != "seed")


def exactly(record: Line, swept: Plan) -> bool:
    """Whether the recipe's sweep has this run: for a table whose rule names its seeds."""
    return planned(record, swept) and str(record.seed) in swept["seed"]


def question(prefix: str) -> dict[str, Block]:
    """The blocks of the question on one data set."""
    through = "Runs whose BA, mean of the last {mean_of_last} of {rounds} rounds, is over 50 %"
    found = {
        "rejected": Block(rejected, SHARES),
        "agreement": Block(agreement, INDICES),
        "who": Block(who, RANKS),
        "size": Block(size, RANKS),
        "defended_ma": Block(partial(defended, metric="ma"), LAST),
        "defended_ba": Block(partial(defended_under_attack, metric="ba"), LAST),
        "defended_malicious_recall": Block(partial(defended_under_attack, metric="malicious_recall"), LAST),
        "backdoored": Block(backdoored, through),
        "blocks": Block(blocks, SHARES),
        "caught": Block(caught, SHARES),
    }
    return {prefix + mark: block for mark, block in found.items()}


def asked(prefix: str, *marks: str) -> dict[str, Block]:
    """Those blocks of the question that have these marks."""
    return {prefix + mark: block for mark, block in question("").items() if mark in marks}


def evaded(mark: str) -> dict[str, Block]:
    """The blocks of an attacker who knows FLAME, on one data set."""
    fair = (
        "Each vector faces the attacker who adapts to it, with the same budget of distance, in that vector and in units"
        " of the distance between benign clients: above 0, the same budget lets more through with `weights_only`"
    )
    return {
        mark: Block(evasion, EVADED + fair),
        f"{mark}_across": Block(evasion_across, EVADED + "One attacker faces both vectors"),
    }


def both_vectors(name: str) -> Table:
    """The same, and the two vectors' runs compared by seed, share by share."""
    blocks = {name: Block(over_settings, LAST), f"{name}_vectors": Block(vectors_over_settings, LAST)}
    if "0" in plan(name).get("poisoned_data_rate", ()):
        blocks |= poisoned(f"{name}_poison")
    return Table(name, "RESULTS.md", SettingLine, blocks, exactly)


def poisoned(mark: str) -> dict[str, Block]:
    """What the poison does, beside the same clients with PDR 0."""
    rates, shares = [("0.5", "0")], ("ma", "ba", "malicious_recall")
    return {mark: Block(partial(pairs_over_settings, field="poisoned_data_rate", pairs=rates, shown=shares), LAST)}


def settings(name: str, rows: Callable[[Any, Plan], Rows]) -> Table:
    """The table of a recipe that sweeps settings, which has its name."""
    return Table(name, "RESULTS.md", SettingLine, {name: Block(rows, LAST)}, exactly)


NORMS = {
    "norms_rejected": Block(rejected, SHARES),
    "norms_agreement": Block(agreement, INDICES),
    "norms_ma": Block(partial(defended, metric="ma"), LAST),
    "norms_ba": Block(partial(defended_under_attack, metric="ba"), LAST),
}
CRAFTED = {
    "crafted_caught": Block(caught, SHARES),
    "crafted_ma": Block(partial(defended, metric="ma"), LAST),
}
UNDER_ATTACK = ("caught", "defended_ma", "defended_ba", "defended_malicious_recall", "backdoored")
PRESETS = {
    "presets": Block(presets, LAST + "; agreement over all rounds"),
    "preset_pairs": Block(preset_pairs, INDICES),
}
ATTACKS, DEFENSES = {"attacks": Block(attacks, LAST)}, {"defenses": Block(defenses, LAST)}
STRONGEST = {"strongest": Block(strongest, LAST + "; ranked by the mean MA - BA in percentage points")}
LATER = Block(
    later_attacks, LAST + "; malicious admitted: of all rounds; the largest mean BA under either vector first"
)
SKEWED = {
    "step_costs": Block(step_costs, LAST + ", and over the ways to have the other step on or off"),
    "components_skewed": Block(components, LAST),
}
COUNT_OR_CHOICE = (
    ("majority_drawn", "fedavg"),  # what so few clients cost, whoever they are
    ("majority_shortest", "majority_drawn"),  # and what it costs who they are
    ("flame_weights_only", "majority_drawn"),
    ("flame_weights_only", "fedavg"),
)
COUNTED = {
    "count_or_choice": Block(over_settings, LAST),
    "count_or_choice_pairs": Block(
        partial(pairs_over_settings, field="defense", pairs=COUNT_OR_CHOICE, shown=("ma",)), LAST
    ),
}
IDEAS = Block(
    ablations,
    "In per cent; BA under attack: mean of its last {mean_of_last} rounds; BA afterwards: of all rounds after its stop;"
    " malicious admitted: of all its rounds; {rounds} rounds in all. Differences are the attack's value minus its"
    " control's, *expected* is what its paper leads one to expect of them",
)
TABLES = {
    "attacks": Table("table_attacks", "README.md", Line, ATTACKS, lambda run, _: run.defense in COMPARED),
    "defenses": Table(
        "table_defenses", "README.md", Line, DEFENSES, lambda run, _: run.attack == "constrain_and_scale"
    ),
    "vector_question": Table("vector_question", "RESULTS.md", VectorLine, question(""), planned),
    "vector_question_digits": Table("vector_question_digits", "RESULTS.md", VectorLine, question("digits_"), planned),
    "vector_question_equal": Table(
        "vector_question_equal", "RESULTS.md", VectorLine, asked("equal_", "rejected", *UNDER_ATTACK), planned
    ),
    "shrunk": Table("shrunk", "RESULTS.md", VectorLine, asked("shrunk_", *UNDER_ATTACK), exactly),
    "shrunk_digits": Table("shrunk_digits", "RESULTS.md", VectorLine, asked("shrunk_digits_", *UNDER_ATTACK), exactly),
    "crafted": Table("crafted_digits", "RESULTS.md", VectorLine, CRAFTED, planned),
    "norms": Table("norms", "RESULTS.md", VectorLine, NORMS, planned),
    "presets": Table("presets", "RESULTS.md", PresetLine, PRESETS, exactly),
    "evasion": Table("evasion_digits", "RESULTS.md", EvasionLine, evaded("evasion"), exactly),
    "strongest": Table("strongest_digits", "README.md", AttackLine, STRONGEST, exactly),
    "later_attacks": Table("later_attacks_digits", "README.md", AttackLine, {"later_attacks": LATER}, exactly),
    "later_attacks_equal": Table(
        "later_attacks_equal_digits", "README.md", AttackLine, {"later_attacks_equal": LATER}, exactly
    ),
    "ablations": Table("ablations_digits", "RESULTS.md", AblationLine, {"ablations": IDEAS}, exactly),
    "masks": Table("masks_wide_digits", "RESULTS.md", AblationLine, {"masks": IDEAS}, exactly),
    "colluders": Table("colluders_digits", "RESULTS.md", AblationLine, {"colluders": IDEAS}, exactly),
    "layers": Table("layers_fashion", "RESULTS.md", AblationLine, {"layers": IDEAS}, exactly),
    "durability": Table("durability_digits", "RESULTS.md", AblationLine, {"durability": IDEAS}, exactly),
    "durability_fashion": Table(
        "durability_fashion", "RESULTS.md", AblationLine, {"durability_fashion": IDEAS}, exactly
    ),
    "durability_rates": Table(
        "durability_rates_digits", "RESULTS.md", AblationLine, {"durability_rates": IDEAS}, exactly
    ),
    "adaptive": Table("adaptive", "RESULTS.md", EvasionLine, evaded("adaptive"), exactly),
    "components": settings("components", components),
    "phases": Table("phases_digits", "RESULTS.md", SettingLine, {"phases": Block(by_defense, LAST)}, exactly),
    "components_skewed": Table("components_skewed", "RESULTS.md", SettingLine, SKEWED, exactly),
    "count_or_choice": Table("count_or_choice", "RESULTS.md", SettingLine, COUNTED, exactly),
    **{name: both_vectors(name) for name in BY_VECTOR},
    **{name: settings(name, over_settings) for name in OVER_SETTINGS},
}
