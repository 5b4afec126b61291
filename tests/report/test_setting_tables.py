"""Tables and figures over a setting by hand: PMR and the like, and FLAME's steps switched on and off."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_attack_tables import line
from test_evidence import caption, of_seeds

from flame.report.catalogue import BY_VECTOR, OVER_SETTINGS
from flame.report.evidence import FIGURES
from flame.report.recipes import options, plan
from flame.report.setting_figure import AXES, draw_setting
from flame.report.setting_tables import (
    SETTINGS,
    SettingLine,
    by_defense,
    components,
    field_of,
    over_settings,
    pairs_over_settings,
    step_costs,
    vectors_over_settings,
    written,
)
from flame.run.record import RunRecord

BOTH = ("flame_weights_only", "flame_all_state")
FOUR = ("MA", "BA", "benign accepted", "malicious rejected")
SHARES = {"ma": 0.8, "ba": 0.1, "benign_recall": 0.75, "malicious_recall": 1.0}


def test_values_are_written_as_a_recipe_writes_them() -> None:
    assert [written(v) for v in (None, 0.0, 1.0, 0.0003, 5, "nothing")] == ["null", "0", "1", "0.0003", "5", "nothing"]


def test_a_line_by_hand(tmp_path: Path) -> None:
    """FLAME's settings by their last names; averaging has no noise and no clustering."""
    (run,) = of_seeds(tmp_path, 0, pdr=0.25)
    steps = {"noise": {"factor": 0.001}, "cluster": {"min_cluster_size": None}, "clip": {"apply_to": "nothing"}}
    defended = replace(run, config={**run.config, "poisoned_model_rate": 0.2, "defense": steps})
    found = SettingLine.of(defended)
    assert (found.poisoned_data_rate, found.poisoned_model_rate, found.clients_per_round) == ("0.25", "0.2", "4")
    assert found.partition == run.choices["partition"] != ""
    assert (found.factor, found.min_cluster_size, found.apply_to, found.q) == ("0.001", "null", "nothing", "-")
    assert SettingLine.of(run).factor == SettingLine.of(run).min_cluster_size == "-"


def test_every_sweep_over_settings_has_a_table_and_its_own_setting_in_it() -> None:
    known = {field_of(key) for key in SETTINGS}
    for name in (*OVER_SETTINGS, *BY_VECTOR, "components", "components_skewed"):
        assert set(plan(name)) - {"seed", "defense", "attack", "partition"} <= known
    swept = {field for name in (*OVER_SETTINGS, *BY_VECTOR) for field in plan(name)}
    assert {key for key in AXES if field_of(key) in swept} == set(AXES)


def test_a_recipe_starts_from_another() -> None:
    """zhmzm_fashion takes its sweep and its partition from zhmzm, and data and model from itself."""
    assert plan("zhmzm_fashion") == plan("zhmzm")
    assert options("zhmzm_fashion") == options("zhmzm") | {"dataset": "fashion_mnist", "model": "resnet8"}
    assert options("zhmzm")["dataset"] == "cifar10"


def test_rows_over_a_setting_by_hand() -> None:
    swept = {"seed": ("0", "1"), "poisoned_model_rate": ("0", "0.2"), "defense": ("fedavg", "flame_all_state")}
    runs = [
        line(SettingLine, defense="fedavg", poisoned_model_rate="0", seed=seed, ma=ma)
        for seed, ma in ((0, 0.7), (1, 0.9))
    ]
    runs += [line(SettingLine, defense="flame_all_state", poisoned_model_rate="0.2", **SHARES)]
    header, *rows = over_settings(runs, swept)
    assert header[:3] == ["PMR", "defense", "MA %"] and header[-1] == "n"
    assert rows[0] == ["0", "fedavg", "80.0 ± 127.1", "-", "-", "-", "2"]  # t(0.975, 1) * 14.1 / sqrt(2)
    assert rows[3] == ["0.2", "flame_all_state", "80.0", "10.0", "75.0", "100.0", "1 (1 not run)"]
    assert [row[-1] for row in rows[1:3]] == ["0 (2 not run)"] * 2


