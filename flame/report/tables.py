"""A table as a recipe's YAML describes it (`conf/recipe/README.md`), made of the lines of `results/<recipe>.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product
from typing import Any

import numpy as np
import pandas as pd

from flame.report.contrasts import INFERENCE, UNITS, Contrast, Text, Values, averaged, contrast_rows, extent, lacking
from flame.report.measures import overlaps
from flame.report.recipes import Plan
from flame.report.records import written
from flame.report.statistics import wilson_interval

KEYS = {"like", "caption", "rows", "labels", "columns", "where", "contrast", "pooled", "largest_first"}
KEYS |= {"count", "overlap"}
NAMES = {
    "ma": "MA",
    "ba": "BA",
    "benign_recall": "benign accepted",
    "malicious_recall": "malicious rejected",
    "1 - `filter/malicious_recall`": "malicious admitted",
    "admitted": "malicious admitted",
    "ba_attacked": "BA under attack",
    "ba_after": "BA afterwards",
}  # value -> its name in a row
Part = dict[str, Any]


def table(name: str, spec: Mapping[str, Any], lines: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """The text of a table.

    Raises:
        ValueError: the description says something unknown, or not which runs a cell is of.
    """
    try:
        if unknown := sorted(spec.keys() - KEYS):
            raise ValueError(f"{unknown[0]} is none of {', '.join(sorted(KEYS))}")
        made = Maker(spec, lines.reset_index(drop=True).assign(line=range(len(lines))), plan)
        if "overlap" in spec:
            return framed(*overlaps(lines, plan[spec["overlap"]], spec["overlap"]))
        return made.contrasts() if spec.get("contrast") else made.values()
    except (KeyError, ValueError, pd.errors.UndefinedVariableError) as error:
        raise ValueError(f"table {name}: {error}") from error


@dataclass(frozen=True)
class Maker:
    """A description and the runs that it is filled from."""

    spec: Mapping[str, Any]
    lines: pd.DataFrame
    plan: Plan

    @cached_property
    def fields(self) -> list[str]:
        """What divides cells."""
        return [key for key in self.plan if key != "seed"]

    @cached_property
    def cells(self) -> dict[tuple[str, ...], pd.DataFrame]:
        """The values of `fields` -> lines by seed."""
        if self.lines.empty:
            return {}
        return dict(iter(self.named.groupby([self.lines[field].astype(str).to_numpy() for field in self.fields])))

    @cached_property
    def named(self) -> pd.DataFrame:
        """What tells whose a line is, by seed: few columns, as frames of many are slow to copy."""
        return self.lines.reindex(columns=["seed", "line", "state_sha256", "code", "commit"]).set_index("seed")

    @cached_property
    def seeds(self) -> list[int]:
        """The planned ones."""
        return sorted(map(int, self.plan["seed"]))

    @cached_property
    def rows(self) -> list[Part]:
        """What each row says."""
        axes = [alternatives(axis, self.plan) for axis in self.spec["rows"]]
        return [{key: value for part in parts for key, value in part.items()} for parts in product(*axes)]

    @cached_property
    def columns(self) -> list[Part]:
        """What each column says, `where` included."""
        found = []
        for column in self.spec["columns"]:
            several = {key: value for key, value in column.items() if key != "value"}
            found += [{**self.spec.get("where", {}), **column, **one} for one in alternatives(several, self.plan)]
        return found

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """What labels the rows -> header."""
        shown = self.spec.get("labels", {})
        return shown or {key: key.rpartition(".")[2] for row in self.rows for key in row}

    def contrasts(self) -> pd.DataFrame:
        """The first two columns compared, with the others beside them."""
        found = []
        for row in self.rows:
            whole = [resolved(column, row) for column in self.columns]
            arms = [self.arms(part) for part in whole]
            sides = [self.of(runs, part["value"]) for runs, part in zip(arms, whole, strict=True)]
            missing = lacking([*arms[0], *arms[1]], self.seeds)
            mixed = [*map(of_several, arms), of_several([*arms[0], *arms[1]])]
            contrast = Contrast(self.label(row), sides, missing, mixed, UNITS[whole[0].get("unit", "per_cent")])
            missing["undefined"] = len(self.seeds) - sum(missing.values()) - len(contrast.differences)
            found.append(contrast)
        header = [*self.labels.values(), *map(heading, self.columns), *INFERENCE]
        return framed(header, contrast_rows(found, bool(self.spec.get("pooled"))))

    def values(self) -> pd.DataFrame:
        """Each column's text, and of how many seeds."""
        found, counted = [], self.spec.get("count", True)
        for row in sorted(self.rows, key=lambda row: -self.largest(row)):
            columns = [resolved(column, row) for column in self.columns]
            parts = [part for column in columns for part in self.parts(column)]
            arms = [arm for part in parts for arm in self.arms(part)]
            missing = lacking(arms, self.seeds)
            n = len(self.seeds) - sum(missing.values())
            missing["undefined"] = min(n, int(self.of(self.arms(parts[0]), parts[0]["value"]).isna().sum()))
            labels = self.label(row)
            count = [extent(n - missing["undefined"], missing)] * counted
            found.append([*labels, *(self.text(column, labels[0]) for column in columns), *count])
        header = [*self.labels.values(), *map(heading, self.columns), *["n"] * counted]
        return framed(header, found)

    def largest(self, row: Part) -> float:
        """The largest mean of what the rows are sorted by; -inf where none is known."""
        parts = [resolved({**self.spec.get("where", {}), **part}, row) for part in self.spec.get("largest_first", [])]
        means = [self.of(self.arms(part), part["value"]).mean() for part in parts]
        return max((mean for mean in means if not np.isnan(mean)), default=-np.inf)

    def text(self, column: Part, label: str) -> Text:
        """A cell that is no contrast's."""
        if "given" in column:
            return Text({str(key): text for key, text in column["given"].items()}.get(label, "-"))
        parts, several = self.parts(column), isinstance(column["value"], list)
        runs = pd.concat([arm for part in parts for arm in self.arms(part)]).drop_duplicates("line")
        if several and runs.empty:
            return Text("not run")
        texts = [self.estimate(part) for part in parts]
        pending = int((runs["state_sha256"] == "").sum()) if several else 0
        note = f" ({pending} of {len(runs)} unfinished)" if pending else ""
        mixed = any(text.mark for text in texts)
        return Text(" / ".join(texts) + note, " / ".join(text.read for text in texts) + note, mixed)

    def estimate(self, part: Part) -> Text:
        """One number of a cell."""
        arms = self.arms(part)
        values = self.of(arms, part["value"])
        if "over" not in part:
            return UNITS[part.get("unit", "per_cent")].estimate(values, of_several(arms))
        known = values.dropna()
        hit = int((known > float(part["over"])).sum())
        low, high = wilson_interval(hit, len(known))
        text = f"{hit} of {len(known)} [{100 * low:.0f}, {100 * high:.0f}] %" if len(known) else "-"
        return Text(text, mixed=of_several(arms))

    def parts(self, column: Part) -> list[Part]:
        """A column whose value is a list, one by one; nothing of one that has no runs."""
        if "given" in column:
            return []
        several = column["value"] if isinstance(column["value"], list) else [column["value"]]
        return [{**column, **(one if isinstance(one, dict) else {"value": one})} for one in several]

    def label(self, row: Part) -> list[str]:
        """The texts before the numbers."""
        return [NAMES.get(str(row[key]), str(row[key])) if key == "value" else str(row[key]) for key in self.labels]

    def arms(self, part: Part) -> list[pd.DataFrame]:
        """The runs of a cell of the table, by seed; several frames where it is averaged over cells of the sweep."""
        part = {**{field: self.plan[field][0] for field in self.fields if len(self.plan[field]) == 1}, **part}
        if vague := [field for field in self.fields if field not in part]:
            raise ValueError(f"column {heading(part)!r} does not say which {vague[0]}: give its value, or averaged")
        ways = [self.plan[f] if part[f] == "averaged" else (written(part[f]),) for f in self.fields]
        return [self.cells.get(key, self.named.iloc[:0]) for key in product(*ways)]

    def of(self, arms: Sequence[pd.DataFrame], expression: str) -> Values:
        """Seed -> value of the finished runs."""
        if expression not in self.lines:
            self.lines[expression] = self.lines.eval(expression, engine="python").replace([np.inf, -np.inf], np.nan)
        found = [self.lines.loc[arm["line"], expression].set_axis(arm.index)[arm["state_sha256"] != ""] for arm in arms]
        return averaged(found) if len(found) > 1 else found[0]


