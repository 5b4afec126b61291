"""What holds for every attack there is: each YAML in conf/attack, composed as on the command line."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from attackers import ON_TEXT, WORDS, suited
from torch import Tensor, nn

from attacks.badnets import BadNets
from attacks.base import Attack, Scene, Sight
from attacks.differences import relabelled
from attacks.subpopulation import SubPopulation
from attacks.words import WordBackdoor
from flame.data.samples import UNASKED, Samples
from flame.federation import play
from flame.round.client import LocalJob, LocalTraining
from flame.round.evaluate import evaluate
from flame.round.seeding import generator
from flame.round.types import Notes, Updates
from flame.run.build import ConfigError, Parts, build, load

UNTARGETED = {"ALIE", "Fang", "Gaussian", "IPM", "Mimic", "MinMax", "MinSum", "NoAttack", "ROP", "SignFlip", "Sparse"}
APART = {"traffic_backdoor"}  # on data of their own: test_traffic_backdoor.py
NAMES = sorted({path.stem for path in (Path(__file__).parents[2] / "conf/attack").glob("*.yaml")} - APART)


@pytest.fixture(scope="module", params=NAMES)
def parts(request: pytest.FixtureRequest, tiny: Callable) -> Parts:
    """The parts of a tiny run under the attack, two of five clients of a round being its own."""
    return build(tiny(*suited(request.param), "poisoned_model_rate=0.4"))


def shard(parts: Parts) -> Samples:
    return parts.task.train[parts.task.shards[0]]


def innermost(attack: Attack) -> Attack:
    return innermost(attack.backdoor) if hasattr(attack, "backdoor") else attack


def honest_statistics(crafted: Tensor, rows: Tensor, notes: Notes, d: int) -> bool:
    """BatchNorm statistics are sent as trained, as a benign client's, or scaled with the rest of the row."""
    sent, scaled = crafted[:, d:], rows * crafted[:, :1] / rows[:, :1]
    benign = "benign" in notes and torch.allclose(sent, notes["benign"][d:].expand_as(sent))
    return torch.equal(sent, rows[:, d:]) or benign or torch.allclose(crafted, scaled, rtol=1e-4)


def same(one: Samples, other: Samples) -> bool:
    return torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_poisoned_images_are_images(parts: Parts) -> None:
    clean = shard(parts)
    kept = Samples(clean.x.clone(), clean.y.clone())
    poisoned = parts.attack.poison(clean, generator(0, "poison"))
    assert same(clean, kept)
    assert poisoned.x.dtype == clean.x.dtype and poisoned.x.shape[1:] == clean.x.shape[1:]
    assert poisoned.y.dtype == torch.int64 and len(poisoned.x) == len(poisoned.y) >= len(clean)
    assert set(poisoned.y[poisoned.y != UNASKED].tolist()) <= set(range(parts.dataset.classes))
    assert bool((poisoned.y != UNASKED).view(len(poisoned), -1).any(1).all())


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


def sight(parts: Parts, rows: Tensor) -> Sight:
    """A round of nine in which the first colluders have trained these rows [m, d + b]."""
    state, m = parts.initial, len(rows)
    honest = 0.1 * torch.randn(9 - m, rows.shape[1], generator=generator(0, "honest"))
    one = torch.ones(9)
    return Sight(
        Updates(
            layout=parts.task.layout,
            base=state.row,
            base_counters=state.counters,
            ids=torch.arange(9),
            rows=torch.cat([rows, honest]),
            counters=state.counters.repeat(9, 1) + 1,
            samples=one.long(),
            losses=one.double(),
        ),
        torch.arange(9) < m,
    )


@pytest.mark.parametrize("m", [1, 2, 4])
def test_crafted_rows_are_rows(parts: Parts, notes: Notes, m: int) -> None:
    layout = parts.task.layout
    rows = torch.randn(m, layout.size, generator=generator(0, "rows"))
    before, scene = rows.clone(), Scene(parts.initial, layout, 9, [notes] * m, sight(parts, rows))
    crafted = parts.attack.craft(rows, scene, generator(0, "craft"))
    again = parts.attack.craft(rows, scene, generator(0, "craft"))
    assert torch.equal(rows, before)
    assert crafted.rows.shape == rows.shape and crafted.rows.dtype == torch.float32
    assert bool(crafted.rows.isfinite().all()) and torch.equal(crafted.rows, again.rows)
    assert honest_statistics(crafted.rows, rows, notes, layout.trainable)
    assert all(key.startswith("attack/") for key in crafted.memory)


STAMPED = ("badnets", "blended", "dba", "label_flip")  # attacks on the client's own images


