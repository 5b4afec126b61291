"""A frame of text as Markdown, CSV and LaTeX. pandas writes the last two; its Markdown wants one package more."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from flame.report.contrasts import BOOTSTRAP, Text
from flame.round.checkpoint import write_atomically

LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "‡": r"$\ddagger$",
    "<": "$<$",  # in the usual text encoding a bare one is another character
    ">": "$>$",
}


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """As documents show it: without the bootstrap, and where an interval says nothing, saying so."""
    kept = table.drop(columns=BOOTSTRAP, errors="ignore")
    return kept.map(lambda cell: cell.read + cell.mark if isinstance(cell, Text) else cell)


def markdown(table: pd.DataFrame) -> str:
    """A pipe table, with its last newline."""
    kept = shown(table)
    rows = [[*kept.columns], ["---"] * len(kept.columns), *kept.to_numpy().tolist()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def comma_separated(table: pd.DataFrame) -> str:
    """CSV, without Markdown's marks."""
    plain = table.map(lambda cell: cell.replace("`", "")).rename(columns=lambda name: name.replace("`", ""))
    return str(plain.to_csv(index=False, lineterminator="\n"))


def latex(table: pd.DataFrame) -> str:
    """A `tabular` for the package booktabs: text flush left, as the cells hold intervals and notes."""
    text = shown(table).map(escaped).rename(columns=escaped)
    made: str = text.style.hide(axis="index").to_latex(hrules=True, column_format="l" * len(text.columns))
    return made


def escaped(text: str) -> str:
    """Text whose characters mean themselves in LaTeX; `code` becomes typewriter, and a number's sign a minus."""
    plain = re.sub(r"(?<!\w)-(?=\d)", "$-$", "".join(LATEX.get(character, character) for character in text))
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", plain)


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {".md": markdown, ".csv": comma_separated, ".tex": latex}


def write(table: pd.DataFrame, path: Path, notes: Sequence[str]) -> None:
    """In the form that the name of the file ends with, notes below; in LaTeX these are comments, and CSV has none.

    A ValueError if the name ends in no known form.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"--out {path} is out of range: the name must end in {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    below = {".md": ["", *notes], ".tex": [f"% {note}" for note in notes]}.get(path.suffix, [])
    write_atomically(path, (FORMATS[path.suffix](table) + "".join(f"{line}\n" for line in below)).encode())
