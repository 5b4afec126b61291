"""The round loop: who is trained, what the defense sees, what is recorded; equal where theory says equal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from attacks.base import Attack, Crafted, Scene
from flame.defenses.base import average
from flame.federation import Federation, Round, rounds
from flame.partition.rules import iid
from flame.round.checkpoint import latest_checkpoint, write_checkpoint
from flame.round.seeding import generator
from flame.round.types import ServerState, Updates, Verdict, digest
from flame.run.build import build, deal


def play(start: Callable, cfg: object, count: int) -> list[Round]:
    with start(cfg) as (fed, state):
        return list(rounds(fed, state, count))


@pytest.mark.parametrize("model", ["model.norm=none", "model=cnn"])
def test_without_statistics_the_two_flames_are_one(tiny: Callable, start: Callable, model: str) -> None:
    ours, theirs = (play(start, tiny(model, f"defense=flame_{s}"), 3) for s in ("weights_only", "all_state"))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.verdict.accepted, other.verdict.accepted)
        assert torch.equal(one.shadows["all_state"].accepted, one.shadows["weights_only"].accepted)
        assert digest(one.after) == digest(other.after)
        assert "flame/min_running_var" not in one.metrics


def test_with_batchnorm_the_vectors_can_differ(tiny: Callable, start: Callable) -> None:
    """On the same updates; the first round's are the same under both defenses."""
    ours, theirs = (play(start, tiny(f"defense=flame_{s}", "partition=dirichlet"), 3) for s in SCOPES)
    assert torch.equal(ours[0].updates.rows, theirs[0].updates.rows)
    for scope in SCOPES:
        assert torch.equal(ours[0].shadows[scope].accepted, theirs[0].shadows[scope].accepted)
        assert all(scope in record.shadows for record in (*ours, *theirs))
    distances = [ours[0].updates.geometry.cosine_distances(scope) for scope in SCOPES]
    assert not torch.allclose(*distances)


def test_every_metric_is_there(history: list[Round]) -> None:
    shares = ("malicious_recall", "malicious_precision", "benign_recall", "benign_precision", "accepted")
    wanted = {"eval/ma", "eval/ba", "eval/ma_loss", "eval/ba_loss", "filter/floor", "train/loss"}
    wanted |= {f"filter/{k}" for k in shares} | {f"shadow/{s}/{k}" for s in SCOPES for k in shares}
    wanted |= {"attack/idle"} | {f"auc/{s}" for s in SCOPES}
    wanted |= {f"flame/{k}" for k in ("clip_bound", "noise_std", "clipped_share", "min_running_var")}
    wanted |= {f"guard/{k}" for k in ("nonfinite", "oversized", "implausible", "kept_model", "floored")}
    blocks = ("trunk", "head", "running_mean", "running_var")
    wanted |= {f"xray/{b}/{k}" for b in blocks for k in ("norm_share", "distance_share")}
    wanted |= {f"time/{k}" for k in ("train", "aggregate", "shadow", "evaluate")}
    for record in history:
        assert set(record.metrics) == wanted
        assert all(isinstance(v, float) and math.isfinite(v) for v in record.metrics.values())


def test_rounds_are_chained(history: list[Round]) -> None:
    assert [record.number for record in history] == [0, 1, 2]
    for one, following in itertools.pairwise(history):
        assert digest(one.after) == digest(following.before)
        assert one.after.round == following.number
    assert all(torch.equal(record.updates.base, record.before.row) for record in history)
    assert all(torch.equal(record.updates.ids, record.cohort.ids) for record in history)


