"""The tables of the documents, written from `results/` and never by hand.

A table goes between `<!-- table: NAME -->` and `<!-- end: NAME -->`, wherever these stand in README.md, RESULTS.md or
docs/, and to results/tables/NAME.csv.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from flame.report.contrasts import MIXED
from flame.report.markup import comma_separated, latex, markdown
from flame.report.recipes import Recipe, recipes, tables
from flame.report.records import COLUMNS, PLACE, csv_of, frame, line, parsed, place, read
from flame.report.tables import table
from flame.round.checkpoint import write_atomically
from flame.run.record import Cell

ROOT = Path(__file__).resolve().parents[2]
MARKS = re.compile(r"^<!-- table: (?P<name>.+?) -->\n(?P<text>.*?)^<!-- end: (?P=name) -->$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"^<!-- table: (.+?) -->$", re.MULTILINE)
Line = Mapping[str, Any]


def publish(name: str, cells: Iterable[Cell], root: Path = ROOT, drop: bool = False, tex: bool = False) -> list[str]:
    """Write runs into results/<name>.csv, beside the lines of others, and all that is made from it; what has changed.

    Other records' runs of its very config and code, too. `drop`: lines whose run is not given go. `tex`: LaTeX, too.

    Raises:
        ValueError: there is no such recipe, no run is its own, two runs of one place are, a published line would be
            lost without `drop`, or a table's marks stand in no document. Nothing was written then.
    """
    if name not in (known := recipes()):
        raise ValueError(f"there is no recipe {name}: known are {', '.join(known)}")
    recipe, path = known[name], root / "results" / f"{name}.csv"
    own, others = own_lines(recipe, cells)
    before, given = by_place(read(path)), by_place(frame(own))
    stray = [at for at, old in before.items() if not planned(recipe, old)]
    if stray and not drop:
        raise ValueError(
            f"{path} has {len(stray)} lines of no cell of the recipe, such as {words(stray[0])}: --drop leaves out all"
            " lines whose run is not given"
        )
    news = [at for at in before if at in given and differ(given[at], before[at])]
    stay = [at for at in news if not supersedes(given[at], before[at], recipe)]
    after = given | {at: old for at, old in before.items() if at in stay or (at not in given and not drop)}
    after |= {} if drop else shared(known, recipe, root, after)
    text = csv_of(pd.DataFrame(list(after.values()), columns=list(COLUMNS)))
    write({path: text, **derived(known, [name], {name: parsed(text)}, root, tex)})
    return [*changes(path, before, after, stay), *(f"left out: {sentence}" for sentence in others)]


def rewrite(root: Path = ROOT) -> list[str]:
    """Make everything anew from results/; the files that have changed."""
    known = recipes()
    made = derived(known, known, {name: read(root / "results" / f"{name}.csv") for name in known}, root)
    differing = {path: text for path, text in made.items() if not path.exists() or path.read_text() != text}
    write(differing)
    return [f"rewritten: {path.relative_to(root)}" for path in differing]


def write(files: Mapping[Path, str]) -> None:
    """Each with its content, in one step."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())


def changes(path: Path, before: Mapping[Any, Line], after: Mapping[Any, Line], stay: Iterable[Any]) -> list[str]:
    """What became of the lines, in words."""
    both = [at for at in before if at in after]
    replaced = [at for at in both if differ(before[at], after[at])]
    other = sum(before[at]["state_sha256"] != after[at]["state_sha256"] for at in replaced)
    why = "unfinished, of uncommitted code or not in the recipe's own rounds, and another is published there"
    return [
        f"{path}: {len(after) - len(both)} lines added, {len(replaced)} replaced ({other} with another final model),"
        f" {len(both) - len(replaced)} kept, {len(before) - len(both)} dropped",
        *(f"dropped: {words(at)}" for at in before if at not in after),
        *(f"left out: {words(at)}: {why}" for at in sorted(stay)),
    ]


def differ(one: Line, other: Line) -> bool:
    """Whether two lines are of different runs."""
    return any(one[column] != other[column] for column in ("state_sha256", "identity", "commit", "code"))


