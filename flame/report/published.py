"""The tables of README.md and RESULTS.md, written from `results/` and never by hand.

A table is the runs of a recipe that belong to it, what results/<table>.csv says of each, and blocks of rows made from
that file alone: each goes between two marks of a document, and to results/tables/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from flame.report.ablation_tables import ablations
from flame.report.accuracy_tables import COMPARED, attacks, defenses
from flame.report.admissions import AblationLine, AttackLine, EvasionLine
from flame.report.attack_tables import evasion, evasion_across, later_attacks, strongest
from flame.report.contrasts import BOOTSTRAP
from flame.report.markup import Rows, comma_separated, latex, markdown
from flame.report.preset_tables import preset_pairs, presets
from flame.report.recipes import Plan, options, own_identity, plan
from flame.report.records import Line, read, write
from flame.report.runs import Cell
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

ROOT = Path(__file__).resolve().parents[2]
LAST = "In per cent, mean of the last {mean_of_last} of {rounds} rounds"
SHARES = "In per cent, mean over all {rounds} rounds"
INDICES = "Mean over all {rounds} rounds"
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
PRESETS = {
    "presets": Block(presets, LAST + "; agreement over all rounds"),
    "preset_pairs": Block(preset_pairs, INDICES),
}
ATTACKS, DEFENSES = {"attacks": Block(attacks, LAST)}, {"defenses": Block(defenses, LAST)}
STRONGEST = {"strongest": Block(strongest, LAST + "; ranked by the mean MA - BA in percentage points")}
LATER = {
    "later_attacks": Block(
        later_attacks,
        LAST + "; malicious admitted: of all rounds; the largest mean BA under either vector first",
    )
}
EVADED = "In per cent; BA: mean of the last {mean_of_last} of {rounds} rounds; malicious admitted: of all rounds. "
EVASION = {
    "evasion": Block(
        evasion,
        EVADED + "Each vector faces the attacker who adapts to it, with the same budget of distance, in that vector and"
        " in units of the distance between benign clients: above 0, `weights_only` is easier to evade at the same"
        " stealth",
    ),
    "evasion_across": Block(evasion_across, EVADED + "One attacker faces both vectors"),
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
    "crafted": Table("crafted_digits", "RESULTS.md", VectorLine, CRAFTED, planned),
    "norms": Table("norms", "RESULTS.md", VectorLine, NORMS, planned),
    "presets": Table("presets", "RESULTS.md", PresetLine, PRESETS, exactly),
    "evasion": Table("evasion_digits", "RESULTS.md", EvasionLine, EVASION, exactly),
    "strongest": Table("strongest_digits", "README.md", AttackLine, STRONGEST, exactly),
    "later_attacks": Table("later_attacks_digits", "README.md", AttackLine, LATER, exactly),
    "ablations": Table("ablations_digits", "RESULTS.md", AblationLine, {"ablations": IDEAS}, exactly),
    "durability": Table("durability_digits", "RESULTS.md", AblationLine, {"durability": IDEAS}, exactly),
}


def publish(name: str, cells: Iterable[Cell], root: Path = ROOT, with_latex: bool = False, add: bool = False) -> None:
    """Write results/<name>.csv from runs, and all that is made from it; with `add` its lines of other runs stay.

    Raises:
        ValueError: two runs would be one line of the table, or a document lacks a table's marks.
    """
    table, swept = TABLES[name], plan(TABLES[name].recipe)
    given = options(table.recipe).items()
    runs = [(run, cell.labels) for cell in cells for run in cell.runs if given <= run.choices.items()]
    records = [table.kind.of(run, labels) for run, labels in runs]
    records = [record for record in records if table.belongs(record, swept)]
    key = attrgetter(*dict.fromkeys(("attack", *swept)))  # what tells one run of the table from another
    places = Counter(map(key, records))
    records = [r for r in records if places[key(r)] == 1 or r.identity == own_identity(table.recipe, r)]
    kept = Counter(map(key, records))
    if unclear := [place for place in places if kept[place] != 1]:
        raise ValueError(f"table {name}: several runs of {unclear[0]}: give the folder of the recipe's runs alone")
    path = root / "results" / f"{name}.csv"
    before = {key(record): record for record in read(path, table.kind)} if add else {}
    everything = before | {key(r): r for r in records if r.state_sha256 or key(r) not in before}  # finished ones stay
    write(path, table.kind, [everything[place] for place in sorted(everything)])
    for path, content in derived(name, root, with_latex).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def outdated(root: Path = ROOT, names: Iterable[str] = TABLES) -> list[str]:
    """A sentence about every file that differs from what `results/` says."""
    return [
        f"{path.relative_to(root)} differs from results/{name}.csv: python -m flame.report RUNS --table {name}"
        for name in names
        for path, content in derived(name, root).items()
        if not path.exists() or path.read_text() != content
    ]


def derived(name: str, root: Path = ROOT, with_latex: bool = False) -> dict[Path, str]:
    """Every file that is made from results/<name>.csv, and what it must hold; LaTeX where asked for, or there."""
    table, swept = TABLES[name], plan(TABLES[name].recipe)
    records = read(root / "results" / f"{name}.csv", table.kind)
    document, files = root / table.document, {}
    text = document.read_text()
    for mark, block in table.blocks.items():
        if not any(record.state_sha256 for record in records):  # a sentence instead of rows of dashes
            text = spliced(text, mark, caption(name, block.caption, records), table.document)
            continue
        rows = block.rows(records, swept)
        shown = without(rows, BOOTSTRAP)
        text = spliced(text, mark, f"{markdown(shown)}\n\n{caption(name, block.caption, records)}", table.document)
        files[root / "results" / "tables" / f"{mark}.csv"] = comma_separated(rows)
        if with_latex or (root / "results" / "tables" / f"{mark}.tex").exists():
            files[root / "results" / "tables" / f"{mark}.tex"] = latex(shown)
    return {document: text, **files}


def without(rows: Rows, column: str) -> Rows:
    """The rows without one column, which only the CSV shows."""
    hidden = {i for i, name in enumerate(rows[0]) if name == column}
    return [[cell for i, cell in enumerate(row) if i not in hidden] for row in rows]


def caption(name: str, numbers: str, records: Sequence[Line]) -> str:
    """What the numbers are, seeds, commit and the two commands."""
    done = [record for record in records if record.state_sha256]
    command = (
        f"`python train.py --config-name {TABLES[name].recipe}`, then `python -m flame.report runs --table {name}`"
    )
    if not done:
        return f"Not run yet: {command}."

    def each(field: str) -> str:
        return ", ".join(str(value) for value in sorted({getattr(record, field) for record in done}))

    commits = ", ".join(sorted({record.commit[:7] for record in done}))
    what = numbers.format(mean_of_last=each("mean_of_last"), rounds=each("rounds"))
    return f"{what}; seed {each('seed')}; commit {commits}. {command}; its runs are in `results/{name}.csv`."


def spliced(text: str, mark: str, content: str, document: str) -> str:
    """A document with the content between `<!-- table: MARK -->` and `<!-- end: MARK -->` replaced.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = f"<!-- table: {mark} -->\n", f"\n<!-- end: {mark} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no marks {start.strip()} and {end.strip()}: put them where the table goes")
    return f"{before}{start}{content}{end}{after}"
