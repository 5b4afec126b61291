"""Attacks since FLAME: the projection, the critical layers, the hidden update and the moving trigger, each by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attackers import LAYOUT, PLAIN, images, job, vector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.a3fl import A3FL, TRIGGER, similarity
from attacks.base import Attack, Scene
from attacks.chameleon import Chameleon, contrastive_loss, features
from attacks.flame_aware import FlameAware, cosine_distances, excess, moved
from attacks.lp import LP, critical_layers, drawn, trainable_layers
from attacks.neurotoxin import SEEN, Neurotoxin, bottom, clean_gradient
from attacks.snapshot import Snapshot
from attacks.triggers import Painted, Square
from flame.build import build
from flame.checkpoint import latest_checkpoint, write_checkpoint
from flame.client import LocalJob, LocalSGD, cross_entropy
from flame.clustering import majority_cluster
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.federation import rounds
from flame.layout import StateLayout
from flame.seeding import generator
from flame.types import Notes, ServerState, digest

LAYERS = {e.key: e for e in LAYOUT.entries}


def scene(layout: StateLayout, notes: Iterable[Notes], clients: int = 10, seed: int = 0) -> Scene:
    row = torch.randn(layout.size, generator=generator(seed, "global"))
    return Scene(ServerState(row, torch.zeros(layout.counter_size, dtype=torch.int64)), layout, clients, list(notes))


def normed_job(**changes: Any) -> LocalJob:
    """The job of `attackers` with a BatchNorm in its model."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    stream = generator(1, "test model")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=stream) / 4)
    return replace(job(batch_size=8, lr=0.1), model=model, **changes)


def honest(work: LocalJob) -> Snapshot:
    """What the client would have become without the attack."""
    model = deepcopy(work.model)
    Attack().train(replace(work, model=model, notes={}))
    return Snapshot.of(model)


# a training's notes, and what the engines do with them


Played = tuple[ServerState, list[dict]]


def played(cfg: Any, engine: Callable[[Any], Any], start: ServerState | None = None) -> Played:
    """Two rounds, or what is left of them: the state after them, and the metrics of each."""
    parts = build(cfg)
    with closing(engine(parts.task)) as started:
        done = list(rounds(replace(parts.federation(started), evaluate_at=range(2)), start or parts.initial, 2))
    return done[-1].after, [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in done]


@pytest.fixture(scope="module")
def moving(tiny: Callable) -> Any:
    """Everything at once: two colluders with notes, a memory, and a trigger that moves."""
    return tiny("attack=a3fl", "attack.search_epochs=2", "defense=flame_all_state", "poisoned_model_rate=0.4")


@pytest.fixture(scope="module")
def whole(moving: Any) -> Played:
    return played(moving, Sequential)


def test_resumed_runs_go_on_bit_by_bit(moving: Any, whole: Played, tmp_path: Path) -> None:
    parts = build(moving)
    with closing(Sequential(parts.task)) as engine:
        first = next(rounds(parts.federation(engine), parts.initial, 1)).after
    write_checkpoint(tmp_path, first, "identity")
    resumed, metrics = played(moving, Sequential, latest_checkpoint(tmp_path, parts.task.layout, "identity"))
    assert digest(resumed) == digest(whole[0]) and metrics == whole[1][1:]
    assert torch.equal(resumed.memory[TRIGGER], whole[0].memory[TRIGGER])


def test_notes_and_moving_triggers_are_the_same_in_a_pool(moving: Any, whole: Played) -> None:
    pooled, metrics = played(moving, lambda task: Pool(task, workers=2))
    assert digest(pooled) == digest(whole[0]) and metrics == whole[1]
    assert torch.equal(pooled.memory[TRIGGER], whole[0].memory[TRIGGER])