def test_both_vectors_over_a_setting_by_hand() -> None:
    """q = 0.8, MA of weights_only 2 and 4 points lower; at q = 0.5 one seed of one vector is there."""
    swept = {"seed": ("0", "1"), "q": ("0.5", "0.8"), "defense": ("fedavg", *BOTH)}
    lost = ((0, 0.02), (1, 0.04))
    runs = [line(SettingLine, defense=BOTH[0], q="0.8", seed=seed, **{**SHARES, "ma": 0.8 - x}) for seed, x in lost]
    runs += [line(SettingLine, defense=BOTH[1], q="0.8", seed=seed, **SHARES) for seed in (0, 1)]
    runs += [line(SettingLine, defense=BOTH[1], q="0.5", seed=0, **SHARES)]
    header, *rows = vectors_over_settings(runs, swept)
    assert header[:5] == ["q", "share", "`flame_weights_only` %", "`flame_all_state` %", "`fedavg` %"]
    assert [row[:2] for row in rows] == list(map(list, product(("0.5", "0.8"), FOUR)))
    found = dict(zip(header, rows[4], strict=True))
    assert found["`flame_all_state` %"] == "80.0 ± 0.0" and found["`fedavg` %"] == "-"
    assert (found["difference"], found["95 % interval"]) == (
        "-3.0",
        "[-15.7, +9.7]",
    )  # 12.706 * sqrt(2) / sqrt(2) = 12.7
    assert (found["n"], rows[0][-1]) == ("2", "0 (2 not run)")


def test_a_value_that_is_undefined_is_counted() -> None:
    """As BA where nothing was evaluated: the seed is there, and its difference is not."""
    swept = {"seed": ("0", "1"), "defense": ("fedavg", *BOTH)}
    runs = [line(SettingLine, defense=name, seed=seed, **SHARES) for name in BOTH for seed in (0, 1)]
    runs[0] = replace(runs[0], ba=np.nan)
    _, *rows = vectors_over_settings(runs, swept)
    assert {row[0]: row[-1] for row in rows} == {share: "1 (1 undefined)" if share == "BA" else "2" for share in FOUR}


def test_one_value_against_another_by_hand() -> None:
    """PDR 0.5 costs 2 and 4 points of MA and brings 30 and 50 of BA, under averaging; of FLAME a seed is missing."""
    swept = {"seed": ("0", "1"), "poisoned_data_rate": ("0.5", "0"), "defense": ("fedavg", "flame_all_state")}
    arms = {"0": {0: (0.8, 0.1), 1: (0.9, 0.1)}, "0.5": {0: (0.78, 0.4), 1: (0.86, 0.6)}}
    runs = [
        line(SettingLine, defense=name, poisoned_data_rate=rate, seed=seed, ma=ma, ba=ba)
        for name in swept["defense"]
        for rate, seeds in arms.items()
        for seed, (ma, ba) in seeds.items()
        if (name, rate, seed) != ("flame_all_state", "0", 1)
    ]
    header, *rows = pairs_over_settings(runs, swept, "poisoned_data_rate", [("0.5", "0")], ("ma", "ba"))
    assert header[:5] == ["defense", "PDR", "share", "first %", "second %"]
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(row["defense"], row["PDR"], row["share"]) for row in found] == [
        (name, "`0.5` minus `0`", share) for name in swept["defense"] for share in ("MA", "BA")
    ]
    assert [row["difference"] for row in found] == ["-3.0", "+40.0", "-2.0", "+30.0"]
    assert found[0]["first %"] == "82.0 ± 50.8" and found[0]["95 % interval"] == "[-15.7, +9.7]"  # 12.706 * 4, * 1
    assert [row["n"] for row in found] == ["2", "2", "1 (1 not run)", "1 (1 not run)"]


def test_defenses_beside_one_another_by_hand() -> None:
    swept = {"seed": ("0", "1"), "q": ("0", "0.5"), "defense": ("fedavg", "flame_all_state")}
    runs = [line(SettingLine, defense="fedavg", q="0", seed=seed, **SHARES) for seed in (0, 1)]
    runs += [line(SettingLine, defense="flame_all_state", q="0", seed=0, ma=0.7, ba=0.2)]
    assert by_defense(runs, swept) == [
        ["q", "`fedavg`: MA / BA", "`flame_all_state`: MA / BA", "n"],
        ["0", "80.0 ± 0.0 / 10.0 ± 0.0", "70.0 / 20.0", "1 (1 not run)"],
        ["0.5", "not run", "not run", "0 (2 not run)"],
    ]


def test_components_say_which_steps_are_on() -> None:
    header, *rows = components([], plan("components"))
    assert header[:4] == ["attack", "clustering", "clipping", "noise"]
    assert len(rows) == 16 and rows[0][:4] == ["badnets", "yes", "yes", "yes"] and rows[-1][1:4] == ["no", "no", "no"]
    run = line(SettingLine, attack="badnets", min_cluster_size="null", apply_to="nothing", factor="0", **SHARES)
    found = {tuple(row[:4]): row[4] for row in components([run], plan("components"))[1:]}
    assert found.pop(("badnets", "yes", "no", "no")) == "80.0" and set(found.values()) == {"-"}


