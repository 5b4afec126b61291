"""The tables of README.md and RESULTS.md (`catalogue`), written from `results/` and never by hand.

A table is the runs of a recipe that belong to it, what results/<table>.csv says of each, and blocks of rows made from
that file alone: each goes between two marks of a document, and to results/tables/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from flame.report.catalogue import TABLES
from flame.report.contrasts import BOOTSTRAP
from flame.report.markup import Rows, comma_separated, latex, markdown
from flame.report.recipes import options, other_settings, own_identity, plan
from flame.report.records import Line, read, write
from flame.report.runs import Cell

ROOT = Path(__file__).resolve().parents[2]


def publish(name: str, cells: Iterable[Cell], root: Path = ROOT, with_latex: bool = False, add: bool = False) -> None:
    """Write results/<name>.csv from runs, and all that is made from it; with `add` its lines of other runs stay.

    Raises:
        ValueError: as `own_lines`, or a document lacks a table's marks.
    """
    table, place = TABLES[name], place_in(name)
    path = root / "results" / f"{name}.csv"
    before = {place(record): record for record in read(path, table.kind)} if add else {}
    given = {place(record): record for record in own_lines(name, cells)}
    everything = before | {at: r for at, r in given.items() if r.state_sha256 or at not in before}  # finished ones stay
    write(path, table.kind, [everything[at] for at in sorted(everything)])
    for path, content in derived(name, root, with_latex).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


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

    commits = ", ".join(sorted({record.commit[:7] + "+" * record.commit.endswith("+") for record in done}))
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