def test_updates_are_differences(tiny: Callable, start: Callable) -> None:
    """A client's row is its own shard's training in its own order, from the global model, minus that model."""
    cfg = tiny("attack=none")
    (record,) = play(start, cfg, 1)
    parts = build(cfg)
    for i, client in enumerate(record.cohort.ids.tolist()):
        model, images = (
            parts.task.model.to(memory_format=torch.channels_last),
            parts.task.train[parts.task.shards[client]],
        )
        parts.task.layout.load(model.state_dict(), record.before.row, record.before.counters)
        stream = generator(cfg.seed, "shuffle", 0, client)
        loss = parts.task.training.fit(model, images, parts.task.normalise, stream, round=0)
        row, counters = torch.empty_like(record.before.row), torch.empty_like(record.before.counters)
        parts.task.layout.flatten(model.state_dict(), row, counters)
        assert torch.equal(record.updates.rows[i], row - record.before.row)
        assert torch.equal(record.updates.counters[i], counters)
        assert (record.updates.losses[i], record.updates.samples[i]) == (loss, len(images))
        assert int(counters[0]) == math.ceil(len(images) / cfg.client.batch_size)


def test_another_seed_is_another_federation(tiny: Callable) -> None:
    """Its initial model, its images and its shards; the same seed twice is the same one."""
    one, again, other = (build(tiny(f"seed={seed}")) for seed in (0, 0, 1))
    assert digest(one.initial) == digest(again.initial) != digest(other.initial)
    assert torch.equal(one.task.train.x, again.task.train.x) and not torch.equal(one.task.train.x, other.task.train.x)
    assert torch.equal(one.task.shards[3], again.task.shards[3])
    assert not torch.equal(one.task.shards[3], other.task.shards[3])


def test_the_training_loss_is_that_of_benign_clients(history: list[Round]) -> None:
    for record in history:
        benign = record.updates.losses[~record.cohort.compromised]
        assert record.metrics["train/loss"] == pytest.approx(float(benign.sum()) / 4)
        assert not math.isclose(record.metrics["train/loss"], float(record.updates.losses.mean()), rel_tol=1e-6)


def test_an_attack_begins_after_ma_resumed_or_not(tiny: Callable, start: Callable, tmp_path: Path) -> None:
    """Every round is evaluated until then, and none after; the state between rounds has all that it takes."""
    with start(tiny("model=cnn", "attack_rounds.after_ma=0.001")) as (fed, initial):
        fed = replace(fed, evaluate_at=())
        first, second, third = rounds(fed, initial, 3)
        write_checkpoint(tmp_path, first.after, "identity")
        read = latest_checkpoint(tmp_path, first.updates.layout, "identity")
        assert read is not None
        resumed = list(rounds(fed, read, 3))
    assert [bool(record.cohort.compromised.any()) for record in (first, second, third)] == [False, True, True]
    assert ["eval/ma" in record.metrics for record in (first, second, third)] == [True, False, False]
    assert [digest(record.after) for record in resumed] == [digest(record.after) for record in (second, third)]
    assert torch.equal(resumed[0].cohort.compromised, second.cohort.compromised)


def test_only_chosen_rounds_are_evaluated(tiny: Callable, start: Callable) -> None:
    with start(tiny()) as (fed, state):
        played = list(rounds(replace(fed, evaluate_at={1}), state, 2))
    assert [k for k in played[0].metrics if k.startswith("eval/")] == []
    assert "eval/ma" in played[1].metrics and "eval/ba" in played[1].metrics


def test_without_attack_there_is_no_backdoor_accuracy(tiny: Callable, start: Callable) -> None:
    (record,) = play(start, tiny("attack=none"), 1)
    assert "eval/ma" in record.metrics and "eval/ba" not in record.metrics
    assert math.isnan(record.metrics["filter/malicious_recall"]) and math.isnan(record.metrics["auc/all_state"])


def test_an_attack_outside_its_schedule_is_none(tiny: Callable, start: Callable) -> None:
    (late,) = play(start, tiny("attack_rounds.start=1"), 1)
    (never,) = play(start, tiny("attack=none"), 1)
    assert digest(late.after) == digest(never.after)


def test_diverged_clients_keep_the_model(tiny: Callable, start: Callable) -> None:
    """Nobody's update is usable: the global model stays, and the record says so."""
    for record in play(start, tiny("client.lr=1e30", "defense=fedavg"), 2):
        assert torch.equal(record.after.row, record.before.row)
        assert record.metrics["guard/nonfinite"] + record.metrics["guard/oversized"] == 5
        assert record.metrics["guard/kept_model"] == 1
        assert not record.verdict.accepted.any()