def test_what_a_step_costs_by_hand() -> None:
    """MA 90 without any step; clustering takes 10, clipping 2 and 4 more with clustering, noise 1 in seed 1 alone."""
    swept = {name: values for name, values in plan("components_skewed").items() if name != "partition"}
    swept |= {"partition": ("iid", "dirichlet_03"), "seed": ("0", "1"), "factor": ("0.001", "0")}
    runs = []
    for cluster, clip, noise, seed in product((0, 1), (0, 1), (0, 1), (0, 1)):
        ma = 0.9 - 0.1 * cluster - clip * (0.02 + 0.04 * cluster) - 0.01 * noise * seed
        on = {"min_cluster_size": ("0", "null")[cluster], "apply_to": ("nothing", "weights_only")[clip]}
        factor = ("0", "0.001")[noise]
        runs.append(line(SettingLine, partition="iid", seed=seed, factor=factor, ma=ma, **on))
    header, *rows = step_costs(runs, swept)
    assert header[:4] == ["partition", "step", "MA with it %", "without %"]
    found = {row[1]: dict(zip(header, row, strict=True)) for row in rows if row[0] == "iid"}
    # clipping costs 2 without clustering and 6 with it, so 4; clustering 10 without clipping and 14 with it, so 12
    assert {step: row["difference"] for step, row in found.items()} == {
        "clustering": "-12.0",
        "clipping": "-4.0",
        "noise": "-0.5",
    }
    assert found["noise"]["95 % interval"] == "[-6.9, +5.9]"  # t(0.975, 1) * 0.707 / sqrt(2) = 6.35
    assert found["clustering"]["MA with it %"] == "76.8 ± 3.2"  # 90 - 10 - 6 / 2 - 0.5 / 2
    assert found["clustering"]["without %"].startswith("88.8") and found["clustering"]["n"] == "2"
    assert {row[-1] for row in rows if row[0] == "dirichlet_03"} == {"0 (2 not run)"}
    *_, partly = step_costs(runs[1:], swept | {"partition": ("iid",)})
    assert partly[-1] == "1 (1 not run)"


def swept(folder: Path) -> list[RunRecord]:
    """Averaging and a FLAME at two PMRs, three seeds each: MA 60, 70, 80 at the first, 10 lower at the second."""
    runs = []
    for defense in ("fedavg", "flame_all_state"):
        for rate, low in ((0.0, 0.0), (0.4, 0.1)):
            for seed in range(3):
                place = folder / f"{defense}-{rate}"
                (run,) = of_seeds(place, seed, defense=defense, ma=0.6 + 0.1 * seed - low)
                runs.append(replace(run, config={**run.config, "poisoned_model_rate": rate}))
    return runs


def test_the_figure_shows_means_at_equal_steps(tmp_path: Path) -> None:
    figure = draw_setting(swept(tmp_path))
    ma = figure.axes[0]
    assert [tick.get_text() for tick in ma.get_xticklabels()] == ["0", "0.4"]
    for bar in ma.containers:
        assert np.asarray(bar.lines[0].get_ydata()) == pytest.approx([70, 60])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedavg", "flame_all_state"]
    assert "n = 3 seeds for each defense, poisoned_model_rate" in caption(figure)
    assert FIGURES["setting"] is draw_setting


def test_the_figure_wants_one_setting(tmp_path: Path) -> None:
    runs = swept(tmp_path)
    with pytest.raises(ValueError, match="vary none of"):
        draw_setting(runs[:3])
    both: list[Any] = [
        replace(run, config={**run.config, "clients_per_round": 4 + i % 2}) for i, run in enumerate(runs)
    ]
    with pytest.raises(ValueError, match="vary poisoned_model_rate, clients_per_round of"):
        draw_setting(both)
    with pytest.raises(
        ValueError, match=r"several runs have defense, poisoned_model_rate, seed = .* vary nothing else"
    ):
        draw_setting([*runs, runs[0]])


def test_a_seed_that_was_not_run_leaves_the_others(tmp_path: Path) -> None:
    first = draw_setting(swept(tmp_path)[1:]).axes[0].containers[0].lines[0]
    assert np.asarray(first.get_ydata()) == pytest.approx([75, 60])