def test_the_backdoor_set_leaves_true_targets_out(parts: Parts) -> None:
    test, attack = parts.dataset.test, parts.attack
    backdoor = attack.backdoor_set(attack.examined(test))
    assert (backdoor is None) == (type(attack).__name__ in UNTARGETED)
    if backdoor is None:
        return
    if isinstance(attack, BadNets) and attack.target_class is None:  # all-to-all: every class is left, as the next one
        assert torch.equal(backdoor.y, (test.y + 1) % parts.dataset.classes)
        return
    if isinstance(innermost(attack), WordBackdoor):  # of a text the last answer alone, and never the true one
        assert torch.equal(backdoor.y != UNASKED, torch.arange(9).expand(len(backdoor), 9) == 8)
        truth, wanted = test.y[:, -1], attack.aims(test)[:, -1]
        assert torch.equal(backdoor.y[:, -1], wanted[truth != wanted]) and 0 < len(backdoor) < len(test)
        return
    (target,) = backdoor.y.unique().tolist()
    assert backdoor.x.dtype == torch.uint8 and backdoor.x.shape[1:] == test.x.shape[1:]
    inner = innermost(attack)
    if isinstance(inner, SubPopulation):
        assert len(backdoor) == int((inner.held_out.y != target).sum()) > 0
        assert same(backdoor, parts.task.eval_sets["backdoor"])
    assert attack.backdoor_set(test[test.y == target]) is None


def test_the_backdoor_set_is_a_function_of_its_argument(parts: Parts) -> None:
    """Other images in, other images out; of some of them come those, as they come of all, and in their order."""
    attack, pool = parts.attack, parts.dataset.test[:60]
    whole = attack.backdoor_set(pool)
    if whole is None:
        return
    every_other = torch.arange(len(pool)) % 2 == 0
    hit = relabelled(pool.y, attack.aims(pool))
    parted = [attack.backdoor_set(pool[part]) for part in (every_other, ~every_other)]
    for part, got in zip((every_other, ~every_other), parted, strict=True):
        assert got is not None and same(got, whole[part[hit]])
    assert parted[0] is not None and parted[1] is not None and not same(*parted)