@dataclass(frozen=True)
class Flip(Attack):
    """Compromised clients send the opposite of what they learnt, count the rounds, and remember what they drew."""

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        seen = scene.state.memory.get("attack/rounds", torch.zeros(1)) + 1
        assert len(rows) < scene.clients
        return Crafted(-rows, {"attack/rounds": seen, "attack/drawn": torch.rand(1, generator=stream)})


def test_crafted_rows_replace_the_trained(tiny: Callable, start: Callable) -> None:
    with start(tiny("poisoned_model_rate=0.4", "attack=none")) as (fed, state):
        honest = replace(fed, population=replace(fed.population, hostile=True))
        plain, *_ = rounds(honest, state, 1)
        flipped, last = rounds(replace(honest, attack=Flip()), state, 2)
    bad = plain.cohort.compromised
    assert int(bad.sum()) == 2
    assert torch.equal(flipped.updates.rows[bad], -plain.updates.rows[bad])
    assert torch.equal(flipped.updates.rows[~bad], plain.updates.rows[~bad])
    assert flipped.after.memory["attack/rounds"] == 1 and last.after.memory["attack/rounds"] == 2
    for number, record in enumerate((flipped, last)):
        drawn = torch.rand(1, generator=generator(honest.seed, "craft", number))
        assert torch.equal(record.after.memory["attack/drawn"], drawn)


def test_a_laboratory_is_built_for_those_who_need_it(history: list[Round], tiny: Callable, start: Callable) -> None:
    assert all(record.updates.lab is None for record in history)
    (record,) = play(start, tiny("defense=flshield"), 1)
    assert record.updates.lab is not None and record.updates.lab.noise(2, generator(0, "test")).shape == (2, 1, 8, 8)


@dataclass(frozen=True)
class RootOnly:
    """A defense that trusts no one but the server's own update."""

    root_samples: int

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        assert updates.root is not None
        weights = torch.zeros(len(updates), dtype=torch.float64)
        return Verdict(replace(state, row=state.row + updates.root), weights, {"rule/clients": float(len(updates))})


def test_the_servers_own_update(tiny: Callable) -> None:
    """Root images are kept from the clients; the root update is trained on them and is not one of the n."""
    cfg = tiny("attack=none")
    parts = build(cfg)
    dataset, engine = replace(parts.dataset, train=parts.task.train), None
    shards = deal(dataset, iid, cfg.clients, 40, cfg.seed)
    assert shards.sizes.tolist() == [26] * 10 + [40]
    assert torch.equal(torch.cat([shards[i] for i in range(11)]).sort().values, torch.arange(300))
    engine = parts.start_engine(replace(parts.task, shards=shards))
    fed = Federation(
        parts.population, parts.attack, RootOnly(40), parts.server, engine, ["weights_only"], cfg.seed, range(9)
    )
    record = next(rounds(fed, parts.initial, 1))
    assert record.metrics["rule/clients"] == len(record.updates) == 5
    assert len(record.shadows["weights_only"].accepted) == 5
    assert record.metrics["eval/ma"] > 0.05 and not torch.equal(record.after.row, record.before.row)


def test_average_by_hand(updates: Callable) -> None:
    """Two accepted of three: clip factors scale the weights, not the statistics."""
    state, sent = updates(seed=0, n=3)
    weights, factors = torch.tensor([0.5, 0.0, 0.5]).double(), torch.tensor([1.0, 1.0, 0.5]).double()
    row = average(state, sent, weights, factors)
    w, rest = slice(0, sent.layout.trainable), slice(sent.layout.trainable, None)
    torch.testing.assert_close(row[w], state.row[w] + 0.5 * sent.rows[0, w] + 0.25 * sent.rows[2, w])
    torch.testing.assert_close(row[rest], state.row[rest] + 0.5 * sent.rows[0, rest] + 0.5 * sent.rows[2, rest])


SCOPES = ("weights_only", "all_state")
