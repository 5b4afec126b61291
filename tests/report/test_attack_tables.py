"""Tables of attacks by hand: what breaks FLAME most, the ranking of its rivals, evasion at equal stealth, ablations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from test_report import write_run

from flame.report.ablation_tables import ABLATIONS, ablations
from flame.report.admissions import AblationLine, AttackLine, EvasionLine
from flame.report.attack_tables import evasion, evasion_across, later_attacks, ranking, strongest
from flame.report.published import ROOT
from flame.report.recipes import plan
from flame.report.records import Kind, read
from flame.run.record import RunRecord, read_run

NAN = math.nan
SEEDS = range(6)
FLAMES = ("flame_weights_only", "flame_all_state")


def line(kind: type[Kind], **values: Any) -> Kind:
    """A finished run; numbers that are not given are NaN."""
    blank = {f.name: "" if str(f.type) == "str" else NAN for f in fields(kind)}
    return kind(**blank | {"seed": 0, "rounds": 24, "mean_of_last": 5, "commit": "c", "state_sha256": "h"} | values)


def by_labels(table: Any, count: int) -> dict[tuple[str, ...], dict[str, str]]:
    """The first `count` columns -> column -> text."""
    header, *rows = table
    return {tuple(row[:count]): dict(zip(header, row, strict=True)) for row in rows}


# what a run says


BA = (0.1, 0.2, 0.6, 0.8, 0.4, 0.0)
OWN = (1.0, 0.5, 0.0, 0.5, None, None)  # recall of malicious updates; the attack stops after four rounds
SHADOW = (1.0, 0.0, 0.0, 0.0, None, None)
ROUNDS = [
    {"eval/ba": ba, "filter/malicious_recall": own, "shadow/weights_only/malicious_recall": shadow}
    for ba, own, shadow in zip(BA, OWN, SHADOW, strict=True)
]


def recorded(folder: Path, finished: bool = True) -> RunRecord:
    write_run(folder, rows=ROUNDS, summary={"eval/ba": 0.2} if finished else None)
    run = read_run(folder)
    config = {**run.config, "attack": {"adapt_to": "both", "budget": 0.8}, "attack_rounds": {"stop": 4}}
    return replace(run, config=config, summary=run.summary and {**run.summary, "mean_of_last": 2})


def test_a_line_by_hand(tmp_path: Path) -> None:
    """Half of the malicious updates got in, three quarters past the shadow; BA (0.6 + 0.8) / 2, then (0.4 + 0) / 2."""
    run = recorded(tmp_path)
    found = AblationLine.of(run)
    assert (found.admitted, found.admitted_weights_only) == (0.5, 0.75) and math.isnan(found.admitted_all_state)
    assert (found.ba_attacked, found.ba_after, found.ba) == pytest.approx((0.7, 0.2, 0.2))
    assert (found.attack, found.partition, found.stop) == ("badnets", "dirichlet", "4")
    assert EvasionLine.of(run).adapt_to == "both" and AttackLine.of(run).admitted == 0.5


def test_an_unfinished_run_says_nothing_yet(tmp_path: Path) -> None:
    found = AblationLine.of(recorded(tmp_path, finished=False))
    assert found.state_sha256 == "" and found.stop == "4"
    assert all(map(math.isnan, (found.ba, found.admitted, found.ba_attacked, found.ba_after)))


def test_a_run_without_an_attack_has_no_backdoor_under_it(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    peaceful = {**run.metrics, "filter/malicious_recall": run.metric("none")}
    assert math.isnan(AblationLine.of(replace(run, metrics=peaceful)).ba_attacked)


# which attacks break FLAME


PLAN = {"seed": ("0", "1"), "attack": ("lp", "iba"), "partition": ("dirichlet_1",), "defense": ("fedavg", *FLAMES)}


def attacked(attack: str, defense: str, ba: float, admitted: float, seeds: Iterable[int] = (0, 1)) -> list[AttackLine]:
    shared = {"attack": attack, "partition": "dirichlet_1", "defense": defense, "ma": 0.8}
    return [line(AttackLine, seed=seed, ba=ba, admitted=admitted, **shared) for seed in seeds]


def test_what_breaks_flame_most_stands_first() -> None:
    """IBA by its BA of 0.9 under one vector, although LP has 0.5 under both."""
    lp = [run for name in FLAMES for run in attacked("lp", name, 0.5, 0.25)]
    iba = [*attacked("iba", "fedavg", 1.0, 1.0), *attacked("iba", FLAMES[0], 0.0, 0.0)]
    iba += attacked("iba", FLAMES[1], 0.9, 1.0, seeds=[0])
    header, first, second = later_attacks([*lp, *iba], PLAN)
    assert header[:5] == ["attack", "partition", "`fedavg`", "`flame_weights_only`", "`flame_all_state`"]
    averaged, weights = "80.0 ± 0.0 / 100.0 ± 0.0", "80.0 ± 0.0 / 0.0 ± 0.0"
    assert first[:5] == ["iba", "dirichlet_1", averaged, weights, "80.0 / 90.0"]
    assert first[5:] == ["0.0 ± 0.0", "100.0", "1 (1 not run)"]
    assert second[:3] == ["lp", "dirichlet_1", "not run"] and second[5:] == ["25.0 ± 0.0"] * 2 + ["0 (2 not run)"]
    assert [row[0] for row in later_attacks([], PLAN)[1:]] == ["lp", "iba"]


# the strongest defenses


RIVALS = {"seed": ("100", "101"), "attack": ("badnets", "dba"), "defense": ("krum", "afa", "rlr", "median", "crfl")}


def rival(defense: str, *ba: float) -> list[AttackLine]:
    """With MA 0.9 and those BAs: badnets and dba of seed 100, then of 101."""
    cells = [(seed, attack) for seed in (100, 101) for attack in RIVALS["attack"]]
    return [
        line(AttackLine, defense=defense, attack=attack, seed=seed, ma=0.9, ba=value)
        for (seed, attack), value in zip(cells, ba, strict=False)
    ]


def test_the_ranking_by_hand() -> None:
    """MA - BA: krum 90, 70; afa and rlr 80, 80; median without a run, crfl without a finished one."""
    runs = rival("krum", 0.0, 0.0, 0.2, 0.2) + rival("rlr", 0.1, 0.1, 0.1, 0.1) + rival("afa", 0.2, 0.0, 0.0, 0.2)
    runs += rival("median", 1.0, 1.0, 1.0) + [replace(run, state_sha256="") for run in rival("crfl", 0.0, 0.0)]
    assert ranking(runs, RIVALS) == ["afa", "krum", "rlr"]  # equal means, by name
    better = [replace(run, ba=0.0) if run.defense == "rlr" else run for run in runs]
    assert ranking(better, RIVALS) == ["rlr", "afa", "krum"]
    header, first, second, _, fourth, last = strongest(runs, RIVALS)
    assert header == ["rank", "defense", "`badnets`: MA / BA", "`dba`: MA / BA", "MA - BA", "n"]
    assert first[:2] == ["1", "`afa`"] and first[4:] == ["80.0 ± 0.0", "2"]
    assert second[4] == "80.0 ± 127.1"  # t(0.975, 1) = 12.706, and s / sqrt(2) = 10
    assert fourth[:2] == ["-", "`crfl`"] and fourth[4:] == ["-", "0 (1 unfinished, 1 not run)"]
    assert last[:2] == ["-", "`median`"] and last[4:] == ["-10.0", "1 (1 not run)"]


def test_the_columns_of_later_attacks_are_the_first_five_of_the_ranking() -> None:
    ranked = ranking(read(ROOT / "results" / "strongest.csv", AttackLine), plan("strongest_digits"))
    assert plan("later_attacks_digits")["defense"] == ("fedavg", *FLAMES, *ranked[:5])


def test_the_ranking_shares_no_seed_and_no_partition_with_what_it_serves() -> None:
    assert not set(plan("strongest_digits")["seed"]) & set(plan("later_attacks_digits")["seed"])
    assert "override partition: dirichlet_05" in (ROOT / "conf" / "strongest_digits.yaml").read_text()
    assert "dirichlet_05" not in plan("later_attacks_digits")["partition"]


def test_every_other_defense_is_ranked() -> None:
    """But FedAvg, FLAME's presets, the controls for it and what goes before another rule."""
    files = {path.stem: path.read_text() for path in (ROOT / "conf" / "defense").glob("*.yaml")}
    rules = {
        name for name, text in files.items() if "/defense@" not in text and not name.startswith(("flame_", "majority_"))
    }
    assert sorted(plan("strongest_digits")["defense"]) == sorted(rules - {"fedavg"})