def alternatives(axis: str | Mapping[str, Any] | Sequence[Any], plan: Plan) -> list[Part]:
    """What an axis says in turn."""
    if isinstance(axis, str):
        if axis not in plan:
            raise ValueError(f"{axis} is not swept: {', '.join(plan)} are")
        return [{axis: value} for value in plan[axis]]
    if not isinstance(axis, Mapping):
        return list(chain.from_iterable(alternatives(one, plan) for one in axis))
    each = [value if isinstance(value, list) else [value] for value in axis.values()]
    return [dict(zip(axis, map(kept, values), strict=True)) for values in product(*each)]


def kept(value: Any) -> Any:
    """Numbers and null as a command line has them; texts and mappings as they are."""
    return value if isinstance(value, str | Mapping) else written(value)


def resolved(column: Part, row: Part) -> Part:
    """What column and row say together, `$key` replaced by what either says of it."""
    both = {**column, **row}
    return {k: both[v[1:]] if isinstance(v, str) and v.startswith("$") else v for k, v in both.items()}


def heading(column: Part) -> str:
    """The header of a column."""
    text = str(column.get("as", "a cell"))
    for key, value in column.items():
        text = text.replace(f"{{{key}}}", str(value))
    return text


def of_several(arms: Sequence[pd.DataFrame]) -> bool:
    """Whether the finished runs are of different code: by its hashes (a+b: went on under another), or else its commits.
    Uncommitted code without a hash is like no other."""
    done = dict.fromkeys(run for arm in arms for run in arm.itertuples() if run.state_sha256)  # each once
    unsaid = [f"?{i}" if run.commit.endswith(("+", "?")) else run.commit for i, run in enumerate(done)]
    codes = [run.code or other for run, other in zip(done, unsaid, strict=True)]
    return len(set("+".join(codes).split("+"))) > 1


def framed(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Cells of text under a header."""
    return pd.DataFrame([list(row) for row in rows], columns=list(header), dtype=object)
