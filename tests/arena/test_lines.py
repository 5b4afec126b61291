"""Files of the arena's lines: written, read back, and what is no line of this contest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from boards import LINES

from flame.arena.board import board
from flame.arena.lines import VERSION, csv_of, one_kind, read


def test_lines_are_written_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv_of(LINES))
    back = read([tmp_path / "a.csv"])
    assert board(back).equals(board(LINES)) and back["ba"].isna().sum() == LINES["ba"].isna().sum()
    assert csv_of(back) == csv_of(LINES)
    assert read([]).empty


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, {"one"}),
        ({"state_sha256": ["a", "x"]}, {"one", "two"}),  # a single other model is enough
        ({"code": "later"}, {"one", "two"}),  # other code shows nothing
        ({"seed": 9}, {"one", "two"}),  # nor does a run that nobody made before
    ],
)
def test_processors_are_of_one_kind_if_all_that_was_made_again_has_the_same_bits(
    change: Mapping[str, Any], kinds: set[str]
) -> None:
    first = LINES[:2].assign(processor="one", state_sha256=["a", "b"])
    again = first.assign(processor="two").assign(**change)
    row = LINES[2:3].assign(processor="two")
    assert set(one_kind(pd.concat([first, row]), again)["processor"]) == kinds
    assert one_kind(first, read([])).equals(first)


def test_lines_of_another_contest_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(csv_of(LINES.assign(version=VERSION + 1)))
    with pytest.raises(ValueError, match=f"is of version {VERSION + 1} of the arena, and this is {VERSION}"):
        read([file])
    file.write_text(csv_of(LINES))
    with pytest.raises(ValueError, match="two lines of fedavg alie iid 0"):
        read([file, file])
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="its columns are not version, defense"):
        read([file])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv: No columns to parse"),
        (csv_of(LINES).replace("0.6,", ",", 1), "a.csv has no MA of fedavg alie iid 0"),
        (csv_of(LINES).replace("0.6,", "high,", 1), "a.csv: "),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read([tmp_path / "a.csv"])