def test_the_backdoor_set_has_the_trigger_of_the_moment(tiny: Callable) -> None:
    """Whatever was evaluated before; without a memory it is the trigger that the search starts from."""
    parts = build(tiny("attack=a3fl"))
    engine, first = Sequential(parts.task), parts.task.eval_sets["backdoor"].x.clone()
    for value in (7.0, 200.0):
        memory = {TRIGGER: torch.full((1, 25), value)}
        engine.evaluate(replace(parts.initial, memory=memory))
        x = parts.task.eval_sets["backdoor"].x
        assert bool((x[:, :, 2:7, 2:7] == int(value)).all()) and torch.equal(x[:, :, :2], first[:, :, :2])
    engine.evaluate(parts.initial)
    assert torch.equal(parts.task.eval_sets["backdoor"].x, first)


def test_a_snapshot_brings_everything_back() -> None:
    work = normed_job()
    before = Snapshot.of(work.model)
    work.fit(work.images)
    after = Snapshot.of(work.model)
    assert not torch.equal(before.row, after.row) and not torch.equal(before.counters, after.counters)
    before.load(work.model)
    again = Snapshot.of(work.model)
    assert torch.equal(again.row, before.row) and torch.equal(again.counters, before.counters)


# neurotoxin


def test_bottom_by_hand() -> None:
    assert bottom(torch.tensor([3.0, 1, 2, 1, 5]), 0.4).tolist() == [False, True, False, True, False]
    assert bottom(torch.tensor([1.0, 1, 1]), 0.67).tolist() == [True, True, False]


@settings(deadline=None)
@given(d=st.integers(1, 60), ratio=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_bottom_holds_the_smallest(d: int, ratio: float, seed: int) -> None:
    magnitude = torch.rand(d, generator=generator(seed, "moves"))
    keep = bottom(magnitude, ratio)
    assert int(keep.sum()) == round(ratio * d)
    if 0 < int(keep.sum()) < d:
        assert float(magnitude[keep].max()) <= float(magnitude[~keep].min())


def test_only_what_benign_clients_left_alone_moves() -> None:
    work = normed_job()
    start = Snapshot.of(work.model)
    d = start.layout.trainable
    step = torch.rand(d, generator=generator(0, "step")) - 0.5
    work = replace(work, memory={SEEN: start.row[:d] - step})
    Neurotoxin(PLAIN, 0.7, "update").train(work)
    change = (Snapshot.of(work.model).row - start.row)[:d] != 0
    largest = step.abs().argsort(descending=True)[: d - round(0.7 * d)]
    assert not bool(change[largest].any()) and int(change.sum()) > 0.5 * d


def test_with_all_coordinates_it_is_the_inner_attack() -> None:
    one, other = normed_job(), normed_job()
    Neurotoxin(PLAIN, 1.0, "gradient").train(one)
    PLAIN.train(other)
    assert torch.equal(Snapshot.of(one.model).row, Snapshot.of(other.model).row)


def test_a_first_round_looks_at_the_own_gradient() -> None:
    """One batch of all images: the gradient of the benign loss, in the layout's order; nothing is moved by looking."""
    work = replace(normed_job(), sgd=LocalSGD(0.1, 0.0, 0.0, 1, 40))
    start = Snapshot.of(work.model)
    got = clean_gradient(work, start)
    after = Snapshot.of(work.model)
    assert torch.equal(after.row, start.row) and torch.equal(after.counters, start.counters)
    model = deepcopy(work.model).train()
    cross_entropy(model, work.normalise(work.images.x), work.images.y).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    wanted = torch.cat([gradients[e.key].flatten() for e in start.layout.entries if e.stop <= len(got)])
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
    update, gradient = (deepcopy(work) for _ in range(2))
    Neurotoxin(PLAIN, 0.5, "update").train(update)
    Neurotoxin(PLAIN, 0.5, "gradient").train(gradient)
    assert torch.equal(vector(update.model), vector(gradient.model))


def test_the_global_model_is_remembered() -> None:
    rows, around = torch.randn(2, 6, generator=generator(0, "rows")), scene(LAYOUT, [{}, {}])
    crafted = Neurotoxin(PLAIN, 0.5, "update").craft(rows, around, generator(0, "craft"))
    assert torch.equal(crafted.rows, rows) and torch.equal(crafted.memory[SEEN], around.state.row[:4])


# lp


def model_of(values: Iterable[float]) -> Snapshot:
    """Five layers of one number each."""
    layout = StateLayout.from_state({f"l{i}.w": torch.zeros(1) for i in range(5)}, [f"l{i}.w" for i in range(5)])
    return Snapshot(layout, torch.tensor(list(values), dtype=torch.float32), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(0.5, ["l3.w"]), (0.8, ["l3.w", "l1.w"]), (1.0, ["l3.w", "l1.w", "l0.w"])]
)
def test_planted_critical_layers_are_found(threshold: float, wanted: list[str]) -> None:
    """Malicious layers are 1; layer 3 is worth 0.6 of the backdoor, layer 1 0.3 and layer 0 0.1."""
    worth = torch.tensor([0.1, 0.3, 0, 0.6, 0])
    found = critical_layers(model_of([0] * 5), model_of([1] * 5), lambda m: round(float(m.row @ worth), 6), threshold)
    assert [e.key for e in found] == wanted