def supersedes(new: Line, old: Line, recipe: Recipe) -> bool:
    """Whether a run takes the place of one that is published: a finished one of no worse origin.

    Not of a finished one's: a trial in other rounds, and uncommitted code where the published run is of a commit.
    """
    unknown = ("+", "?")  # code of no commit
    worse = new["commit"].endswith(unknown) > old["commit"].endswith(unknown)
    worse = worse or new["identity"] != recipe.own_identity(new)
    return bool(new["state_sha256"]) and not (old["state_sha256"] and worse)


def by_place(lines: pd.DataFrame) -> dict[tuple[Any, ...], Any]:
    """Lines by what tells one from another."""
    return {tuple(one[column] for column in PLACE): one for one in lines[list(COLUMNS)].to_dict("records")}


def words(at: Iterable[Any]) -> str:
    """What stands for a place."""
    return " ".join(str(part) for part in at if part != "")


def planned(recipe: Recipe, one: Line) -> bool:
    """Whether the recipe's sweep has such a line."""
    values = {**one, **dict(word.partition("=")[::2] for word in str(one["settings"]).split())}
    return all(str(values.get(key)) in swept for key, swept in recipe.plan.items())


def shared(known: Iterable[str], recipe: Recipe, root: Path, taken: Mapping[Any, Line]) -> dict[tuple[Any, ...], Any]:
    """By place, other records' finished runs of the recipe's very config, and of the code of a line that is `taken`."""
    whole = pd.concat([read(root / "results" / f"{name}.csv") for name in known if name != recipe.name])
    codes = {one["code"] for one in taken.values()} - {""}  # other code's runs are never pooled by accident
    whole = whole[(whole["state_sha256"] != "") & whole["code"].isin(codes)]
    found = ((tuple(one[c] for c in PLACE), one) for one in whole.to_dict("records"))
    asked = [(at, one) for at, one in found if at not in taken and planned(recipe, one)]
    return {at: one for at, one in asked if one["identity"] == recipe.own_identity(one)}


