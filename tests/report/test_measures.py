"""What real, tiny runs say of the two vectors: slow twins of every number, and the path to RESULTS.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from scipy.stats import rankdata

from flame.federation import rounds
from flame.report import recipes
from flame.report.catalogue import TABLES
from flame.report.holdings import holdings
from flame.report.published import ROOT, derived, outdated, publish
from flame.report.records import csv_of, records_of
from flame.report.vectors import PresetLine, VectorLine, chance_jaccard, jaccard
from flame.round.types import digest
from flame.run.build import build
from flame.run.folder import IDENTITY
from flame.run.record import RunRecord, find_runs, gather, read_run
from flame.run.trackers.files import CHOICES, CONFIG, ENVIRONMENT, SUMMARY, RunFiles, write_json

CHOSEN = {"dataset": "fashion_mnist", "partition": "dirichlet_05", "model": "resnet8", "attack": "badnets"}
ROUNDS = 6  # of 5 clients out of 10: each is drawn three times on average


@pytest.fixture(scope="module")
def recorded(tiny: Callable, start: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of a cell of the question, as a run leaves them but for the figure; one was not run."""
    folder = tmp_path_factory.mktemp("runs")
    for defense in ("fedavg", "flame_weights_only"):
        record_run(folder / defense, CHOSEN | {"defense": defense}, tiny, start)
    return folder


def record_run(folder: Path, choices: dict[str, str], tiny: Callable, start: Callable) -> None:
    folder.mkdir()
    chosen = [f"{group}={choices[group]}" for group in ("partition", "attack", "defense")]
    cfg = tiny(*chosen, f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}")
    (folder / CONFIG).write_text(yaml.safe_dump(OmegaConf.to_container(cfg, resolve=True)))
    write_json(folder / CHOICES, choices)
    write_json(folder / IDENTITY, {"identity": choices["defense"]})
    write_json(folder / ENVIRONMENT, {"commit": "0123456789", "dirty": False, "processor": "P"})
    files = RunFiles(folder, 0)
    with start(cfg) as (federation, state):
        for record in rounds(federation, state, ROUNDS):
            files.log(record)
    write_json(folder / SUMMARY, files.summary(2, digest(record.after), choices))


@pytest.fixture(scope="module")
def averaged(recorded: Path) -> RunRecord:
    return read_run(recorded / "fedavg")


def test_the_recomputed_shards_are_those_of_the_run(averaged: RunRecord) -> None:
    """Sizes against acceptance.csv, label skew against the shards of a federation that is built anew."""
    held = holdings(averaged)
    assert (held.sizes[averaged.acceptance["client"]] == averaged.acceptance["samples"]).all()
    assert np.ptp(held.sizes) > 0
    task = build(OmegaConf.create(dict(averaged.config))).task
    mixes = np.array([np.bincount(task.train.y[task.shards[client]], minlength=10) for client in range(10)])
    overall = mixes.sum(0) / mixes.sum()
    assert held.skew == pytest.approx([abs(mix / mix.sum() - overall).sum() / 2 for mix in mixes])


@pytest.mark.parametrize("defense", [["defense=fltrust"], ["defense=nnm", "defense@defense.rule=fltrust"]])
def test_the_servers_own_images_are_no_clients(averaged: RunRecord, tiny: Callable, defense: list[str]) -> None:
    cfg = tiny("partition=dirichlet_05", *defense)
    config = OmegaConf.to_container(cfg, resolve=True)
    held = holdings(replace(averaged, config=config, acceptance=averaged.acceptance[:0]))
    assert held.sizes.tolist() == build(cfg).task.shards.sizes[:-1].tolist() and held.sizes.sum() == 200


def test_shards_that_were_dealt_otherwise_are_refused(averaged: RunRecord) -> None:
    with pytest.raises(ValueError, match=r"client \d+ is dealt \d+ images, but acceptance.csv says otherwise"):
        holdings(replace(averaged, config={**averaged.config, "seed": 1}))


def test_a_record_against_a_slow_twin(averaged: RunRecord) -> None:
    """Plain loops over the lines of acceptance.csv; Spearman's as Pearson's of the ranks."""
    found = VectorLine.of(averaged)
    held, lines = holdings(averaged), averaged.acceptance
    indices = []
    for number in range(ROUNDS):
        a, b = (
            {row["client"] for row in lines if row["round"] == number and row[f"shadow_{vector}"]}
            for vector in ("weights_only", "all_state")
        )
        indices.append(len(a & b) / len(a | b))
    assert found.agreement == pytest.approx(np.mean(indices))
    for vector in ("weights_only", "all_state"):
        benign = [row for row in lines if not row["compromised"]]
        recalls = [[row[f"shadow_{vector}"] for row in benign if row["round"] == number] for number in range(ROUNDS)]
        assert getattr(found, f"benign_recall_{vector}") == pytest.approx(np.mean([np.mean(r) for r in recalls]))
        verdicts = {c: [row[f"shadow_{vector}"] for row in benign if row["client"] == c] for c in range(10)}
        often = [client for client, given in verdicts.items() if len(given) >= 3]
        rejected = rankdata([1 - np.mean(verdicts[client]) for client in often])
        assert 3 <= len(often) < 10
        for name, values in (("skew", held.skew), ("size", held.sizes)):
            expected = np.corrcoef(rejected, rankdata(values[often]))[0, 1]
            assert getattr(found, f"{name}_{vector}") == pytest.approx(expected)
    shares = [getattr(found, f"distance_share_{block}") for block in ("trunk", "head", "running_mean", "running_var")]
    assert sum(shares) == pytest.approx(1) and found.floor == pytest.approx(0.25)  # 4 benign, 3 of 5 accepted
    assert found.defense == "fedavg" and found.ma == averaged.reported("eval/ma")