def test_layers_that_only_work_together() -> None:
    def both(model: Snapshot) -> float:
        return float(model.row[2] * model.row[4])

    assert {e.key for e in critical_layers(model_of([0] * 5), model_of([1] * 5), both, 0.95)} == {"l2.w", "l4.w"}
    assert critical_layers(model_of([0] * 5), model_of([0] * 5), both, 0.95) == []  # no backdoor, nothing critical


def lp(gain: float = 1.0, detector: str = "none", layers: str = "critical") -> LP:
    return LP(PLAIN, 0.95, gain, 0.25, 0.9, 3, detector, layers)


@pytest.mark.parametrize(("gain", "first"), [(0.5, [6, 2.5, 4, 5]), (1.0, [10, 0, 4, 5]), (2.0, [20, 0, 4, 5])])
def test_lp_sends_the_benign_mean_but_for_the_critical_layers(gain: float, first: list[float]) -> None:
    """Two colluders, benign mean (2, 5, 4, 5 | 7, 8); a.weight is the first's critical layer, b.weight the second's."""
    benign = torch.tensor([[1.0, 5, 4, 6, 6, 8], [3, 5, 4, 4, 8, 8]])
    rows = torch.tensor([[10.0, 0, 9, 9, -1, -1], [9, 9, 0, 10, -1, -1]])
    places = [torch.tensor([LAYOUT.entries.index(LAYERS[key])]) for key in ("a.weight", "b.weight")]
    notes = [{"benign": u, "layers": p} for u, p in zip(benign, places, strict=True)]
    sent = lp(gain).craft(rows, scene(LAYOUT, notes), generator(0, "craft")).rows
    assert sent[0].tolist() == [*first, 7, 8]
    rest = max(0.0, 1 - gain)
    assert sent[1].tolist() == [2, 5, rest * 4, gain * 10 + rest * 5, 7, 8]


@pytest.mark.parametrize("detector", ["krum", "flame"])
def test_layers_are_given_up_until_the_detector_is_content(detector: str) -> None:
    """Four colluders; a.weight is near the benign ones, b.weight so far off that it would be found."""
    benign = torch.randn(4, 6, generator=generator(3, "benign"))
    rows = benign.clone()
    rows[:, 2:4] += 50
    places = torch.tensor([LAYOUT.entries.index(LAYERS[key]) for key in ("a.weight", "b.weight")])
    around = scene(LAYOUT, [{"benign": u, "layers": places} for u in benign])
    sent = lp(detector=detector).craft(rows, around, generator(0, "craft")).rows
    assert torch.equal(sent[:, :2], rows[:, :2]) and torch.equal(sent[:, 2:4], benign.mean(0)[2:4].expand(4, 2))
    blind = lp().craft(rows, around, generator(0, "craft")).rows
    assert torch.equal(blind[:, :4], rows[:, :4])


