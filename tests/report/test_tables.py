"""Tables as a recipe's YAML describes them, by hand: contrasts, counts, orders, and what is missing."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml  # type: ignore[import-untyped]

from flame.report.contrasts import (
    MIXED,
    UNITS,
    Contrast,
    contrast_rows,
    extent,
    lacking,
    mean_by_seed,
)
from flame.report.markup import markdown
from flame.report.recipes import Recipe, recipes, tables
from flame.report.records import COLUMNS, NUMBERS, RESULTS, WHOLE, frame
from flame.report.tables import table

NAN = math.nan
KNOWN = recipes()
TABLES = tables(KNOWN)
FLAMES = ("flame_weights_only", "flame_all_state")
DEFENSES = ("fedavg", *FLAMES)
SEEDS = range(6)
PER_CENT, PLAIN = UNITS["per_cent"], UNITS["plain"]


def line(**values: Any) -> dict[str, Any]:
    """A finished run; numbers that are not given are NaN."""
    whole = {"seed": 0, "rounds": 24, "mean_of_last": 5, "commit": "c", "state_sha256": "h"}
    return dict.fromkeys(COLUMNS, "") | dict.fromkeys(NUMBERS, NAN) | dict.fromkeys(WHOLE, 0) | whole | values


def made(name: str, lines: list[dict[str, Any]], plan: dict[str, Any] | None = None, **spec: Any) -> pd.DataFrame:
    """A published table's description, filled from these lines."""
    recipe, described = TABLES[name]
    return table(name, {**described, **spec}, frame(lines), {**recipe.plan, **(plan or {})})


def by_labels(found: pd.DataFrame, count: int) -> dict[tuple[str, ...], dict[str, str]]:
    """The first `count` columns -> column -> text."""
    return {tuple(row[:count]): dict(zip(found.columns, row, strict=True)) for row in found.to_numpy().tolist()}


def side(values: dict[int, float]) -> pd.Series:
    return pd.Series(values, dtype=float)


def contrast(*sides: dict[int, float], labels: tuple[str, ...] = ("A",), unit: str = "per_cent", **missing: int) -> Any:
    return Contrast(labels, list(map(side, sides)), missing, [False] * (len(sides) + 1), UNITS[unit])


# contrasts


HEADER = ["difference", "interval", "bootstrap", "p", "holm", "g", "n"]


def test_a_contrast_by_hand() -> None:
    """Differences 0.01 ... 0.06: mean 3.5 points, s = 1.871, t(0.975, 5) = 2.571: 3.5 -+ 1.96; p = 2 / 64."""
    first, second = {seed: 0.5 + 0.01 * (seed + 1) for seed in SEEDS}, dict.fromkeys(SEEDS, 0.5)
    (row,) = contrast_rows([contrast(first, second, {0: 0.25})])
    found = dict(zip(["label", "x", "y", "z", *HEADER], row, strict=True))
    assert row[:5] == ["A", "53.5 ± 2.0", "50.0 ± 0.0", "25.0", "+3.5"]
    assert found["interval"] == "[+1.5, +5.5]" and found["p"] == found["holm"] == "0.031"
    assert found["g"] == f"{0.8407 * 3.5 / 1.8708:+.2f}" and found["n"] == "6"


def test_holm_is_within_the_table_and_the_mean_of_the_rows_outside() -> None:
    """1 - 2 + 3 - 4 + 5 - 6 = -3: only 10 of 64 patterns of signs are nearer to 0; then 1, 0, 3, 0, 5, 0: 2 of 8."""
    up, zero = {seed: 0.1 * (seed + 1) for seed in SEEDS}, dict.fromkeys(SEEDS, 0.0)
    mixed = {seed: value * (-1) ** seed for seed, value in up.items()}
    rows = contrast_rows([contrast(one, zero, unit="plain") for one in (up, mixed)], pooled=True)
    assert [row[6] for row in rows] == ["0.031", "0.844", "0.250"] and rows[2][0] == "mean of 2 rows"
    assert [row[7] for row in rows] == ["0.062", "0.844", "-"]


def test_few_seeds_are_no_test() -> None:
    four = {seed: 0.5 + seed for seed in range(4)}
    (row,) = contrast_rows([contrast(four, dict.fromkeys(four, 0.0), **{"not run": 1, "unfinished": 1})])
    assert row[6:8] == ["n = 4: no test", "-"] and row[-1] == "4 (1 not run, 1 unfinished)"
    assert contrast_rows([contrast({}, {}, **{"not run": 6})]) == [["A", *["-"] * 8, "0 (6 not run)"]]