# evasion


ADAPTIVE = {
    "seed": tuple("012345"),
    "adapt_to": ("weights_only", "all_state", "both"),
    "budget": ("0.9", "1.0"),
    "defense": ("fedavg", *FLAMES),
}
SAME = "malicious admitted, of what averaging is sent"


def evading(adapt_to: str, defense: str, budget: str = "1.0", **values: float) -> list[EvasionLine]:
    return [line(EvasionLine, seed=s, adapt_to=adapt_to, budget=budget, defense=defense, **values) for s in SEEDS]


@pytest.fixture
def evaders() -> list[EvasionLine]:
    runs = evading("weights_only", FLAMES[0], ba=0.5, admitted=0.6)
    runs += evading("all_state", FLAMES[1], ba=0.2, admitted=0.5)
    runs += evading("all_state", FLAMES[0], "0.9", ba=0.7) + evading("all_state", FLAMES[1], "0.9", ba=0.1)
    runs += evading("weights_only", FLAMES[1], ba=0.1, admitted=0.0)[:5]
    runs += evading("weights_only", "fedavg", ba=0.9, admitted_weights_only=0.8, admitted_all_state=0.3)
    return runs + evading("all_state", "fedavg", ba=0.95, admitted_weights_only=0.4, admitted_all_state=0.7)


