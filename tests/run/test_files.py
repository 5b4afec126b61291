"""The record of a run: a line per round, a line per client, means worked by hand, and an identity per result."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from flame.federation import Round
from flame.round.checkpoint import RunFolderError
from flame.run.config import identity
from flame.run.trackers.files import (
    ACCEPTANCE,
    METRICS,
    SUMMARY,
    RunFiles,
    finite_or_none,
    mean_of_last,
    read_metrics,
)

NAN = math.nan


def written(folder: Path, history: list[Round]) -> RunFiles:
    files = RunFiles(folder, 0)
    for record in history:
        files.log(record)
    return files


def clients(folder: Path) -> list[dict[str, str]]:
    with open(folder / ACCEPTANCE) as file:
        return list(csv.DictReader(file))


def test_one_line_of_metrics_a_round(tmp_path: Path, history: list[Round]) -> None:
    files = RunFiles(tmp_path, 0)
    for done, record in enumerate(history, 1):
        files.log(record)
        assert (tmp_path / METRICS).read_text().count("\n") == done  # flushed at once
    for found, record in zip(read_metrics(tmp_path), history, strict=True):
        assert found == {"round": record.number, **record.metrics}


def test_one_line_a_client(tmp_path: Path, history: list[Round]) -> None:
    written(tmp_path, history)
    found = clients(tmp_path)
    assert list(found[0]) == [
        *("round", "client", "compromised", "samples", "accepted"),
        *("shadow_weights_only", "shadow_all_state", "weight", "norm", "clip_factor"),
    ]
    assert len(found) == sum(len(record.updates) for record in history)
    last = [row for row in found if row["round"] == "2"]
    record = history[2]
    assert [int(row["client"]) for row in last] == record.cohort.ids.tolist()
    assert [row["compromised"] == "1" for row in last] == record.cohort.compromised.tolist()
    assert [int(row["samples"]) for row in last] == record.updates.samples.tolist()
    assert [row["accepted"] == "1" for row in last] == record.verdict.accepted.tolist()
    for scope, shadow in record.shadows.items():
        assert [row[f"shadow_{scope}"] == "1" for row in last] == shadow.accepted.tolist()
    norms = record.updates.rows[:, : record.updates.layout.trainable].double().norm(dim=1)
    assert [float(row["norm"]) for row in last] == pytest.approx(norms.tolist(), rel=1e-8)
    factors = (norms.quantile(0.5) / norms).clamp(max=1)
    assert [float(row["clip_factor"]) for row in last] == pytest.approx(factors.tolist(), rel=1e-8)
    assert sum(float(row["weight"]) for row in last) == pytest.approx(1, rel=1e-5)


def test_mean_of_the_last_rounds_by_hand() -> None:
    history = [
        {"round": 0, "eval/ma": 0.9, "eval/ba": 0.1, "early": 1.0},
        {"round": 1, "eval/ma": 0.5, "eval/ba": None},
        {"round": 2, "eval/ma": 0.25, "eval/ba": 0.5},
    ]
    assert mean_of_last(history, 1) == ({"eval/ma": 0.25, "eval/ba": 0.5}, {})
    assert mean_of_last(history, 2) == ({"eval/ma": 0.375, "eval/ba": 0.5}, {"eval/ba": 1})
    means, counted = mean_of_last(history, 9)
    assert means == pytest.approx({"eval/ma": 0.55, "eval/ba": 0.3, "early": 1.0})  # never the maximum, 0.9
    assert counted == {"eval/ba": 2, "early": 1}


def test_undefined_shares_and_unmeasured_rounds_do_not_count_but_a_diverged_loss_does() -> None:
    """Three rounds, attackers only in the second and third, the model evaluated in the first and third."""
    history = [
        {"round": 0, "eval/ma": 0.5, "eval/ma_loss": 1.0, "filter/malicious_recall": None, "train/loss": 1.0},
        {"round": 1, "filter/malicious_recall": 1.0, "train/loss": None},
        {"round": 2, "eval/ma": 0.75, "eval/ma_loss": 2.0, "filter/malicious_recall": 0.5, "train/loss": 1.0},
    ]
    wanted = {"eval/ma": 0.625, "eval/ma_loss": 1.5, "filter/malicious_recall": 0.75, "train/loss": NAN}
    means, counted = mean_of_last(history, 3)
    assert means == pytest.approx(wanted, nan_ok=True)
    assert counted == {"eval/ma": 2, "eval/ma_loss": 2, "filter/malicious_recall": 2}
    assert mean_of_last(history[:2], 1)[0] == pytest.approx(
        {"filter/malicious_recall": 1, "train/loss": NAN}, nan_ok=True
    )
    history[2]["eval/ma_loss"] = None
    assert math.isnan(mean_of_last(history, 3)[0]["eval/ma_loss"])


@pytest.mark.parametrize("key", ["auc/head", "shadow/head/malicious_recall", "filter/malicious_recall"])
def test_never_defined_is_nan_of_no_rounds(key: str) -> None:
    means, counted = mean_of_last([{"round": 0, key: None}, {"round": 1, key: None}], 2)
    assert math.isnan(means[key]) and counted == {key: 0}


def test_undefined_is_null() -> None:
    assert finite_or_none({"a": 1.0, "b": NAN, "c": math.inf}) == {"a": 1.0, "b": None, "c": None}


def test_summary(tmp_path: Path, history: list[Round]) -> None:
    summary = written(tmp_path, history).summary(2, "f00d", {"identity": "abc", "defense": "flame"})
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert not (tmp_path / SUMMARY).exists()
    wanted = (history[1].metrics["eval/ma"] + history[2].metrics["eval/ma"]) / 2
    assert summary["metrics"]["eval/ma"] == pytest.approx(wanted)
    undefined = [key for key, value in summary.pop("metrics").items() if value is None]
    assert set(undefined) <= set(summary.pop("rounds_counted"))
    facts = {"rounds": 3, "mean_of_last": 2, "state_sha256": "f00d", "identity": "abc", "defense": "flame"}
    assert summary == {"finished": True, **facts}


def test_what_an_interrupted_run_left_is_cut_back(tmp_path: Path, history: list[Round]) -> None:
    """Three rounds on disk, the checkpoint after the second: the files are as if the third had never been."""
    written(tmp_path, history)
    whole = {name: (tmp_path / name).read_bytes() for name in (METRICS, ACCEPTANCE)}
    files = RunFiles(tmp_path, 2)
    assert [row["round"] for row in read_metrics(tmp_path)] == [0, 1]
    assert {row["round"] for row in clients(tmp_path)} == {"0", "1"}
    files.log(history[2])
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


@pytest.mark.parametrize("name", [METRICS, ACCEPTANCE])
def test_a_half_written_line_is_dropped(tmp_path: Path, history: list[Round], name: str) -> None:
    written(tmp_path, history)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-20])
    files = RunFiles(tmp_path, 2)
    files.log(history[2])
    assert (tmp_path / name).read_bytes() == whole


def test_a_run_from_the_start_forgets_older_lines(tmp_path: Path, history: list[Round]) -> None:
    written(tmp_path, history)
    RunFiles(tmp_path, 0)
    assert read_metrics(tmp_path) == [] and clients(tmp_path) == []


def test_rounds_that_are_missing(tmp_path: Path, history: list[Round]) -> None:
    written(tmp_path, history[:1])
    with pytest.raises(RunFolderError, match="ends at round 0, the checkpoint at 1"):
        RunFiles(tmp_path, 2)


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "rounds=4", "clients=11", "clients_per_round=4", "train_samples=200", "poisoned_model_rate=0.3"),
        *("attackers=random", "attack_rounds.start=1", "attack_rounds.every=2", "shadow=[head]", "report_last=1"),
        *("threads=2", "client.lr=0.1", "client.epochs=2", "model.norm=none", "model=cnn", "partition=dirichlet"),
        *("attack=none", "attack.poisoned_data_rate=0.4", "attack.trigger.size=4", "attack.target_class=1"),
        *("defense=fedavg", "defense=flame_all_state", "defense.noise.factor=0.01", "evaluate_every=2"),
        "precision=bf16",
    ],
)
def test_identity_changes_with_the_result(tiny: Callable[..., DictConfig], override: str) -> None:
    assert identity(tiny(override)) != identity(tiny())


@pytest.mark.parametrize(
    "override",
    [
        *("paths.runs=/elsewhere", "paths.data=/elsewhere", "tracker=wandb", "engine=pool", "resume=force"),
        *("checkpoint.rounds=1", "checkpoint.seconds=9", "record.every=2", "seed=0", "spill.share=0", "device=cuda"),
    ],
)
def test_identity_ignores_what_cannot_change_it(tiny: Callable[..., DictConfig], override: str) -> None:
    assert identity(tiny(override)) == identity(tiny())


def test_identity_of_data_of_one_s_own(tiny: Callable[..., DictConfig]) -> None:
    """Where `paths.data` lies does not count; a place that is given may be all that tells two data sets apart.

    Ours verify what they find, so that another place is the same data.
    """

    def own(target: str, **settings: str) -> str:
        cfg = tiny().copy()
        cfg.dataset = {"_target_": target, "classes": 10, "channels": 1, "image_size": 8}
        for key, value in settings.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
        return identity(cfg)

    mine, ours = "users_data.load", "flame.data.datasets.mnist"
    place = {"dataset__path": "${paths.data}/mine.npz"}
    assert own(mine, **place) == own(mine, **place, paths__data="/elsewhere") != own(mine, dataset__path="/other.npz")
    assert own(mine, dataset__root="/a") != own(mine, dataset__root="/b")
    assert own(ours, dataset__root="/a") == own(ours, dataset__root="/b")


def test_identity_is_of_the_values_whoever_wrote_them(tiny: Callable[..., DictConfig]) -> None:
    assert identity(tiny("model.num_classes=10")) == identity(tiny())
    assert identity(tiny("model.num_classes=11")) != identity(tiny())
