"""What holds for every attack there is: each YAML in conf/attack, composed as on the command line."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attacks.base import Attack, Scene
from attacks.subpopulation import SubPopulation
from flame.data.samples import LabelledImages
from flame.federation import play
from flame.round.client import LocalJob
from flame.round.seeding import generator
from flame.round.types import Notes
from flame.run.build import ConfigError, Parts, build

UNTARGETED = {"ALIE", "Fang", "Gaussian", "IPM", "MinMax", "MinSum", "NoAttack", "SignFlip"}
NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/attack").glob("*.yaml"))


@pytest.fixture(scope="module", params=NAMES)
def parts(request: pytest.FixtureRequest, tiny: Callable) -> Parts:
    """The parts of a smoke run under the attack."""
    return build(tiny(f"attack={request.param}"))


def shard(parts: Parts) -> LabelledImages:
    return parts.task.train[parts.task.shards[0]]


def innermost(attack: Attack) -> Attack:
    return innermost(attack.backdoor) if hasattr(attack, "backdoor") else attack


def honest_statistics(crafted: Tensor, rows: Tensor, notes: Notes, d: int) -> bool:
    """BatchNorm statistics are sent as trained, as a benign client's, or scaled with the rest of the row."""
    sent, scaled = crafted[:, d:], rows * crafted[:, :1] / rows[:, :1]
    benign = "benign" in notes and torch.allclose(sent, notes["benign"][d:].expand_as(sent))
    return torch.equal(sent, rows[:, d:]) or benign or torch.allclose(crafted, scaled, rtol=1e-4)


def same(one: LabelledImages, other: LabelledImages) -> bool:
    return torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_poisoned_images_are_images(parts: Parts) -> None:
    clean = shard(parts)
    kept = LabelledImages(clean.x.clone(), clean.y.clone())
    poisoned = parts.attack.poison(clean, generator(0, "poison"))
    assert same(clean, kept)
    assert poisoned.x.dtype == torch.uint8 and poisoned.x.shape[1:] == clean.x.shape[1:]
    assert poisoned.y.dtype == torch.int64 and len(poisoned.x) == len(poisoned.y) >= len(clean)
    assert set(poisoned.y.tolist()) <= set(range(parts.dataset.classes))


def test_equal_streams_poison_equally(parts: Parts) -> None:
    once, again = (parts.attack.poison(shard(parts), generator(7, "poison")) for _ in range(2))
    assert same(once, again)


def test_a_compromised_job_keeps_what_the_client_is(parts: Parts) -> None:
    task = parts.task
    job = LocalJob(task.model, shard(parts), task.training, task.normalise, {}, seed=0, round=1, client=2)
    worse = parts.attack.compromise(job)
    assert worse.model is job.model and (worse.seed, worse.round, worse.client) == (0, 1, 2)
    assert same(job.images, shard(parts))


@pytest.fixture(scope="module")
def notes(parts: Parts) -> Notes:
    """What a compromised client notes while it trains."""
    task = parts.task
    job = LocalJob(deepcopy(task.model), shard(parts), task.training, task.normalise, {}, seed=0, round=1, client=2)
    assert math.isfinite(parts.attack.train(job))
    return job.notes


@pytest.mark.parametrize("m", [1, 2, 4])
def test_crafted_rows_are_rows(parts: Parts, notes: Notes, m: int) -> None:
    layout = parts.task.layout
    rows = torch.randn(m, layout.size, generator=generator(0, "rows"))
    before, scene = rows.clone(), Scene(parts.initial, layout, clients=9, notes=[notes] * m)
    crafted = parts.attack.craft(rows, scene, generator(0, "craft"))
    again = parts.attack.craft(rows, scene, generator(0, "craft"))
    assert torch.equal(rows, before)
    assert crafted.rows.shape == rows.shape and crafted.rows.dtype == torch.float32
    assert bool(crafted.rows.isfinite().all()) and torch.equal(crafted.rows, again.rows)
    assert honest_statistics(crafted.rows, rows, notes, layout.trainable)
    assert all(key.startswith("attack/") for key in crafted.memory)


def test_the_backdoor_set_leaves_true_targets_out(parts: Parts) -> None:
    test, attack = parts.dataset.test, parts.attack
    backdoor = attack.backdoor_set(test)
    assert (backdoor is None) == (type(attack).__name__ in UNTARGETED)
    if backdoor is None:
        return
    (target,) = backdoor.y.unique().tolist()
    assert backdoor.x.dtype == torch.uint8 and backdoor.x.shape[1:] == test.x.shape[1:]
    inner = innermost(attack)
    if isinstance(inner, SubPopulation):
        assert len(backdoor) == int((inner.held_out.y != target).sum()) > 0
    else:
        assert attack.backdoor_set(test[test.y == target]) is None


