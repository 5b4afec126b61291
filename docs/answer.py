"""The figures of who gets in, drawn from two tables written by hand, which a test holds against `results/`.

python docs/answer.py
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
MANY = 6  # seeds, from which on a difference can be called significant
CHANCE = 60  # %, of clients that a draw of n//2 + 1 = 6 of 10 admits
SIDES = (("weights_only", "tab:orange", "o"), ("all_state", "tab:blue", "s"))


@dataclass(frozen=True)
class Answer:
    """A page with a table "Who gets in", and its figure."""

    page: str
    figure: str
    title: str

    def rows(self) -> list[tuple[str, float, float, int]]:
        """What the table says: attacker and data, per cent admitted by either vector, seeds."""
        found = []
        table = (ROOT / self.page).read_text().partition("| kind of attacker |")[2].partition("\n\n")[0]
        for line in table.splitlines():
            cells = [re.sub(r"\[([^\]]*)\]\([^)]*\)|\*\*", r"\1", cell).strip() for cell in line.strip("| ").split("|")]
            if len(cells) >= 4 and re.fullmatch(r"[\d.]+", cells[2]):
                found.append(
                    (f"{cells[0]}: {cells[1]}".replace("`", ""), float(cells[2]), float(cells[3]), int(cells[-1]))
                )
        return found

    def source(self) -> str:
        """Hash of what is drawn; the PNG carries it, so that a test sees a figure that was left behind."""
        return hashlib.sha256(repr(self.rows()).encode()).hexdigest()


ANSWERS = (
    Answer("RESULTS.md", "docs/figures/answer.png", "Models that have learned"),
    Answer("docs/evidence/young_models.md", "docs/figures/young.png", "Young models"),
)


def draw(answer: Answer) -> None:
    """A line for each attacker, with a mark where each vector stands."""
    table = answer.rows()
    figure = Figure(figsize=(10, 0.36 * len(table) + 1.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    heights = range(len(table), 0, -1)
    for (_, first, second, _), height in zip(table, heights, strict=True):
        axes.plot([first, second], [height, height], color="0.75", lw=3, zorder=1)
    for side, (name, colour, mark) in enumerate(SIDES):
        places = [height + 0.12 - 0.24 * side for height in heights]  # apart, where both admit as many
        inside = [colour if row[3] >= MANY else "white" for row in table]
        shares = [row[1 + side] for row in table]
        axes.scatter(shares, places, edgecolors=colour, c=inside, marker=mark, s=55, lw=1.6, zorder=2)
        axes.scatter([], [], color=colour, marker=mark, s=55, label=name)
    axes.axvline(CHANCE, color="0.5", ls=":", lw=1)
    axes.text(CHANCE, len(table) + 0.75, "a random draw of six of ten", color="0.4", ha="center", fontsize=9)
    axes.set_yticks(list(heights), [row[0] for row in table])
    axes.set_xlabel(f"malicious clients that FLAME admits, % (hollow: fewer than {MANY} seeds)")
    axes.set_xlim(-3, 103)
    axes.set_ylim(0.4, len(table) + 1.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    figure.suptitle(f"{answer.title}: who gets in, by clustering vector", x=0.01, ha="left", fontweight="bold")
    figure.legend(loc="upper right", ncols=2, frameon=False)
    figure.savefig(ROOT / answer.figure, metadata={"Source": answer.source()})


if __name__ == "__main__":
    for one in ANSWERS:
        draw(one)