def test_what_is_missing_is_counted() -> None:
    one, other = (
        pd.DataFrame({"state_sha256": states}, index=range(len(states))) for states in (["h", "", "h"], ["h", "h"])
    )
    assert lacking([one, other], range(4)) == {"unfinished": 1, "not run": 2}
    assert extent(1, lacking([one, other], range(4))) == "1 (1 unfinished, 2 not run)"


def test_the_mean_of_rows_is_over_seeds_that_all_of_them_have() -> None:
    a = contrast({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0}, {0: 5.0, 1: 6.0}, labels=("a", "x"))
    b = contrast({0: 2.0, 1: NAN}, {0: 1.0, 1: 1.0}, {0: 7.0, 1: 8.0}, labels=("b", "x"), undefined=1)
    empty = contrast({}, {}, {}, labels=("c", "x"), **{"not run": 2})
    pooled = mean_by_seed([a, b, empty])
    assert pooled and pooled.labels == ("mean of 2 rows", "") and pooled.lacking == {"incomplete": 1}
    assert pooled.differences.tolist() == [1.0] and pooled.sides[2].to_dict() == {0: 6.0, 1: 7.0}
    assert mean_by_seed([a, empty]) is None


def test_an_interval_wider_than_the_scale_says_so_where_people_read_it() -> None:
    """0 and 0.8: 40 -+ 12.706 * 40. The CSV keeps the number."""
    text = PER_CENT.estimate(side({0: 0.0, 1: 0.8}))
    assert text == "40.0 ± 508.2" and text.read == "40.0 (n too small)"
    assert PER_CENT.interval(-0.9, 1.2).read == "n too small" and PER_CENT.interval(-0.9, 1.0).read == "[-90.0, +100.0]"
    assert PER_CENT.interval(-0.0004, 0.0115) == "[-0.0, +1.1]"  # holds 0, which "+0.0" would hide
    assert PER_CENT.interval(0.0004, 0.004) == "[+0.0, +0.4]" and PER_CENT.signed(-1e-17) == "+0.0"
    assert PER_CENT.estimate(side({0: 0.5, 1: 0.54})).read == "52.0 ± 25.4"


# the engine


PAIR = {"seed": ("0", "1"), "q": ("0", "0.5"), "defense": ("fedavg", "flame_all_state")}


def own(text: str, lines: list[dict[str, Any]], plan: dict[str, Any]) -> pd.DataFrame:
    """A table described here."""
    return table("x", yaml.safe_load(text), frame(lines), plan)


def test_a_description_that_says_too_little_or_too_much_is_refused() -> None:
    for text, reason in (
        ("{rows: [q], columns: [{as: MA, value: ma}]}", "table x: column 'MA' does not say which defense"),
        ("{rows: [p], columns: []}", "table x: p is not swept: seed, q, defense are"),
        ("{rows: [q], collumns: []}", "table x: collumns is none of"),
        ("{rows: [q, defense], columns: [{as: MA, value: mo}]}", "table x: .*mo"),
    ):
        with pytest.raises(ValueError, match=reason):
            own(text, [line(defense="fedavg", settings="q=0")], PAIR)


def test_defenses_beside_one_another_by_hand() -> None:
    text = "{rows: [q], columns: [{as: '`{defense}`', defense: [fedavg, flame_all_state], value: [ma, ba]}]}"
    runs = [line(defense="fedavg", settings="q=0", seed=seed, ma=0.8, ba=0.1) for seed in (0, 1)]
    runs += [line(defense="flame_all_state", settings="q=0", ma=0.7, ba=0.2)]
    found = own(text, runs, PAIR)
    assert [*found.columns] == ["q", "`fedavg`", "`flame_all_state`", "n"]
    assert found.to_numpy().tolist() == [
        ["0", "80.0 ± 0.0 / 10.0 ± 0.0", "70.0 / 20.0", "1 (1 not run)"],
        ["0.5", "not run", "not run", "0 (2 not run)"],
    ]


