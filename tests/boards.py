"""Lines of the arena by hand, for its tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from flame.arena.lines import COLUMNS, VERSION

NAN = math.nan


def line(defense: str, attack: str, ma: float, ba: float = NAN, seed: int = 0, **values: Any) -> dict[str, Any]:
    whole = {"version": VERSION, "partition": "iid", "server_seconds": 0.5, "commit": "0123456789", "processor": "p"}
    measured = {"defense": defense, "attack": attack, "seed": seed, "ma": ma, "ba": ba}
    return dict.fromkeys(COLUMNS, "") | dict.fromkeys(COLUMNS[5:11], NAN) | whole | measured | values


def table(*lines: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(lines), columns=COLUMNS)


def seeds(defense: str, attack: str, ma: list[float], ba: list[float], **values: Any) -> list[dict[str, Any]]:
    pairs = enumerate(zip(ma, ba, strict=True))
    return [line(defense, attack, m, b, seed=seed, **values) for seed, (m, b) in pairs]


PEACE = line("fedavg", "none", 0.9)
LINES = table(
    PEACE,
    line("fedavg", "badnets", 0.88, 0.97),
    line("fedavg", "alie", 0.60),
    line("krum", "none", 0.80),
    line("krum", "badnets", 0.79, 0.05),
    line("krum", "alie", 0.75),
)