def differences(rows: Mapping[tuple[str, ...], Mapping[str, str]]) -> dict[tuple[str, ...], str]:
    return {labels: row["difference"] for labels, row in rows.items() if row["difference"] != "-"}


def test_evasion_at_equal_stealth_by_hand(evaders: list[EvasionLine]) -> None:
    """Each vector before its own attacker: BA 50 and 20, of averaging's updates 80 and 70 admitted."""
    rows = by_labels(evasion(evaders, ADAPTIVE), 2)
    assert differences(rows) == {
        ("1.0", "BA"): "+30.0",
        ("1.0", "malicious admitted"): "+10.0",
        ("1.0", SAME): "+10.0",
        ("1.0", "BA under averaging"): "-5.0",
    }
    own = rows["1.0", "BA"]
    assert own["`weights_only` %"] == "50.0 ± 0.0" and own["`all_state` %"] == "20.0 ± 0.0" and own["p"] == "0.031"
    assert rows["0.9", "BA"]["n"] == "0 (6 not run)"


def test_evasion_of_one_attacker_by_hand(evaders: list[EvasionLine]) -> None:
    rows = by_labels(evasion_across(evaders, ADAPTIVE), 3)
    assert differences(rows) == {
        ("`weights_only`", "1.0", "BA"): "+40.0",
        ("`weights_only`", "1.0", "malicious admitted"): "+60.0",
        ("`weights_only`", "1.0", SAME): "+50.0",
        ("`all_state`", "1.0", SAME): "-30.0",
        ("`all_state`", "0.9", "BA"): "+60.0",
    }
    assert rows["`weights_only`", "1.0", "BA"]["n"] == "5 (1 not run)"
    assert rows["`both`", "1.0", "BA"]["n"] == "0 (6 not run)"


# ablations


@pytest.mark.parametrize("recipe", ["ablations_digits", "masks_wide_digits", "layers_fashion", "durability_digits"])
def test_every_planned_attack_is_one_side_of_an_ablation(recipe: str) -> None:
    planned = set(plan(recipe)["attack"])
    pairs = [{ablation.attack, ablation.control} for ablation in ABLATIONS]
    assert set().union(*(pair for pair in pairs if pair <= planned)) == planned


def test_ablations_by_hand() -> None:
    """3DFed: 60 against 40 admitted by one FLAME; BA of seed 0 is unfinished without masks. No mean of unlike rows."""
    planned = (*(side for pair in ABLATIONS for side in (pair.attack, pair.control) if side != "chameleon"),)
    swept = {"seed": tuple("012345"), "attack": planned, "defense": ("fedavg", "flame_3dfed")}
    values = {"threedfed": (0.6, 0.5), "threedfed_unmasked": (0.4, 0.75)}
    runs = [
        line(AblationLine, attack=attack, defense="flame_3dfed", seed=seed, admitted=admitted, ba_attacked=ba)
        for attack, (admitted, ba) in values.items()
        for seed in SEEDS
    ]
    runs[-1] = replace(runs[-1], state_sha256="")
    rows = by_labels(ablations(runs, swept), 4)
    masks = ("`threedfed`", "`threedfed_unmasked`", "`flame_3dfed`")
    admitted = rows[*masks, "malicious admitted"]
    assert admitted["attack %"] == "60.0 ± 0.0" and admitted["control %"] == "40.0 ± 0.0"
    assert admitted["difference"] == "+20.0" and admitted["expected"] == "> 0" and admitted["n"] == "5 (1 unfinished)"
    assert rows[*masks, "BA under attack"]["difference"] == "-25.0"
    assert (*masks[:2], "`fedavg`", "malicious admitted") not in rows
    assert rows["`neurotoxin`", "`badnets`", "`fedavg`", "BA afterwards"]["n"] == "0 (6 not run)"
    assert len(rows) == 2 * 12 + 1 and not any("mean" in labels[0] for labels in rows)