def test_cells_that_join_runs_of_different_code_are_marked() -> None:
    """By the hash of the code, where it is known; else by the commit. The CSV has no marks."""
    text = "{rows: [defense], where: {q: 0}, columns: [{as: MA, value: ma}]}"
    for codes, mark in (
        ((("a", ""), ("b", "")), MIXED),
        ((("a", "1"), ("b", "1")), ""),
        ((("a", "1"), ("a", "2")), MIXED),
        ((("a", "1+2"),), MIXED),  # one run, that went on under other code
        ((("a", "1"), ("a", "1+1")), ""),
        ((("a+", ""), ("a+", "")), MIXED),  # uncommitted twice: not known to be the same
        ((("?", ""), ("?", "")), MIXED),
        ((("a+", ""),), ""),
        ((("?", "1"), ("a+", "1")), ""),
    ):
        runs = [
            line(defense="fedavg", settings="q=0", seed=seed, ma=0.8, commit=commit, code=code)
            for seed, (commit, code) in enumerate(codes)
        ]
        found = own(text, runs, PAIR)
        assert found.at[0, "MA"].startswith("80.0") and f"| {found.at[0, 'MA']}{mark} |" in markdown(found)
    columns = "[{as: '{defense}', defense: [fedavg, flame_all_state], value: ma}]"
    arms = [line(defense=name, settings="q=0", ma=0.8, commit=name) for name in PAIR["defense"]]
    found = own(f"{{rows: [q], columns: {columns}, contrast: true}}", arms, PAIR)
    assert f"| 80.0 | 80.0 | +0.0{MIXED} |" in markdown(found)


def test_what_averages_over_the_other_steps_by_hand() -> None:
    """MA 90 without any step; clustering takes 10, clipping 2 and 4 more with clustering; in seed 1 all is 1 higher."""
    runs = []
    for cluster, clip, seed in product((0, 1), (0, 1), (0, 1)):
        steps = f"{('0', 'null')[cluster]} defense.clip.apply_to={('nothing', 'weights_only')[clip]}"
        ma = 0.9 - 0.1 * cluster - clip * (0.02 + 0.04 * cluster) + 0.01 * seed
        runs.append(line(partition="iid", seed=seed, ma=ma, settings=f"defense.cluster.min_cluster_size={steps}"))
    plan = {"seed": ("0", "1"), "partition": ("iid", "dirichlet_03")}
    rows = by_labels(made("step_costs", runs, plan), 2)
    assert rows["iid", "clustering"]["difference"] == "-12.0" and rows["iid", "clipping"]["difference"] == "-4.0"
    assert rows["iid", "clustering"]["MA with it %"] == "77.5 ± 6.4"  # 77 and 78; t(0.975, 1) / 2
    assert {row["n"] for (where, _), row in rows.items() if where != "iid"} == {"0 (2 not run)"}
    assert by_labels(made("step_costs", runs[1:], plan), 2)["iid", "clipping"]["n"] == "1 (1 not run)"


# the published descriptions


def of_vectors(seed: int, **values: Any) -> list[dict[str, Any]]:
    """A cell of the question: averaging with both shadows, and a run with either vector."""
    shared = {"partition": "dirichlet_03", "attack": "badnets", "seed": seed}
    shadows = {
        "filter/floor": 0.25,
        "shadow/weights_only/benign_recall": 0.75,
        "shadow/all_state/benign_recall": 0.65,
        "shadow/weights_only/malicious_recall": 1.0,
        "shadow/all_state/malicious_recall": 0.5,
        "agreement": 0.8,
        "skew_weights_only": 0.6,
        "skew_all_state": 0.6,
        "size_weights_only": 0.8,
        "size_all_state": 0.0,
        "skew_size": 0.0,
        "xray/trunk/distance_share": 0.3,
        "xray/head/distance_share": 0.1,
    }
    runs = [line(**shared, defense="fedavg", ma=0.7, ba=0.9, **shadows)]
    last = {"state_sha256": "" if seed == 5 else "h"}
    return [
        *runs,
        line(**shared, defense=FLAMES[0], ma=0.8, ba=0.01),
        line(**shared, defense=FLAMES[1], ma=0.7, ba=0.01) | last,
    ]


@pytest.fixture(scope="module")
def question() -> list[dict[str, Any]]:
    """Six seeds of one cell, one seed of another; one run unfinished."""
    runs = [run for seed in SEEDS for run in of_vectors(seed)]
    return [*runs, line(partition="iid", attack="none", defense="fedavg", ma=0.9, **{"filter/floor": 0.4})]


