"""Rows of text, the first of them the header, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",  # in the usual text encoding a bare one is another character
    ">": "$>$",
}


def markdown(rows: Rows) -> str:
    """A pipe table."""
    header, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body))


def comma_separated(rows: Rows) -> str:
    """CSV, without Markdown's marks."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([cell.replace("`", "") for cell in row] for row in rows)
    return text.getvalue()


def latex(rows: Rows) -> str:
    """A `tabular` for the package booktabs: text flush left, as the cells hold intervals and notes."""
    header, *body = ([escaped(cell) for cell in row] for row in rows)
    lines = [" & ".join(row) + r" \\" for row in body]
    opening = rf"\begin{{tabular}}{{{'l' * len(header)}}}"
    return "\n".join(
        [opening, r"\toprule", " & ".join(header) + r" \\", r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""]
    )


def escaped(text: str) -> str:
    """Text whose characters mean themselves in LaTeX; `code` becomes typewriter, and a number's sign a minus."""
    plain = "".join(LATEX.get(character, character) for character in text)
    plain = re.sub(r"(?<!\w)-(?=\d)", "$-$", plain)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", plain)
