"""The attacker who knows FLAME: as much backdoor as its budget allows, and what FLAME makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import PLAIN, a3fl, honest, model_row, normed_job, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attacks.a3fl import TRIGGER
from attacks.base import Attack
from attacks.flame_aware import FlameAware, cosine_distances, excess, moved
from attacks.snapshot import Snapshot
from flame.geometry.clustering import majority_cluster
from flame.geometry.layout import StateLayout
from flame.round.seeding import generator


def crowd(seed: int, m: int, d: int = 60) -> tuple[Tensor, Tensor, StateLayout]:
    """Benign updates [m, d + 4] of a common mean, and a backdoor's direction of four times their spread."""
    state = {"f.weight": torch.zeros(d), "bn.running_mean": torch.zeros(2), "bn.running_var": torch.zeros(2)}
    layout, stream = StateLayout.from_state(state, ["f.weight"]), generator(seed, "crowd")
    common, own = torch.randn(d + 4, generator=stream), torch.randn(m, d + 4, generator=stream)
    return (common + own) / 50, torch.randn(d + 4, generator=stream) * 4 / 50, layout


@settings(max_examples=12)
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
    FlameAware(replace(PLAIN, client=replace(work.training, epochs=3)), "both", 1.0, None, "benign").train(work)
    assert torch.equal(Snapshot.of(work.model).counters, wanted.counters)


def test_the_backdoor_goes_on_from_the_benign_model() -> None:
    """Bit by bit: a benign client first, then the inner attack in the model that it left."""
    work, twice = normed_job(), normed_job()
    loss = FlameAware(PLAIN, "both", 1.0, None, "benign").train(work)
    Attack().train(twice)
    assert loss == PLAIN.train(twice) and torch.equal(model_row(work), model_row(twice))


def test_a_trigger_that_the_inner_attack_learns_is_remembered() -> None:
    """And nothing else of what the inner attack crafts: the rows are those around a trigger that stays."""
    benign, backdoor, layout = crowd(0, 2)
    notes = [{"benign": u, TRIGGER: torch.full((1, 4), v)} for u, v in zip(benign, (100.0, 201.0), strict=True)]
    around, make = scene(layout, notes), FlameAware(PLAIN, "both", 1.0, None, "benign")
    moving = replace(make, backdoor=a3fl()).craft(benign + backdoor, around, generator(0, "craft"))
    still = make.craft(benign + backdoor, around, generator(0, "craft"))
    assert moving.memory[TRIGGER].tolist() == [[150.5] * 4] and torch.equal(moving.rows, still.rows)
    assert not still.memory


@pytest.mark.parametrize(("poisoned", "idle"), [((0, 0), True), ((0, 3), False)])
def test_who_poisons_nothing_is_idle_whatever_is_sent(poisoned: tuple[int, int], idle: bool) -> None:
    """More training on clean data takes the model somewhere, but not to a backdoor."""
    benign, further, layout = crowd(0, 2)
    notes = [{"benign": u, "poisoned": torch.tensor(count)} for u, count in zip(benign, poisoned, strict=True)]
    around, attack = scene(layout, notes), FlameAware(PLAIN, "both", 1.0, 50.0, "trained")
    sent = attack.craft(benign + further, around, generator(0, "craft")).rows
    assert attack.idle(sent, benign + further, around).tolist() == [idle, idle]


def test_a_single_colluder_sends_its_benign_update() -> None:
    benign, backdoor, layout = crowd(0, 1)
    attack = FlameAware(PLAIN, "both", 1.0, None, "benign")
    sent = attack.craft(benign + backdoor, scene(layout, [{"benign": benign[0]}]), generator(0, "craft")).rows
    torch.testing.assert_close(sent, benign)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlameAware(PLAIN, "head", 1.0, None, "benign"), "attack.adapt_to='head'"),
        (lambda: FlameAware(PLAIN, "both", 0.0, None, "benign"), "attack.budget=0.0"),
        (lambda: FlameAware(PLAIN, "both", 1.0, -1.0, "benign"), r"attack.reach=-1.0 .* null \(n / m\) or > 0"),
        (lambda: FlameAware(PLAIN, "both", 1.0, None, "zero"), "attack.statistics='zero'"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