@pytest.mark.parametrize("make", [lp, lambda: FlameAware(PLAIN, "both", 1.0, None, "benign")])
def test_what_is_noted_is_what_a_benign_client_sends(make: Callable[[], Attack]) -> None:
    work = normed_job()
    start, wanted = Snapshot.of(work.model), honest(work)
    make().train(work)
    assert torch.equal(work.notes["benign"], wanted.row - start.row)


def test_lp_trains_its_malicious_model_from_the_global_one() -> None:
    work, plain = normed_job(), normed_job()
    lp().train(work)
    PLAIN.train(plain)
    assert torch.equal(Snapshot.of(work.model).row, Snapshot.of(plain.model).row)
    layout = StateLayout.of(work.model)
    found = [layout.entries[i].block for i in work.notes["layers"].tolist()]
    assert set(found) <= {"trunk", "head"} and len(found) == len(set(work.notes["layers"].tolist()))


def test_random_layers_are_as_many_and_nothing_else_changes() -> None:
    """The default notes what was identified, bit by bit; the control has the same models and as many other layers."""
    critical, random, identified = normed_job(), normed_job(), normed_job()
    lp().train(critical)
    lp(layers="random").train(random)
    layout = StateLayout.of(critical.model)
    found = [layout.entries.index(e) for e in lp()._identify(identified)]
    assert found and critical.notes["layers"].tolist() == found
    assert len(random.notes["layers"]) == len(found)
    assert torch.equal(random.notes["benign"], critical.notes["benign"])
    assert torch.equal(Snapshot.of(random.model).row, Snapshot.of(critical.model).row)


def test_layers_are_drawn_from_all_without_repetition() -> None:
    """Two of five, a thousand times: each in two fifths of the draws, four standard errors."""
    layers, hits = trainable_layers(model_of([0] * 5).layout), Counter()
    for seed in range(1000):
        hits.update({e.key for e in drawn(layers, 2, generator(seed, "layers"))})
    assert sum(hits.values()) == 2000 and all(abs(hits[f"l{i}.w"] - 400) < 4 * math.sqrt(1000 * 0.24) for i in range(5))
    assert [e.key for e in trainable_layers(LAYOUT)] == ["a.weight", "b.weight"]


# flame_aware


def crowd(seed: int, m: int, d: int = 60) -> tuple[Tensor, Tensor, StateLayout]:
    """Benign updates [m, d + 4] of a common mean, and a backdoor's direction of four times their spread."""
    state = {"f.weight": torch.zeros(d), "bn.running_mean": torch.zeros(2), "bn.running_var": torch.zeros(2)}
    layout, stream = StateLayout.from_state(state, ["f.weight"]), generator(seed, "crowd")
    common, own = torch.randn(d + 4, generator=stream), torch.randn(m, d + 4, generator=stream)
    return (common + own) / 50, torch.randn(d + 4, generator=stream) * 4 / 50, layout


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 99), m=st.integers(2, 5), adapt=st.sampled_from(["weights_only", "all_state", "both"]))
def test_as_much_backdoor_as_the_budget_allows(seed: int, m: int, adapt: str) -> None:
    benign, backdoor, layout = crowd(seed, m)
    around = scene(layout, [{"benign": u} for u in benign], seed=seed)
    attack = FlameAware(PLAIN, adapt, 1.0, 50.0, "trained")
    sent = attack.craft(benign + backdoor, around, generator(0, "craft")).rows
    scopes = ("weights_only", "all_state") if adapt == "both" else (adapt,)
    assert torch.equal(sent, sent[:1].expand(m, -1))
    assert max(excess(sent[0], benign, around, scope) for scope in scopes) <= 1.0
    d = layout.trainable
    assert float(sent[0, :d].norm()) == pytest.approx(float(benign[:, :d].norm(dim=1).quantile(0.5)), rel=1e-5)
    lam = float((sent[0] - benign.mean(0))[d:] @ backdoor[d:] / backdoor[d:].square().sum())  # from the statistics
    further = moved(benign, backdoor, 1.02 * lam + 1e-3, around)
    assert max(excess(further, benign, around, scope) for scope in scopes) > 1.0 - 1e-6


