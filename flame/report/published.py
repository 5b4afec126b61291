"""The tables of README.md and RESULTS.md (`catalogue`), written from `results/` and never by hand.

A table is the runs of a recipe that belong to it, what results/<table>.csv says of each, and blocks of rows made from
that file alone: each goes between two marks of a document, and to results/tables/.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from flame.report.catalogue import TABLES
from flame.report.contrasts import BOOTSTRAP
from flame.report.markup import Rows, comma_separated, latex, markdown
from flame.report.recipes import options, other_settings, own_identity, plan
from flame.report.records import Line, csv_of, read, records_of
from flame.run.record import Cell

ROOT = Path(__file__).resolve().parents[2]


def publish(
    name: str, cells: Iterable[Cell], root: Path = ROOT, with_latex: bool = False, add: bool = False
) -> list[str]:
    """Write results/<name>.csv from runs, and all that is made from it; with `add` its lines of other runs stay.

    A sentence about each run that took no place, because a finished one of other rounds, or another one, has it.

    Raises:
        ValueError: as `own_lines`, or a document lacks a table's marks. Nothing was written then.
    """
    table, place = TABLES[name], place_in(name)
    path = root / "results" / f"{name}.csv"
    before = {place(record): record for record in read(path, table.kind)} if add else {}
    given = {place(record): record for record in own_lines(name, cells)}
    stay = {at for at, old in before.items() if at in given and not supersedes(given[at], old, table.recipe)}
    everything = {**before, **{at: record for at, record in given.items() if at not in stay}}
    text = csv_of(table.kind, [everything[at] for at in sorted(everything)])
    files = derived(name, records_of(text, table.kind), root, with_latex)  # of what is on file, with its digits
    for file, content in {path: text, **files}.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    why = "unfinished, of uncommitted code or not in the recipe's own rounds, and another is published there"
    return [f"table {name}: {' '.join(map(str, at))} is left out: {why}" for at in sorted(stay)]


def supersedes(new: Line, old: Line, recipe: str) -> bool:
    """Whether a run takes the place of one that is published: a finished one of no worse origin.

    Not of a finished one's: a trial in other rounds, and uncommitted code where the published run is of a commit.
    """
    unknown = ("+", "?")  # code of no commit
    worse = new.commit.endswith(unknown) > old.commit.endswith(unknown) or new.identity != own_identity(recipe, new)
    return bool(new.state_sha256) and not (old.state_sha256 and worse)


def place_in(name: str) -> Callable[[Line], Any]:
    """What tells one line of the table from another: the attack and what its recipe sweeps."""
    return attrgetter(*dict.fromkeys(("attack", *plan(TABLES[name].recipe))))


def own_lines(name: str, cells: Iterable[Cell]) -> list[Line]:
    """Lines of those runs that are the recipe's; where two have one place, of the one with its very identity.

    Raises:
        ValueError: no run is the recipe's, or two runs of one place are.
    """
    table, swept = TABLES[name], plan(TABLES[name].recipe)
    given = options(table.recipe).items()
    lines = [(run, table.kind.of(run)) for cell in cells for run in cell.runs if given <= run.choices.items()]
    lines = [(run, line) for run, line in lines if table.belongs(line, swept)]
    others = {run.folder: other_settings(table.recipe, line, run.config) for run, line in lines}
    records = [line for run, line in lines if not others[run.folder]]
    if not records:  # the lines that are there would be lost
        example = "".join(f"; {folder.name}: {ways[0]}" for folder, ways in list(others.items())[:1])
        raise ValueError(f"table {name}: no run is one of `train.py --config-name {table.recipe}`{example}")
    place = place_in(name)
    rivals = Counter(map(place, records))
    records = [r for r in records if rivals[place(r)] == 1 or r.identity == own_identity(table.recipe, r)]
    kept = Counter(map(place, records))
    if unclear := [at for at in rivals if kept[at] != 1]:
        raise ValueError(f"table {name}: several runs of {unclear[0]}: give the folder of the recipe's runs alone")
    return records


def outdated(root: Path = ROOT, names: Iterable[str] = TABLES) -> list[str]:
    """A sentence about every file that differs from what `results/` says, and about tables that nothing makes.

    Raises:
        ValueError: a document lacks a table's marks.
    """
    made = {name: derived(name, read(root / "results" / f"{name}.csv", TABLES[name].kind), root) for name in names}
    marks = {(table.document, mark) for table in TABLES.values() for mark in table.blocks}
    stems = {mark for _, mark in marks}
    return [
        *(
            f"{path.relative_to(root)} differs from results/{name}.csv: python -m flame.report RUNS --table {name}"
            for name, files in made.items()
            for path, content in files.items()
            if not path.exists() or path.read_text() != content
        ),
        *(
            f"{path.relative_to(root)} belongs to no table: delete it"
            for path in sorted((root / "results" / "tables").glob("*"))
            if path.stem not in stems
        ),
        *(
            f"{document} has marks of a table {mark}, which does not exist: delete what is between them"
            for document in sorted({TABLES[name].document for name in names})
            for mark in re.findall(r"^<!-- table: (.+) -->$", (root / document).read_text(), re.MULTILINE)
            if (document, mark) not in marks
        ),
    ]


def derived(name: str, records: Sequence[Line], root: Path = ROOT, with_latex: bool = False) -> dict[Path, str]:
    """Every file that is made from the lines of results/<name>.csv, and what it must hold.

    LaTeX where asked for, or there.
    """
    table, swept = TABLES[name], plan(TABLES[name].recipe)
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

    commits = ", ".join(sorted({record.commit[:7] + "+" * record.commit.endswith("+") for record in done}))
    what = numbers.format(mean_of_last=each("mean_of_last"), rounds=each("rounds"))
    return f"{what}; seed {each('seed')}; commit {commits}. {command}; its runs are in `results/{name}.csv`."


def spliced(text: str, mark: str, content: str, document: str) -> str:
    """A document with the content between `<!-- table: MARK -->` and `<!-- end: MARK -->` replaced.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = f"<!-- table: {mark} -->\n", f"<!-- end: {mark} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no marks {start.strip()} and {end}: put them where the table goes")
    return f"{before}{start}{content}\n{end}{after}"
