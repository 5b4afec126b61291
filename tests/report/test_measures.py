"""What real, tiny runs say of the two vectors: slow twins of every number, and the path to RESULTS.md."""

from __future__ import annotations

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
from flame.report.measures import chance_jaccard, jaccard
from flame.report.published import outdated, publish
from flame.report.records import frame, line
from flame.round.types import digest
from flame.run.build import build
from flame.run.folder import IDENTITY
from flame.run.holdings import holdings
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
    with pytest.raises(ValueError, match=r"client \d+ is dealt \d+ samples, and acceptance.csv says otherwise"):
        holdings(replace(averaged, config={**averaged.config, "seed": 1}))


def test_a_record_against_a_slow_twin(averaged: RunRecord) -> None:
    """Plain loops over the lines of acceptance.csv; Spearman's as Pearson's of the ranks."""
    found = line(averaged, [], also=["clients"])
    held, lines = holdings(averaged), averaged.acceptance
    indices = []
    for number in range(ROUNDS):
        a, b = (
            {row["client"] for row in lines if row["round"] == number and row[f"shadow_{vector}"]}
            for vector in ("weights_only", "all_state")
        )
        indices.append(len(a & b) / len(a | b))
    assert found["agreement"] == pytest.approx(np.mean(indices))
    for vector in ("weights_only", "all_state"):
        benign = [row for row in lines if not row["compromised"]]
        recalls = [[row[f"shadow_{vector}"] for row in benign if row["round"] == number] for number in range(ROUNDS)]
        assert found[f"shadow/{vector}/benign_recall"] == pytest.approx(np.mean([np.mean(r) for r in recalls]))
        verdicts = {c: [row[f"shadow_{vector}"] for row in benign if row["client"] == c] for c in range(10)}
        often = [client for client, given in verdicts.items() if len(given) >= 3]
        rejected = rankdata([1 - np.mean(verdicts[client]) for client in often])
        assert 3 <= len(often) < 10
        for name, values in (("skew", held.skew), ("size", held.sizes)):
            expected = np.corrcoef(rejected, rankdata(values[often]))[0, 1]
            assert found[f"{name}_{vector}"] == pytest.approx(expected)
    shares = [found[f"xray/{block}/distance_share"] for block in ("trunk", "head", "running_mean", "running_var")]
    assert sum(shares) == pytest.approx(1) and found["filter/floor"] == pytest.approx(0.25)  # 4 benign, 3 of 5 accepted
    assert found["defense"] == "fedavg" and found["ma"] == averaged.reported("eval/ma")
    assert np.isnan(line(averaged, [])["skew_size"])  # only where a recipe wants it: it takes the data


def test_an_unfinished_run_has_no_numbers(averaged: RunRecord) -> None:
    found = line(replace(averaged, summary=None), [], also=["clients"])
    assert found["state_sha256"] == "" and np.isnan([found["ma"], found["agreement"], found["skew_all_state"]]).all()


def test_accepted_sets_are_written_out(recorded: Path) -> None:
    run = read_run(recorded / "flame_weights_only")
    found = line(run, [], also=["accepted_sets"])
    assert found["agreement_weights_only"] == 1  # it accepts what its own shadow would
    assert found["agreement_all_state"] == pytest.approx(found["agreement"])
    assert [int(digit) for digit in found["accepted_sets"].replace(" ", "")] == run.acceptance["accepted"].tolist()
    assert len(found["accepted_sets"].split()) == ROUNDS and line(run, [])["accepted_sets"] == ""


def test_the_backdoor_before_and_after_the_attack_by_hand(averaged: RunRecord) -> None:
    """Four attacked rounds; the last two: (0.6 + 0.8) / 2, then (0.4 + 0) / 2; half of the malicious updates got in."""
    recall = np.array([1.0, 0.5, 0.0, 0.5, np.nan, np.nan])
    metrics = {"eval/ba": np.array([0.1, 0.2, 0.6, 0.8, 0.4, 0.0]), "filter/malicious_recall": recall}
    run = replace(averaged, metrics={**averaged.metrics, **metrics}, summary={**averaged.summary, "mean_of_last": 2})
    found = line(run, [])
    assert (found["ba_attacked"], found["ba_after"]) == pytest.approx((0.7, 0.2))
    assert found["filter/malicious_recall"] == 0.5
    peaceful = replace(run, metrics={**run.metrics, "filter/malicious_recall": recall * np.nan})
    assert np.isnan(line(peaceful, [])["ba_attacked"])


def test_records_survive_a_file(recorded: Path) -> None:
    kept = [line(read_run(folder), ["seed"], also=["clients"]) for folder in find_runs([recorded])]
    once = frame(kept)
    assert once["agreement"].tolist() == pytest.approx([one["agreement"] for one in kept], rel=1e-8)
    assert once["skew_size"].tolist() == pytest.approx([one["skew_size"] for one in kept], rel=1e-8)


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
    recipes._composed.cache_clear()
    marks = recipes.recipes()["vector_question"].own["tables"]
    (tmp_path / "RESULTS.md").write_text("".join(f"<!-- table: {m} -->\n<!-- end: {m} -->\n" for m in marks))
    publish("vector_question", gather(map(read_run, find_runs([recorded]))), tmp_path)
    recipes._composed.cache_clear()
    assert {path.stem for path in (tmp_path / "results" / "tables").iterdir()} == marks.keys()
    text = (tmp_path / "RESULTS.md").read_text()
    assert f"over all {ROUNDS} rounds; seed 0; commit 0123456." in text
    rows = [row for row in text.splitlines() if row.startswith("| dirichlet_05 | badnets |")]
    assert len(rows) == len(marks)
    assert sorted({row.rpartition(" | ")[2] for row in rows}) == ["0 (6 not run) |", "1 (5 not run) |"]
    assert "| iid | none | - |" in text and "0 (6 not run)" in text
    assert outdated(tmp_path, ["vector_question"]) == []