def test_the_expected_distance_to_an_unseen_client() -> None:
    """Over 100 rounds: the estimate from three colluders against the distances to seven clients they do not know."""
    estimate, truth = [], []
    for seed in range(100):
        everyone, _, layout = crowd(seed, 10)
        around = scene(layout, [], seed=seed)
        x = everyone[:3].mean(0)
        among = cosine_distances(everyone[:3], around, "weights_only").sum() / 6
        estimate.append(excess(x, everyone[:3], around, "weights_only") * float(among))
        truth.append(float(cosine_distances(torch.cat([x[None], everyone[3:]]), around, "weights_only")[0, 1:].mean()))
    ratio = torch.tensor(estimate).mean() / torch.tensor(truth).mean()
    assert float(ratio) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("scope", ["weights_only", "all_state"])
def test_flame_takes_what_it_refuses_uncrafted(scope: str) -> None:
    """Ten clients, three of them colluding, twenty rounds."""
    plain, hidden = 0, 0
    for seed in range(20):
        benign, backdoor, layout = crowd(seed, 10)
        around = scene(layout, [{"benign": u} for u in benign[:3]], seed=seed)
        raw = torch.cat([benign[:3] + backdoor, benign[3:]])
        sent = FlameAware(PLAIN, "both", 1.0, None, "benign").craft(raw[:3], around, generator(0, "craft")).rows
        plain += int(majority_cluster(cosine_distances(raw, around, scope)).accepted[:3].sum())
        crafted = torch.cat([sent, benign[3:]])
        hidden += int(majority_cluster(cosine_distances(crafted, around, scope)).accepted[:3].sum())
    assert plain == 0 and hidden >= 45  # D is measured on three clients, so that some rounds are misjudged


def test_statistics_and_counters_are_benign_ones() -> None:
    benign, backdoor, layout = crowd(0, 3)
    around = scene(layout, [{"benign": u} for u in benign])
    attack = FlameAware(PLAIN, "weights_only", 1.0, None, "benign")
    sent = attack.craft(benign + backdoor, around, generator(0, "craft")).rows
    assert torch.equal(sent[:, 60:], benign.mean(0)[60:].expand(3, 4))
    work = normed_job()
    wanted = honest(work)
    FlameAware(replace(PLAIN, epochs=3), "both", 1.0, None, "benign").train(work)
    assert torch.equal(Snapshot.of(work.model).counters, wanted.counters)


def test_a_trigger_that_the_inner_attack_learns_is_remembered() -> None:
    """And nothing else of what the inner attack crafts: the rows are those around a trigger that stays."""
    benign, backdoor, layout = crowd(0, 2)
    notes = [{"benign": u, TRIGGER: torch.full((1, 4), v)} for u, v in zip(benign, (100.0, 201.0), strict=True)]
    around, make = scene(layout, notes), FlameAware(PLAIN, "both", 1.0, None, "benign")
    moving = replace(make, backdoor=a3fl()).craft(benign + backdoor, around, generator(0, "craft"))
    still = make.craft(benign + backdoor, around, generator(0, "craft"))
    assert moving.memory[TRIGGER].tolist() == [[150.5] * 4] and torch.equal(moving.rows, still.rows)
    assert not still.memory


def test_a_single_colluder_sends_its_benign_update() -> None:
    benign, backdoor, layout = crowd(0, 1)
    attack = FlameAware(PLAIN, "both", 1.0, None, "benign")
    sent = attack.craft(benign + backdoor, scene(layout, [{"benign": benign[0]}]), generator(0, "craft")).rows
    torch.testing.assert_close(sent, benign)


# a3fl


def a3fl(**changes: Any) -> A3FL:
    attack = A3FL(Square(2, 1, 1, 128), 2, None, 0.5, False, None, 4, 20.0, LocalSGD(0.1, 0.0, 0.0, 1, 8), 1, 0.5)
    return replace(attack, **changes)