CELL = ("dirichlet_03", "badnets")


def test_who_is_rejected(question: list[dict[str, Any]]) -> None:
    rows = by_labels(made("rejected", question), 2)
    row = rows[CELL]
    assert list(row.values())[2:5] == ["25.0 ± 0.0", "35.0 ± 0.0", "25.0 ± 0.0"]
    assert row["difference"] == "-10.0" and row["p"] == "0.031" and row["n"] == "6" and row["effect g"] == "-"
    assert rows["iid", "none"]["n"] == "0 (5 not run, 1 undefined)" and rows["iid", "badnets"]["n"] == "0 (6 not run)"
    assert by_labels(made("agreement", question), 2)[CELL]["agreement"] == "0.80 ± 0.00"
    caught = by_labels(made("caught", question), 2)
    assert caught[CELL]["difference"] == "+50.0" and ("iid", "none") not in caught


def test_skew_with_size_held_fixed(question: list[dict[str, Any]]) -> None:
    """r = 0.6, and 0.8 with size, which skew has nothing to do with: 0.6 / sqrt(1 - 0.64) = 1."""
    assert by_labels(made("who", question), 2)[CELL]["difference"] == "+0.00"
    row = by_labels(made("size", question), 2)[CELL]
    assert row["`weights_only`, size fixed"].startswith("1.00") and row["`all_state`, size fixed"].startswith("0.60")
    whole = [run | {"size_weights_only": 1.0} for run in question]  # size says all of it: nothing is left to say
    assert by_labels(made("size", whole), 2)[CELL]["`weights_only`, size fixed"] == "-"


