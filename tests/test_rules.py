"""The table of other libraries' rules: what it calls ours is ours."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def named(title: str) -> set[str]:
    """The options in the first column of the first table under a heading."""
    part = (ROOT / "docs/rules.md").read_text().partition(f"## {title}\n")[2].partition("\n\nWhat we leave out")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {word for cell in cells for word in re.findall(r"`([\w=./]+)`", cell)}


def options(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


def test_every_name_here_is_an_option() -> None:
    defenses = {name for name in named("Defenses") if "=" not in name}
    clients = {name.removeprefix("client=") for name in named("Defenses") if "=" in name}
    attacks = {name for name in named("Attacks") if "=" not in name}
    assert len(defenses) > 30 and defenses <= options("defense")
    assert clients == {"fedprox", "flip", "local_dp"} <= options("client")
    assert len(attacks) > 20 and attacks <= options("attack")