@torch.no_grad()
def trigger_loss(model: nn.Module, work: LocalJob, values: Tensor) -> float:
    x = work.normalise(Painted(Square(2, 1, 1, 128), values).stamp(work.images.x))
    return float(cross_entropy(deepcopy(model).eval(), x, torch.full_like(work.images.y, 2)))


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_the_search_makes_the_trigger_work(balance: float) -> None:
    work, attack = normed_job(), a3fl(balance=balance)
    model, start = deepcopy(work.model), attack.current({}, work.images.x).values
    attack.train(work)
    found = work.notes[TRIGGER]
    assert found.shape == (1, 4) and float(found.min()) >= 0 and float(found.max()) <= 255
    assert trigger_loss(model, work, found) < trigger_loss(model, work, start) - 0.01
    assert start.tolist() == [[128.0] * 4]  # where it started is as it was


def test_one_signed_step_by_hand() -> None:
    """One batch and no rival: each value goes one step against the sign of its difference quotient."""
    work, fresh = job(), job()
    a3fl(search_epochs=1, step=3.0).train(work)
    for i, value in enumerate(work.notes[TRIGGER][0].tolist()):
        ends = torch.full((2, 1, 4), 128.0)
        ends[0, 0, i], ends[1, 0, i] = 118, 138
        slope = trigger_loss(fresh.model, fresh, ends[1]) - trigger_loss(fresh.model, fresh, ends[0])
        assert value == (125.0 if slope > 0 else 131.0)


def test_the_client_poisons_with_what_it_found_and_goes_on_from_it() -> None:
    work, attack = normed_job(), a3fl()
    plain = normed_job()
    attack.train(work)
    found = work.notes[TRIGGER]
    replace(PLAIN, trigger=Painted(attack.trigger, found)).train(plain)
    assert torch.equal(Snapshot.of(work.model).row, Snapshot.of(plain.model).row)
    again = normed_job(memory={TRIGGER: found})
    replace(attack, search_epochs=0).train(again)
    assert torch.equal(again.notes[TRIGGER], found) and not found.requires_grad


def test_the_mean_trigger_is_remembered() -> None:
    notes = [{TRIGGER: torch.full((1, 4), v)} for v in (100.0, 201.0)]
    rows = torch.ones(2, 6)
    crafted = a3fl().craft(rows, scene(LAYOUT, notes), generator(0, "craft"))
    assert torch.equal(crafted.rows, rows) and crafted.memory[TRIGGER].tolist() == [[150.5] * 4]


def test_every_channel_has_its_own_value() -> None:
    x = images().x.expand(-1, 3, -1, -1)
    values = torch.arange(12.0).view(3, 4)
    stamped = Painted(Square(2, 1, 1, 0), values).stamp(x)
    assert torch.equal(stamped[:, :, 1:3, 1:3].flatten(2), values.to(torch.uint8).expand(len(x), 3, 4))
    assert torch.equal(stamped[:, :, 3:], x[:, :, 3:]) and torch.equal(stamped[:, :, :, 3:], x[:, :, :, 3:])


def test_similarity_by_hand() -> None:
    """Cosines 0.6 and -1 of the weights; biases do not count."""
    one, other = (nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1)) for _ in range(2))
    for model, gradients in ((one, ([[1.0, 0]], [1.0], [[2.0]])), (other, ([[3.0, 4]], [-1.0], [[-1.0]]))):
        model[0].weight.grad, model[0].bias.grad, model[1].weight.grad = map(torch.tensor, gradients)
    assert similarity(one, other) == pytest.approx((0.6 - 1) / 2)
    assert similarity(one, nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))) == 0


# chameleon


def chameleon(weight: float = 6.0, lr: float = 0.05) -> Chameleon:
    return Chameleon(PLAIN, 2, weight, 0.5, LocalSGD(lr, 0.9, 0.0, 3, 20))


