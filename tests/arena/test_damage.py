"""What an attack did in a cell of the arena, by hand: BA gained, MA lost, and what both are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from boards import LINES, NAN, PEACE, line, seeds, table

from flame.arena.board import board, cells, compared, printed, shown
from flame.arena.lines import CONTROL
from flame.report.statistics import half_width


def damages(*lines: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Of each defense under each attack."""
    found: dict[tuple[str, str], float] = cells(table(*lines)).set_index(["defense", "attack"])["damage"].to_dict()
    return found


def test_damage_is_the_larger_of_ba_and_the_ma_that_is_lost() -> None:
    found = damages(*LINES.to_dict("records"))
    assert found["fedavg", "badnets"] == pytest.approx(0.97)  # not 0.02
    assert found["fedavg", "alie"] == pytest.approx(0.30)  # no BA
    assert found["krum", "badnets"] == pytest.approx(0.11)  # 0.90 - 0.79 > 0.05
    assert found["fedavg", "none"] == 0


def test_ma_above_averaging_s_is_no_loss() -> None:
    found = damages(PEACE, line("krum", "badnets", 0.95, 0.02), line("krum", "alie", 0.95))
    assert found["krum", "badnets"] == pytest.approx(0.02) and found["krum", "alie"] == 0


def test_noise_around_the_reference_is_no_damage() -> None:
    """Gains and losses of single seeds cancel before what is below 0 becomes 0."""
    averaging = seeds("fedavg", "none", [0.9] * 3, [NAN] * 3)
    lost = damages(*averaging, *seeds("krum", "alie", [0.88, 0.92, 0.9], [NAN] * 3))
    assert lost["krum", "alie"] == pytest.approx(0, abs=1e-9)  # not 0.02 / 3
    control = seeds(CONTROL, "cerp", [0.9] * 3, [0.5, 0.3, 0.4])
    gained = [*averaging, *control, *seeds("krum", "cerp", [0.9] * 3, [0.3, 0.6, 0.4])]
    assert damages(*gained)["krum", "cerp"] == pytest.approx(0.1 / 3)  # of -0.2, 0.3 and 0; not 0.1
    half = cells(table(*gained)).set_index(["defense", "attack"])["half"]["krum", "cerp"]
    assert half == pytest.approx(half_width(np.array([-0.2, 0.3, 0.0])))
    assert board(table(*averaging, *seeds("krum", "none", [0.95] * 3, [NAN] * 3), *gained[3:]))["price"][0] == 0


def test_the_larger_mean_is_the_damage() -> None:
    """Not the mean of what is larger in each seed."""
    averaging = seeds("fedavg", "none", [0.9] * 2, [NAN] * 2)
    found = damages(*averaging, *seeds("krum", "badnets", [0.9, 0.5], [0.6, 0.0]))
    assert found["krum", "badnets"] == pytest.approx(0.3)  # BA 0.3, lost 0.2; not (0.6 + 0.4) / 2


def test_a_learned_trigger_counts_above_what_it_does_to_a_model_that_nobody_poisoned() -> None:
    control = line(CONTROL, "cerp", 0.9, 0.6)
    found = damages(PEACE, control, line("krum", "cerp", 0.9, 0.85), line("rfa", "cerp", 0.9, 0.5))
    assert found["krum", "cerp"] == pytest.approx(0.25) and found["rfa", "cerp"] == 0
    ranked = board(table(PEACE, control, line("krum", "cerp", 0.9, 0.85)))
    assert shown(ranked)["worst BA gained %"].tolist() == ["25.0"]


@pytest.mark.parametrize("there", [[], [line(CONTROL, "iba", 0.9, 0.6)], [line(CONTROL, "cerp", 0.9, 0.6, seed=1)]])
def test_a_learned_trigger_without_its_control_is_no_gain_to_count(there: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"the control lacks .*: run that recipe of conf/recipe/arena/ first"):
        board(table(PEACE, line("krum", "cerp", 0.9, 0.85), *there))


def test_the_reference_is_of_the_same_partition_and_seed() -> None:
    other = line("fedavg", "none", 0.5, seed=1)
    found = compared(table(PEACE, other, line("krum", "alie", 0.4), line("krum", "alie", 0.4, seed=1)))
    assert found["lost"].tolist() == pytest.approx([0, 0, 0.5, 0.1])
    for lines in ([PEACE, line("krum", "alie", 0.4, partition="dirichlet_03")], [line(CONTROL, "cerp", 0.9, 0.6)]):
        with pytest.raises(ValueError, match="fedavg without attack lacks a partition or seed"):
            board(table(*lines))


def test_cells_of_one_seed_have_no_interval() -> None:
    assert cells(LINES)["half"].isna().all() and " ± " not in printed(board(LINES))