@pytest.mark.parametrize("name", ["edge_case", "semantic"])
def test_nobody_trains_on_what_is_held_out(name: str, tiny: Callable) -> None:
    parts = build(tiny(f"attack={name}"))
    assert isinstance(parts.attack, SubPopulation)
    known = {x.numpy().tobytes() for part in (parts.task.train, parts.attack.pool) for x in part.x}
    held_out = [x.numpy().tobytes() for x in parts.attack.held_out.x]
    assert held_out and known.isdisjoint(held_out)


@pytest.mark.parametrize(
    "name", ["a3fl", "badnets", "blended", "cerp", "dba", "edge_case", "iba", "label_flip", "semantic"]
)
def test_attackers_train_for_their_own_number_of_epochs(name: str, tiny: Callable) -> None:
    parts = build(tiny(f"attack={name}", "attack.client.epochs=7"))
    task = parts.task
    job = LocalJob(task.model, shard(parts), task.training, task.normalise, {}, seed=0, round=1, client=2)
    assert task.training.epochs != 7 and parts.attack.compromise(job).training.epochs == 7


def test_it_reaches_a_worker_process_whole(parts: Parts) -> None:
    sent = pickle.loads(pickle.dumps(parts.attack))
    assert same(sent.poison(shard(parts), generator(1, "p")), parts.attack.poison(shard(parts), generator(1, "p")))


@pytest.mark.parametrize("name", NAMES)
def test_one_round_stays_finite_and_passes_the_guard(name: str, tiny: Callable, start: Callable) -> None:
    with start(tiny(f"attack={name}", "defense=fedavg", "poisoned_model_rate=0.4")) as (fed, state):
        record = play(fed, state)
    assert int(record.cohort.compromised.sum()) == (0 if name == "none" else 2)
    assert bool(record.after.row.isfinite().all())
    assert record.metrics["guard/nonfinite"] == record.metrics["guard/oversized"] == 0
    assert ("eval/ba" in record.metrics) == (fed.attack.backdoor_set(build(tiny()).dataset.test) is not None)


@pytest.mark.parametrize("inner", ["dba", "edge_case", "semantic", "blended", "label_flip"])
@pytest.mark.parametrize("outer", ["model_replacement", "constrain_and_scale", "pgd"])
def test_every_disguise_goes_with_every_backdoor(outer: str, inner: str, tiny: Callable) -> None:
    cfg = tiny(f"attack={outer}", f"attack@attack.backdoor={inner}")
    assert build(cfg).task.eval_sets.keys() == {"clean", "backdoor"}


@pytest.mark.parametrize("outer", ["constrain_and_scale", "pgd", "neurotoxin", "chameleon", "threedfed", "lp"])
def test_what_learns_while_it_trains_is_not_trained_in_its_place(outer: str, tiny: Callable) -> None:
    for inner, name in (("a3fl", "A3FL"), ("cerp", "CerP"), ("iba", "IBA")):
        with pytest.raises(ConfigError, match=rf"attack\.backdoor={name} trains in its own way.* badnets or dba"):
            build(tiny(f"attack={outer}", f"attack@attack.backdoor={inner}"))


@pytest.mark.parametrize("outer", ["model_replacement", "flame_aware"])
def test_what_learns_while_it_trains_is_remembered(outer: str, tiny: Callable, start: Callable) -> None:
    with start(tiny(f"attack={outer}", "attack@attack.backdoor=cerp", "poisoned_model_rate=0.4")) as (fed, state):
        assert play(fed, state).before.memory["attack/cerp/clients"].shape == (2,)


@pytest.mark.parametrize(
    ("overrides", "attacked"),
    [
        ([], {0, 1, 2, 3, 4, 5}),
        (["attack_rounds.start=2", "attack_rounds.stop=5"], {2, 3, 4}),
        (["attack_rounds.start=1", "attack_rounds.every=2"], {1, 3, 5}),
        (["attack_rounds.start=3", "attack_rounds.stop=4"], {3}),  # single shot
    ],
)
@pytest.mark.parametrize("attackers", ["fixed", "random"])
def test_schedules_of_a_config(overrides: list[str], attacked: set[int], attackers: str, tiny: Callable) -> None:
    population = build(tiny("rounds=6", f"attackers={attackers}", "poisoned_model_rate=0.4", *overrides)).population
    quiet = [r for r in range(6) if r not in attacked]
    assert not any(bool(population.cohort(r).compromised.any()) for r in quiet)
    counts = [int(population.cohort(r).compromised.sum()) for r in sorted(attacked)]
    assert counts == [2] * len(counts) if attackers == "fixed" else max(counts) > 0