def test_contrastive_loss_by_hand() -> None:
    """Three unit features, the first two of one label at cosine 0.6, the third alone and opposite to the first."""
    f = torch.tensor([[1.0, 0], [0.6, 0.8], [-1, 0]])
    first = -math.log(math.exp(0.6 / 0.5) / (math.exp(0.6 / 0.5) + math.exp(-1 / 0.5)))
    second = -math.log(math.exp(0.6 / 0.5) / (math.exp(0.6 / 0.5) + math.exp(-0.6 / 0.5)))
    loss = contrastive_loss(f, torch.tensor([4, 4, 2]), torch.tensor([1.0, 3, 5]), 0.5)
    assert float(loss) == pytest.approx((first + 3 * second) / 3, rel=1e-5)


def test_the_encoder_learns_first_and_the_classifier_second() -> None:
    work, half = normed_job(), normed_job()
    start = Snapshot.of(work.model)
    chameleon().train(work)
    chameleon().adapt(PLAIN.compromise(half))
    trunk, head = start.layout.spans["trunk"], start.layout.spans["head"]
    done, adapted = Snapshot.of(work.model).row, Snapshot.of(half.model).row
    assert torch.equal(done[trunk], adapted[trunk]) and not torch.equal(done[trunk], start.row[trunk])
    assert torch.equal(adapted[head], start.row[head]) and not torch.equal(done[head], start.row[head])
    assert all(p.requires_grad for p in work.model.parameters())


def test_poisoned_images_come_close_to_their_facilitators() -> None:
    """The mean cosine between triggered images and true members of the target class, before and after step 1."""
    work = normed_job()
    triggered, peers = PLAIN.backdoor_set(work.images), work.images[work.images.y == 2]
    assert triggered is not None

    @torch.no_grad()
    def closeness() -> float:
        f, g = (features(work.model.eval(), work.normalise(x)) for x in (triggered.x, peers.x))
        return float((f @ g.T).mean())

    before = closeness()
    chameleon(lr=0.1).adapt(PLAIN.compromise(work))
    assert closeness() > before


# settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neurotoxin(PLAIN, 0.0, "update"), r"attack.ratio=0.0 .* in \(0, 1\]"),
        (lambda: Neurotoxin(PLAIN, 0.5, "weights"), "attack.observe='weights' .* one of update, gradient"),
        (lambda: replace(lp(), threshold=1.1), "attack.threshold=1.1"),
        (lambda: replace(lp(), gain=0.0), "attack.gain=0.0"),
        (lambda: replace(lp(), validation_share=1.0), "attack.validation_share=1.0"),
        (lambda: replace(lp(), fit_accuracy=1.1), "attack.fit_accuracy=1.1"),
        (lambda: replace(lp(), fit_epochs=0), "attack.fit_epochs=0"),
        (lambda: lp(detector="median"), "attack.detector='median' .* one of none, krum, flame"),
        (lambda: lp(layers="all"), "attack.layers='all' .* one of critical, random"),
        (lambda: FlameAware(PLAIN, "head", 1.0, None, "benign"), "attack.adapt_to='head'"),
        (lambda: FlameAware(PLAIN, "both", 0.0, None, "benign"), "attack.budget=0.0"),
        (lambda: FlameAware(PLAIN, "both", 1.0, -1.0, "benign"), r"attack.reach=-1.0 .* null \(n / m\) or > 0"),
        (lambda: FlameAware(PLAIN, "both", 1.0, None, "zero"), "attack.statistics='zero'"),
        (lambda: chameleon(weight=0.0), "attack.weight=0.0"),
        (lambda: replace(chameleon(), temperature=0.0), "attack.temperature=0.0"),
        (lambda: a3fl(step=0.0), "attack.step=0.0"),
        (lambda: a3fl(search_epochs=-1), "attack.search_epochs=-1"),
        (lambda: a3fl(rival_every=0), "attack.rival_every=0"),
        (lambda: a3fl(balance=-1.0), "attack.balance=-1.0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