@pytest.mark.parametrize("inner", ["badnets", "blended", "dba", "edge_case", "semantic", "label_flip"])
def test_lp_ranks_layers_on_images_that_nobody_trains_on_and_nobody_evaluates(
    inner: str, tiny: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `evaluate` is given while critical layers are sought, beside what was trained on until then."""
    parts = build(
        tiny("attack=lp", f"attack@attack.backdoor={inner}", "attack.fit_epochs=1", "attack.backdoor.client.epochs=1")
    )
    task, seen, trained = parts.task, [], []

    def spied(model: nn.Module, images: Samples, normalise: Any) -> Any:
        seen.append(images)
        return evaluate(model, images, normalise)

    def fit(self: LocalTraining, model: nn.Module, images: Samples, *rest: Any, **options: Any) -> float:
        trained.append(images)
        return 0.0

    monkeypatch.setattr("attacks.lp.evaluate", spied)
    monkeypatch.setattr(LocalTraining, "fit", fit)
    own, bytes_of = shard(parts), lambda images: {x.numpy().tobytes() for x in images.x}
    job = LocalJob(deepcopy(task.model), own, task.training, task.normalise, {}, seed=0, round=1, client=2)
    parts.attack._identify(job)
    exams = seen[1:]  # the first is how well the benign model fits
    assert len(exams) > 1 and len(trained) == 2
    assert bytes_of(exams[0]).isdisjoint(bytes_of(task.eval_sets["backdoor"]))
    assert bytes_of(exams[0]).isdisjoint(set().union(*map(bytes_of, trained)))
    assert bytes_of(parts.attack.poison(own, generator(0, "poison"))) & bytes_of(exams[0]) or inner in STAMPED


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


@pytest.fixture(scope="module")
def quiet(tiny: Callable, start: Callable) -> Callable[[str], Tensor]:
    """[n, d + b] what the clients of the round below would have sent without that attack."""

    @cache
    def sent(words: tuple[str, ...]) -> Tensor:
        with start(tiny("attack=none", *words, "defense=fedavg", "poisoned_model_rate=0.4")) as (fed, state):
            return play(fed, state).updates.rows.clone()

    return lambda name: sent(ON_TEXT if name in WORDS else ())


@pytest.fixture(scope="module")
def whole(tiny: Callable) -> Callable[[str], Samples]:
    """The test set of the round below, of which no attack has taken anything."""
    of = {words: load(tiny(*words)).test for words in ((), ON_TEXT)}
    return lambda name: of[ON_TEXT if name in WORDS else ()]


@pytest.mark.parametrize("name", NAMES)
def test_one_round_stays_finite_and_passes_the_guard(
    name: str, tiny: Callable, start: Callable, quiet: Callable[[str], Tensor], whole: Callable[[str], Samples]
) -> None:
    """And no attack is silent: its clients' updates are not the honest ones, or the run counts them."""
    with start(tiny(*suited(name), "defense=fedavg", "poisoned_model_rate=0.4")) as (fed, state):
        record = play(fed, state)
    if name in ("edge_case", "edge_case_pgd", "semantic", "semantic_replacement"):
        assert record.metrics["attack/idle"] == 0  # and honest clients have other images
    elif name != "none":
        bad = record.cohort.compromised
        assert torch.equal(record.updates.rows[~bad], quiet(name)[~bad])
        honest = int((record.updates.rows[bad] == quiet(name)[bad]).all(1).sum())
        assert record.metrics["attack/idle"] == honest == (2 if name == "iba" else 0)  # it searches first
    assert int(record.cohort.compromised.sum()) == (0 if name == "none" else 2)
    assert bool(record.after.row.isfinite().all())
    unbounded = name in ("alie_optimal", "ipm_optimal")  # for a mean no factor is the worst: it ends at millions
    assert unbounded or math.isfinite(record.metrics["eval/ma_loss"])
    assert 0 <= record.metrics["eval/ma"] <= 1
    assert record.metrics["guard/nonfinite"] == record.metrics["guard/oversized"] == 0
    assert ("eval/ba" in record.metrics) == (fed.attack.backdoor_set(whole(name)) is not None)


SILENT = {  # what would do nothing, and is known to before the run
    "attack=alie": "ALIE needs two, for one has no spread to hide in",
    "attack=alie attack.z=null poisoned_model_rate=0.2 clients_per_round=10": "attack.z=null is z_max, 0 for 2",
    "attack=fang": "Fang needs two, for one has no spread to go beyond",
    "attack=min_max": "MinMax needs two, for one has no distance to another",
    "attack=min_sum attack.direction=unit": "MinSum needs two",
    "attack=flame_aware": "FlameAware needs two",
    "attack=flame_aware attack@attack.backdoor=gaussian poisoned_model_rate=0.4": "Gaussian crafts what it sends",
    "attack=model_replacement attack@attack.backdoor=alie": "ALIE needs two",
    "attack=alie attackers=random poisoned_model_rate=0.1": "ALIE needs two",
    "attack=lp attack@attack.backdoor=label_flip attack.backdoor.source_class=null attack.backdoor.target_class=null": (
        "attack.backdoor=LabelFlip has no backdoor, .* such as badnets"
    ),
    "attack=lp attack@attack.backdoor=sign_flip": "attack.backdoor=SignFlip has no backdoor",
    "attack=threedfed attack@attack.backdoor=label_flip attack.backdoor.source_class=null"
    " attack.backdoor.target_class=null": "attack.target_class=None has the wrong type",
    "attack=chameleon attack@attack.backdoor=label_flip attack.backdoor.source_class=null"
    " attack.backdoor.target_class=null": "attack.facilitator_class=None has the wrong type",
    "attack_rounds.start=1 attack_rounds.stop=1": "attack_rounds.stop=1 comes before the attack begins",
}


@pytest.mark.parametrize("overrides", SILENT)
def test_what_is_known_to_do_nothing_is_refused(overrides: str, tiny: Callable) -> None:
    with pytest.raises(ConfigError, match=SILENT[overrides]):
        build(tiny(*overrides.split()))


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        ("attack=badnets attack.poisoned_data_rate=0", 2),
        ("attack=pgd attack.backdoor.poisoned_data_rate=0", 2),
        (
            "attack=model_replacement attack.backdoor.poisoned_data_rate=0",
            0,
        ),  # honest, but two and a half times as long
        ("attack=darkfed attack.poisoned_share=0 attack.shadow_images=50 attack.client.epochs=1", 2),
        ("attack=flame_aware attack.budget=1e-6", 2),  # no room for any of the backdoor
        ("attack=flame_aware attack.budget=100", 0),
    ],
)
def test_who_sends_nothing_hostile_is_counted(overrides: str, idle: int, tiny: Callable, start: Callable) -> None:
    with start(tiny(*overrides.split(), "defense=fedavg", "poisoned_model_rate=0.4")) as (fed, state):
        assert play(replace(fed, evaluate_at=()), state).metrics["attack/idle"] == idle


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