def own_lines(recipe: Recipe, cells: Iterable[Cell]) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of those runs that are the recipe's, and a sentence about each other one of its options.

    Where two runs have one place, the one of the recipe's very identity counts. A ValueError if no run is the recipe's,
    or two runs of one place are.
    """
    options = recipe.options.items()
    runs = [(run, place(run, recipe.plan)) for c in cells for run in c.runs if options <= run.choices.items()]
    asked = [(run, at, recipe.other_settings(at, run.config)) for run, at in runs if planned(recipe, at)]
    left_out = [f"{run.folder.name}: {ways[0]}" for run, _, ways in asked if ways]
    own = [(run, at, words(at.values())) for run, at, ways in asked if not ways]
    if not own:
        example = "".join(f"; {sentence}" for sentence in left_out[:1])
        raise ValueError(f"recipe {recipe.name}: no run is one of `train.py --config-name {recipe.config}`{example}")
    rivals = Counter(name for *_, name in own)
    kept = [(run, name) for run, at, name in own if rivals[name] == 1 or run.identity == recipe.own_identity(at)]
    left = Counter(name for _, name in kept)
    if unclear := [name for name in rivals if left[name] != 1]:
        raise ValueError(f"{recipe.name}: several runs of {unclear[0]}: give the folder of the recipe's runs alone")
    return [line(run, recipe.plan, recipe.own.get("also", ())) for run, _ in kept], left_out


def derived(
    known: Mapping[str, Recipe], names: Iterable[str], lines: Mapping[str, pd.DataFrame], root: Path, tex: bool = False
) -> dict[Path, str]:
    """Every file that is made from the lines of these recipes, and what it must hold.

    LaTeX where asked for, or there.
    """
    names, files, texts = set(names), {}, {}
    for mark, (recipe, spec) in tables(known).items():
        if recipe.name not in names:
            continue
        runs = lines[recipe.name]
        if not (runs["state_sha256"] != "").any():  # a sentence instead of rows of dashes
            texts[mark] = f"Not run yet: {commands(recipe)}."
            continue
        made = table(mark, spec, runs, recipe.plan)
        texts[mark] = f"{markdown(made)}\n{caption(recipe, spec['caption'], runs, MIXED in markdown(made))}"
        files[root / "results" / "tables" / f"{mark}.csv"] = comma_separated(made)
        if tex or (root / "results" / "tables" / f"{mark}.tex").exists():
            files[root / "results" / "tables" / f"{mark}.tex"] = latex(made)
    standing = documents(root)
    if lost := sorted(texts.keys() - {found["name"] for text in standing.values() for found in MARKS.finditer(text)}):
        raise ValueError(f"no document has the marks <!-- table: {lost[0]} --> and <!-- end: {lost[0]} -->: add them")
    filled = {mark: f"<!-- table: {mark} -->\n{text}\n<!-- end: {mark} -->" for mark, text in texts.items()}
    return files | {p: MARKS.sub(lambda mark: filled.get(mark["name"], mark[0]), text) for p, text in standing.items()}


def documents(root: Path) -> dict[Path, str]:
    """What may show a table."""
    paths = [root / "README.md", root / "RESULTS.md", *sorted((root / "docs").rglob("*.md"))]
    return {path: path.read_text() for path in paths if path.exists()}


def commands(recipe: Recipe) -> str:
    """How its runs come into results/."""
    return f"`python train.py --config-name {recipe.config}`, then `python -m flame.report publish {recipe.name} runs`"


def caption(recipe: Recipe, numbers: str, lines: pd.DataFrame, mixed: bool) -> str:
    """What the numbers are, seeds, code and the two commands."""
    done = lines[lines["state_sha256"] != ""]

    def each(values: Iterable[Any]) -> str:
        return ", ".join(str(value) for value in sorted(set(values)))

    commits = each(commit[:7] + "+" * commit.endswith("+") for commit in done["commit"])
    code = each("+".join(part[:7] for part in code.split("+")) for code in done["code"] if code)
    what = numbers.format(mean_of_last=each(done["mean_of_last"]), rounds=each(done["rounds"]))
    said = [f"{what}; seed {each(done['seed'])}; commit {commits}{f'; code {code}' if code else ''}."]
    said += [f"{commands(recipe)}; its runs are in `results/{recipe.name}.csv`."]
    said += [f"{MIXED.strip()} joins runs of different commits or code."] * mixed
    if older := recipe.own.get("older_code"):
        said += [f"These runs are of older code: {older} (CHANGELOG.md)."]
    return " ".join(said)


def outdated(root: Path = ROOT, names: Iterable[str] | None = None) -> list[str]:
    """A sentence about every file that differs from what `results/` says, and about what nothing makes.

    A ValueError if a table's marks stand in no document, or a record has other columns.
    """
    known = recipes()
    every = {name: read(root / "results" / f"{name}.csv") for name in (known if names is None else names)}
    stale = [
        f"{path.relative_to(root)} differs from results/: python -m flame.report publish"
        for path, content in derived(known, every, every, root).items()
        if not path.exists() or path.read_text() != content
    ]
    marks, folder = tables(known), root / "results"
    for path in sorted(folder.glob("*.csv")):
        if path.stem not in known and not path.stem.startswith("bench"):
            read(path)  # runs beside the recipes' own have the same columns
    figures = {name for recipe in known.values() for name in recipe.own.get("figures", {})}
    for kind, names in (("tables", set(marks)), ("figures", figures)):
        strange = [path for path in sorted((folder / kind).glob("*")) if path.stem not in names]
        stale += [f"results/{kind}/{path.name} belongs to no recipe: delete it" for path in strange]
    for path, text in documents(root).items():
        closed = [found["name"] for found in MARKS.finditer(text)]
        for mark in OPENING.findall(text):
            place = f"{path.relative_to(root)} has marks of a table {mark}, which "
            stale += [f"{place}does not exist: delete what is between them"] if mark not in marks else []
            stale += [f"{place}is not closed: add <!-- end: {mark} -->"] if mark not in closed else []
    return stale
