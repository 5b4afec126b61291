"""The published tables stay what they were, cell by cell, until the evidence is renewed."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FROZEN = dict(
    reversed(line.split()) for line in (ROOT / "tests/oracles/published_tables.sha256").read_text().splitlines()
)


def test_no_published_table_has_changed() -> None:
    tables = {path.name: path for path in (ROOT / "results" / "tables").glob("*.csv")}
    assert FROZEN.keys() <= tables.keys()
    assert [
        name for name, frozen in FROZEN.items() if hashlib.sha256(tables[name].read_bytes()).hexdigest() != frozen
    ] == []