def test_the_partial_correlation_is_that_of_residuals() -> None:
    """What is left of x and y once z is taken out of both by regression, is correlated as the expression says."""
    x, y, z = np.random.default_rng(0).normal(size=(3, 50)) + np.random.default_rng(1).normal(size=50)
    residuals = [side - np.polyval(np.polyfit(z, side, 1), z) for side in (x, y)]
    names = ("skew_weights_only", "size_weights_only", "skew_size")
    pairs = (np.corrcoef(pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    lines = frame([line(**dict(zip(names, pairs, strict=True)))])
    expression = TABLES["size"][1]["columns"][0]["value"]
    assert lines.eval(expression, engine="python").item() == pytest.approx(np.corrcoef(residuals)[0, 1])


def test_what_became_of_the_runs_that_each_defended(question: list[dict[str, Any]]) -> None:
    row = by_labels(made("defended_ma", question), 2)[CELL]
    assert row["`fedavg` %"] == "70.0 ± 0.0" and row["difference"] == "+10.0"
    assert row["p"] == "n = 5: no test" and row["n"] == "5 (1 unfinished)"
    assert list(by_labels(made("backdoored", question), 2)[CELL].values())[2:] == [
        "6 of 6 [61, 100] %",
        "0 of 6 [0, 39] %",
        "0 of 5 [0, 43] %",
        "5 (1 unfinished)",
    ]
    assert list(by_labels(made("blocks", question), 2)[CELL].values())[2:4] == ["30.0 ± 0.0", "10.0 ± 0.0"]
    assert by_labels(made("blocks", question), 2)[CELL]["head in `weights_only` %"] == "25.0 ± 0.0"


def test_one_value_against_another_by_hand() -> None:
    """PDR 0.5 costs 2 and 4 points of MA and brings 30 and 50 of BA, under averaging; of FLAME a seed is missing."""
    values = {"0": {0: (0.8, 0.1), 1: (0.9, 0.1)}, "0.5": {0: (0.78, 0.4), 1: (0.86, 0.6)}}
    runs = [
        line(defense=name, settings=f"attack.poisoned_data_rate={rate}", seed=seed, ma=ma, ba=ba)
        for name in ("fedavg", FLAMES[1])
        for rate, seeds in values.items()
        for seed, (ma, ba) in seeds.items()
        if (name, rate, seed) != (FLAMES[1], "0", 1)
    ]
    found = made("dominant_label_poison", runs, {"seed": ("0", "1")})
    assert [*found.columns[:5]] == ["defense", "PDR", "share", "first %", "second %"]
    rows = by_labels(found, 3)
    assert rows["fedavg", "`0.5` minus `0`", "MA"]["difference"] == "-3.0"
    assert rows["fedavg", "`0.5` minus `0`", "MA"]["95 % interval"] == "[-15.7, +9.7]"  # 12.706 * sqrt(2) / sqrt(2)
    assert rows["fedavg", "`0.5` minus `0`", "BA"]["difference"] == "+40.0"
    assert rows[FLAMES[1], "`0.5` minus `0`", "MA"]["n"] == "1 (1 not run)"


def test_components_say_which_steps_are_on() -> None:
    found = made("components", [])
    assert [*found.columns[:4]] == ["attack", "clustering", "clipping", "noise"] and len(found) == 16
    steps = "defense.cluster.min_cluster_size=null defense.clip.apply_to=nothing defense.noise.factor=0"
    rows = by_labels(made("components", [line(attack="badnets", settings=steps, ma=0.8)]), 4)
    assert rows.pop(("badnets", "yes", "no", "no"))["MA %"] == "80.0" and {row["MA %"] for row in rows.values()} == {
        "-"
    }


def test_what_breaks_flame_most_stands_first() -> None:
    """IBA by its BA of 0.9 under one vector, although LP has 0.5 under both; of what was not run nothing is known."""
    plan = {"seed": ("0", "1"), "attack": ("none", "lp", "iba"), "partition": ("dirichlet_1",), "defense": DEFENSES}

    def attacked(attack: str, defense: str, ba: float, seeds: tuple[int, ...] = (0, 1)) -> list[dict[str, Any]]:
        shared = {"attack": attack, "partition": "dirichlet_1", "defense": defense, "filter/malicious_recall": 0.75}
        return [line(**shared, seed=seed, ma=0.8, ba=ba) for seed in seeds]

    runs = [run for name in FLAMES for run in attacked("lp", name, 0.5)] + attacked("iba", FLAMES[0], 0.0)
    found = made("later_attacks_equal", [*runs, *attacked("iba", FLAMES[1], 0.9, (0,))], plan).to_numpy().tolist()
    assert [row[0] for row in found] == ["iba", "lp", "none"]
    assert found[0][2:] == ["not run", "80.0 ± 0.0 / 0.0 ± 0.0", "80.0 / 90.0", "25.0 ± 0.0", "25.0", "0 (2 not run)"]


def test_evasion_at_equal_stealth_by_hand() -> None:
    """Each vector before its own attacker: BA 50 and 20, of averaging's updates 80 and 70 admitted."""

    def evading(adapt: str, defense: str, **values: float) -> list[dict[str, Any]]:
        settings = f"attack.adapt_to={adapt} attack.budget=1.0"
        return [line(settings=settings, defense=defense, seed=seed, **values) for seed in SEEDS]

    runs = evading("weights_only", FLAMES[0], ba=0.5, **{"filter/malicious_recall": 0.4})
    runs += evading("all_state", FLAMES[1], ba=0.2, **{"filter/malicious_recall": 0.5})
    shadows = [
        {"shadow/weights_only/malicious_recall": w, "shadow/all_state/malicious_recall": a}
        for w, a in ((0.2, 0.7), (0.6, 0.3))
    ]
    runs += evading("weights_only", "fedavg", ba=0.9, **shadows[0]) + evading(
        "all_state", "fedavg", ba=0.95, **shadows[1]
    )
    rows = by_labels(made("evasion", runs, {"seed": tuple("012345")}), 2)
    assert {labels: row["difference"] for labels, row in rows.items() if row["difference"] != "-"} == {
        ("1.0", "BA"): "+30.0",
        ("1.0", "malicious admitted"): "+10.0",
        ("1.0", "malicious admitted, of what averaging is sent"): "+10.0",
        ("1.0", "BA under averaging"): "-5.0",
    }
    across = by_labels(made("evasion_across", runs, {"seed": tuple("012345")}), 3)
    same = "malicious admitted, of what averaging is sent"
    assert across["weights_only", "1.0", same]["difference"] == "+50.0"
    assert across["all_state", "1.0", same]["difference"] == "-30.0"


def test_ablations_by_hand() -> None:
    """3DFed: 60 against 40 admitted by one FLAME; a seed without masks is unfinished. No mean of unlike rows."""
    values = {"threedfed": (0.4, 0.5), "threedfed_unmasked": (0.6, 0.75)}
    shared = {"settings": "attack_rounds.stop=20", "defense": "flame_3dfed"}
    runs = [
        line(**shared, attack=attack, seed=seed, ba_attacked=ba, **{"filter/malicious_recall": recall})
        for attack, (recall, ba) in values.items()
        for seed in SEEDS
    ]
    runs[-1]["state_sha256"] = ""
    rows = by_labels(made("ablations", runs, {"seed": tuple("012345")}), 4)
    masks = ("threedfed", "threedfed_unmasked", "flame_3dfed")
    admitted = rows[*masks, "malicious admitted"]
    assert admitted["attack %"] == "60.0 ± 0.0" and admitted["control %"] == "40.0 ± 0.0"
    assert admitted["difference"] == "+20.0" and admitted["expected"] == "> 0" and admitted["n"] == "5 (1 unfinished)"
    assert rows[*masks, "BA under attack"]["difference"] == "-25.0"
    assert (*masks[:2], "fedavg", "malicious admitted") not in rows and len(rows) == 20


def test_presets_by_hand() -> None:
    """Sets {0, 1, 2} and {1, 2, 3} have the index 2 / 4; then {0} and {0}: 1, mean 0.75."""
    plan = {"seed": ("0", "1"), "defense": ("flame_a", "flame_b", "flame_c")}
    runs = [
        line(defense=f"flame_{name}", ma=0.5, ba=0.0, agreement_weights_only=0.6, accepted_sets=sets)
        for name, sets in (("a", "1110 1000"), ("b", "0111 1000"))
    ]
    a, _, c = made("presets", runs, plan).to_numpy().tolist()
    assert a == ["flame_a", "50.0", "0.0", "-", "-", "0.60", "-", "1 (1 not run)"] and c[-1] == "0 (2 not run)"
    pairs = made("preset_pairs", runs, plan)
    assert [[*pairs.columns], *pairs.to_numpy().tolist()] == [
        ["", "1", "2", "3"],
        ["1 `flame_a`", "-", "0.50", "not run"],
        ["2 `flame_b`", "0.75", "-", "not run"],
        ["3 `flame_c`", "not run", "not run", "-"],
    ]


def test_the_papers_numbers_stand_beside_ours() -> None:
    runs = [line(attack="dba", defense=name, ma=0.8, ba=0.9) for name in ("fedavg", FLAMES[0])]
    rows = by_labels(made("attacks", runs), 1)
    assert rows["dba",]["paper: none"] == "57.4 [M] / 93.8 [M]" and rows["dba",]["FLAME"] == "76.2 [M] / 3.2 [M]"
    assert rows["dba",]["`fedavg`"] == "80.0 / 90.0" and rows["dba",]["`flame_all_state`"] == "not run"
    assert rows["alie",]["FLAME"] == "-" and next(iter(rows)) == ("none",)


# what the recipes promise each other


def test_a_recipe_starts_from_another() -> None:
    """zhmzm_fashion takes its sweep and its partition from zhmzm, and data and model from itself."""
    ours, theirs = KNOWN["zhmzm_fashion"], KNOWN["zhmzm"]
    assert ours.plan == theirs.plan and theirs.options["dataset"] == "cifar10"
    assert ours.options == {**theirs.options, "dataset": "fashion_mnist", "model": "resnet8"}


@pytest.mark.parametrize("recipe", [r for r in KNOWN.values() if "ablations" in r.config and "attack" in r.plan])
def test_every_planned_attack_is_one_side_of_an_ablation(recipe: Recipe) -> None:
    rows = [
        row
        for _, spec in TABLES.values()
        if _ is recipe
        for axis in spec["rows"]
        if isinstance(axis, list)
        for row in axis
    ]
    sides = {row[key] for row in rows for key in ("first", "second") if key in row}
    assert not sides or sides == set(recipe.plan["attack"])


NOT_IN_THE_ARENA = {"caf", "feddlad", "fedredefense", "flare", "flip", "indicator", "lasa", "masa"}  # came after it
NOT_IN_THE_ARENA |= {"multi_metrics", "smea"}


def test_every_other_defense_is_in_the_arena() -> None:
    """But FLAME's presets, the controls for it and what goes before another rule."""
    folder = RESULTS.parent / "conf" / "defense"
    files = {path.stem: path.read_text() for path in folder.glob("*.yaml")}
    rules = {n for n, text in files.items() if "/defense@" not in text and not n.startswith(("flame_", "majority_"))}
    assert sorted(KNOWN["arena"].plan["defense"]) == sorted(rules - NOT_IN_THE_ARENA | set(FLAMES))