def test_an_unfinished_run_has_no_numbers(averaged: RunRecord) -> None:
    found = VectorLine.of(replace(averaged, summary=None))
    assert found.state_sha256 == "" and np.isnan([found.ma, found.agreement, found.skew_all_state]).all()


def test_accepted_sets_are_written_out(recorded: Path) -> None:
    run = read_run(recorded / "flame_weights_only")
    found = PresetLine.of(run)
    assert found.agreement_weights_only == 1  # it accepts what its own shadow would
    assert found.agreement_all_state == pytest.approx(VectorLine.of(run).agreement)
    assert [int(digit) for digit in found.accepted_sets.replace(" ", "")] == run.acceptance["accepted"].tolist()
    assert len(found.accepted_sets.split()) == ROUNDS


def test_records_survive_a_file(recorded: Path) -> None:
    for kind in (VectorLine, PresetLine):
        kept = [kind.of(read_run(folder)) for folder in find_runs([recorded])]
        text = csv_of(kind, kept)
        once = records_of(text, kind)
        assert csv_of(kind, once) == text
        assert [run.agreement_all_state if kind is PresetLine else run.agreement for run in once] == pytest.approx(
            [run.agreement_all_state if kind is PresetLine else run.agreement for run in kept], rel=1e-5
        )


def test_jaccard_by_hand() -> None:
    a, b, none = (np.array(bits, dtype=bool) for bits in ([1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]))
    assert jaccard(a, b) == 0.5 and jaccard(a, none) == 0 and jaccard(none, none) == 1


def test_agreement_by_chance_against_all_sets() -> None:
    """3 of 4 benign and 1 of 2 malicious clients; 2 of 4 and 0 of 2: every pair of such sets is as likely."""
    malicious = np.array([0, 0, 0, 0, 1, 1], dtype=bool)

    def sets(benign: int, hostile: int) -> list[np.ndarray]:
        chosen = product(combinations(range(4), benign), combinations((4, 5), hostile))
        return [np.isin(np.arange(6), [*good, *bad]) for good, bad in chosen]

    ours, theirs = sets(3, 1), sets(2, 0)
    expected = np.mean([jaccard(a, b) for a in ours for b in theirs])
    assert chance_jaccard(ours[0], theirs[0], malicious) == pytest.approx(expected)
    assert chance_jaccard(ours[0] & ~malicious, theirs[0], np.zeros(6, dtype=bool)) > 0  # nobody malicious


def test_runs_become_the_tables_of_the_question(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tiny federations, which no table would take."""
    monkeypatch.setattr(recipes, "FREE", recipes.FREE | {"dataset", "clients", "clients_per_round", "train_samples"})
    shutil.copy(ROOT / "RESULTS.md", tmp_path)
    assert len(derived("vector_question", [], tmp_path)) == 1  # before any run: sentences in the document
    publish("vector_question", gather(map(read_run, find_runs([recorded]))), tmp_path)
    assert len(list((tmp_path / "results" / "tables").iterdir())) == len(TABLES["vector_question"].blocks)
    whole, marks = (tmp_path / "RESULTS.md").read_text(), TABLES["vector_question"].blocks
    text = "".join(whole.partition(f"<!-- table: {mark} -->")[2].partition("<!-- end: ")[0] for mark in marks)
    assert f"over all {ROUNDS} rounds; seed 0; commit 0123456." in text
    rows = [line for line in text.splitlines() if line.startswith("| dirichlet_05 | badnets |")]
    assert len(rows) == len(marks)
    assert sorted({line.rpartition(" | ")[2] for line in rows}) == ["0 (6 not run) |", "1 (5 not run) |"]
    assert "| iid | none | - |" in text and "0 (6 not run)" in text
    assert outdated(tmp_path, ["vector_question"]) == []
    (tmp_path / "results" / "tables" / "who.csv").write_text("by hand")
    assert [line.split()[0] for line in outdated(tmp_path, ["vector_question"])] == ["results/tables/who.csv"]
