"""Sparse: whom pruning keeps, how far what is kept goes, and how far the rest; its authors' code, written anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attackers import LAYOUT, ON_TEXT, QUICK, dataset, images
from oracles.recorded import recorded_round
from oracles.rounds import net
from torch import Tensor, nn

from attacks import sparse
from attacks.base import Scene, Sight
from attacks.skeleton import Batch, skeleton
from attacks.sparse import MASK, Sparse, capped, minus_logit, room
from flame.data.samples import UNASKED, Samples
from flame.federation import play
from flame.round.client import cross_entropy
from flame.round.seeding import generator
from flame.round.types import Updates
from flame.run.build import ConfigError, build

DEFAULT = Sparse(1.5, None, False, "std", "none", 0.05, 5, 3, 16, "cross_entropy", "labels")
KEEP, STEPS = 0.05, 4


def recorded_model(seed: int) -> tuple[nn.Module, list[Batch]]:
    """The global model of a recorded round, and two batches of random images."""
    recorded, model, stream = recorded_round(seed, 10), net(True), generator(seed, "images")
    layout = recorded.updates.layout
    layout.load(model.state_dict(), recorded.state.row, recorded.state.counters)
    x = torch.randn(2, 8, 3, 6, 6, generator=stream)
    return model, list(zip(x, torch.randint(10, (2, 8), generator=stream), strict=True))


class TheirPruning:
    """FORCE as pruners/force.py has it: layers one by one, saliencies from `.grad`, the mask in the modules' order."""

    def __init__(self, model: nn.Module, batches: list[Batch], softmax: bool, noise: Tensor) -> None:
        self.model, self.batches, self.softmax, self.noise = model, batches, softmax, noise
        self.layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        self.original = [layer.weight.detach().clone() for layer in self.layers]

    def saliencies(self) -> list[Tensor]:
        self.model.zero_grad()
        for x, y in self.batches:  # gradients add up
            answers = self.model(x)
            F.nll_loss(F.log_softmax(answers, 1) if self.softmax else answers, y).backward()
        found = []
        for layer, weight in zip(self.layers, self.original, strict=True):
            assert layer.weight.grad is not None
            found.append(weight.abs() * (layer.weight.grad / len(self.batches)).abs())
        return found

    def run(self, factor: float, steps: int) -> Tensor:
        for step in range(steps):
            remaining = math.exp((step + 1) / steps * math.log(factor))
            scores = torch.cat([s.flatten() for s in self.saliencies()]) + self.noise
            chosen = set(scores.argsort(descending=True)[: round(len(scores) * remaining)].tolist())
            masks, start = [], 0
            for layer, weight in zip(self.layers, self.original, strict=True):
                inside = [float(start + i in chosen) for i in range(weight.numel())]
                masks.append(torch.tensor(inside).view_as(weight))
                layer.weight.data = weight * masks[-1]
                start += weight.numel()
        flat: list[Tensor] = []
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                flat += [torch.ones_like(module.weight), torch.ones_like(module.bias)]
            if module in self.layers:
                flat.append(masks[self.layers.index(module)].flatten())
                flat += [] if module.bias is None else [torch.ones_like(module.bias)]
        return torch.cat(flat) == 1


@pytest.mark.parametrize("softmax", [True, False])
def test_pruning_keeps_what_theirs_keeps(softmax: bool) -> None:
    for seed in range(20):
        model, batches = recorded_model(seed)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        loss = cross_entropy if softmax else minus_logit
        ours = skeleton(model, batches, loss, KEEP, STEPS, generator(0, "skeleton"))
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        count = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        noise = 1e-10 * torch.randn(count, generator=generator(0, "skeleton"))
        theirs = TheirPruning(model, batches, softmax, noise).run(KEEP, STEPS)
        assert int(ours.sum()) == round(count * KEEP) + len(ours) - count and torch.equal(ours, theirs), seed


def test_a_pruned_weight_comes_back() -> None:
    """3 a + 2 b + 5 c - 2 c^2 at (1, 1, 1): slopes 3, 2, 1, and c goes first; without it they are 3, 2, 5."""
    model = nn.Linear(3, 1)
    nn.init.ones_(model.weight)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        a, b, c = net.weight[0]
        return 3 * a + 2 * b + 5 * c - 2 * c.square()

    batch, third = (torch.zeros(0), torch.zeros(0)), 1 / 3
    kept = {steps: skeleton(model, [batch], loss, third, steps, torch.Generator()).tolist() for steps in (1, 2)}
    assert kept == {1: [True, False, False, True], 2: [False, False, True, True]}  # the last is the bias


def test_frozen_and_unused_weights_are_not_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    kept = skeleton(
        model, [(torch.eye(2), torch.arange(2))], lambda net, x, y: net[1](x).sum(), 0.5, 3, generator(0, "")
    )
    assert kept.tolist() == [*[False] * 4, *[True] * 2, *[True] * 6, *[False] * 4, *[True] * 2]


def test_of_equal_scores_noise_decides_and_a_score_that_is_no_number_is_the_least() -> None:
    model, batch = nn.Linear(6, 1, bias=False), (torch.zeros(0), torch.zeros(0))
    nn.init.ones_(model.weight)

    def kept(slopes: Tensor) -> list[bool]:
        return skeleton(model, [batch], lambda net, x, y: net.weight @ slopes, 0.5, 1, generator(0, "noise")).tolist()

    noise = torch.randn(6, generator=generator(0, "noise"))
    assert kept(torch.zeros(6)) == (noise > noise.median()).tolist()  # the median is the third
    assert kept(torch.tensor([math.nan, math.inf, 1, 0.5, 2, 0.1])) == [False, True, True, False, True, False]


def test_a_likelihood_that_nothing_has_normalised() -> None:
    """Minus the mean logit of what is asked."""
    logits, y = torch.tensor([[[1.0, 2], [5, -4]]]), torch.tensor([[1, UNASKED]])  # [B, classes, T]
    assert float(minus_logit(lambda x: x, logits, y)) == -5
    assert float(minus_logit(lambda x: x, logits[0], torch.tensor([1, 0]))) == pytest.approx(-(2 + 5) / 2)


class TheirAttack:
    """attacks/sparse.py and sparse_opted.py in float64, on gradients, which point against updates."""

    def __init__(self, attack: Sparse, mask: Tensor, n: int, m: int) -> None:
        self.attack, self.mask, self.first = attack, mask.double(), True
        s = n // 2 + 1 - m
        self.z_max = NormalDist().inv_cdf((n - m - s) / (n - m)) if attack.z is None else attack.z

    def threshold(self, values: Tensor) -> Tensor:
        if self.attack.cap == "iqr":
            q1, q3 = values.quantile(0.25), values.quantile(0.75)
            return values.clamp(max=float(q3 + 1.5 * (q3 - q1)))
        if self.attack.cap == "z_score":
            return values.clamp(max=float(values.mean() + 2 * values.std()))
        if self.attack.cap == "gradient":
            s = sorted(values.tolist(), reverse=True)
            falls = [a - b for a, b in pairwise(s)]
            ratios = [a / (b + 1e-8) for a, b in pairwise(falls)]
            return values.clamp(max=s[ratios.index(max(ratios)) + 1])
        return values

    def bisected(self, g: Tensor, mu: Tensor, std: Tensor, large: Tensor) -> float:
        least = min(float(((g - x).norm(dim=1) ** 2).sum()) for x in g)
        z, fail, success = 10.0, 10.0, 0.0
        while abs(success - z) > 1e-5:
            away = (g - (mu - z * std * (1 - self.mask) - large)).norm(dim=1) ** 2
            good = float(away.sum()) <= least
            success = z if good else success
            z += fail / 2 if good else -fail / 2
            fail /= 2
        return success

    def update(self, honest: Tensor) -> Tensor:
        g = -honest.double()
        mu, std = g.mean(0), g.std(0)
        ones = self.first or self.attack.direction == "std"
        sign, self.first = torch.ones_like(mu) if ones else mu.sign(), False
        std[self.mask.bool()] = self.threshold(std[self.mask.bool()])
        large = self.attack.scale * self.mask * std
        z = self.bisected(g, mu, std, large) if self.attack.bounded else self.z_max
        return -(mu - (large + z * std * (1 - self.mask)) * sign).float()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"z": 0.4, "cap": "iqr", "direction": "against_mean"},
        {"scale": 3.0, "cap": "z_score"},
        {"cap": "gradient", "direction": "against_mean"},
        {"bounded": True},
        {"bounded": True, "scale": 0.5, "cap": "iqr"},
    ],
)
def test_what_is_sent_is_what_theirs_send(changes: dict[str, object]) -> None:
    """Of ten clients three collude: z_max is 0.18. The mask is that of the first model, and stays."""
    attack = replace(DEFAULT, **changes)
    mask = skeleton(*recorded_model(0), cross_entropy, KEEP, STEPS, generator(0, "skeleton"))
    theirs, memory, quiet = TheirAttack(attack, mask, 10, 3), dict[str, Tensor](), []
    for seed in range(20):
        recorded, mine = recorded_round(seed, 10), torch.arange(10) < 3
        updates: Updates = recorded.updates
        d, rows = updates.layout.trainable, updates.rows[mine]
        notes = [{} if memory else {"mask": mask}] * 3
        scene = Scene(replace(recorded.state, memory=memory), updates.layout, 10, notes, Sight(updates, mine))
        found = attack.craft(rows, scene, generator(seed, "craft"))
        wanted = theirs.update(updates.rows[~mine, :d])
        assert torch.equal(found.rows[:, d:], rows[:, d:])
        torch.testing.assert_close(found.rows[:, :d], wanted.expand(3, -1), rtol=1e-4, atol=3e-6)
        assert not attack.idle(found.rows, rows, scene).any()
        memory = dict(found.memory)
        assert torch.equal(memory[MASK], mask)
        quiet.append(float((wanted - updates.rows[~mine, :d].mean(0))[~mask].norm()))
    assert min(quiet) > 0  # a search without any room would compare 0 with 0


def hand_made(honest: Tensor) -> tuple[Scene, Tensor]:
    """A round in which two collude beside these honest rows [k, d + b], and the mask has the first of four weights."""
    rows = torch.cat([torch.ones(2, 6), honest])
    n, state = len(rows), recorded_round(0, 10).state
    one, none = torch.ones(n), torch.zeros(n, 0, dtype=torch.int64)
    state = replace(state, row=torch.zeros(6), counters=none[0], memory={})
    updates = Updates(
        layout=LAYOUT, base=state.row, base_counters=state.counters, ids=torch.arange(n), rows=rows, counters=none,
        samples=one.long(), losses=one.double(),
    )  # fmt: skip
    notes = [{"mask": torch.tensor([True, False, False, False]), "poisoned": torch.tensor(0)}] * 2
    return Scene(state, LAYOUT, n, notes, Sight(updates, torch.arange(n) < 2)), rows[:2]


def test_what_is_sent_by_hand() -> None:
    """Three honest updates -v, 0, v of v = (1, 2, 1, 2): mean 0, deviation v. The middle one leaves no room for z."""
    v = torch.tensor([1.0, 2, 1, 2, 0, 0])
    scene, rows = hand_made(torch.stack([-v, 0 * v, v]))
    sent = {b: replace(DEFAULT, z=0.5, bounded=b).formula(rows[:, :4], scene, torch.Generator()) for b in (False, True)}
    assert sent[False].tolist() == [1.5, 1, 0.5, 1] and sent[True].tolist() == [1.5, 0, 0, 0]
    told = replace(scene, state=replace(scene.state, memory={MASK: scene.notes[0]["mask"]}), notes=[{}, {}])
    shifted, _ = hand_made(torch.stack([2 - v, 2 + 0 * v, 2 + v]))
    for around, wanted in ((shifted, [3.5, 3, 2.5, 3]), (replace(told, sight=shifted.sight), [0.5, 1, 1.5, 1])):
        against = replace(DEFAULT, z=0.5, direction="against_mean")  # from the second round on
        assert against.formula(rows[:, :4], around, torch.Generator()).tolist() == wanted


def test_crafted_statistics_are_outside_the_mask() -> None:
    v = torch.tensor([1.0, 2, 1, 2, 4, 4])
    scene, rows = hand_made(torch.stack([-v, 0 * v, v]))
    found = replace(DEFAULT, z=0.5, statistics="crafted").craft(rows, scene, torch.Generator())
    assert found.rows[0].tolist() == [1.5, 1, 0.5, 1, 2, 2]


def test_outlying_deviations_by_hand() -> None:
    """Quartiles 1 and 1: fence 1. Mean 2.6, deviation 3.58: nothing above 9.76. The first fall is the one that ends."""
    std = torch.tensor([1.0, 1, 9, 1, 1])
    assert [capped(std, cap).max().item() for cap in ("none", "iqr", "z_score", "gradient")] == [9, 1, 9, 1]
    assert capped(torch.tensor([1.0] * 9 + [11.0]), "z_score").max() == pytest.approx(2 + 2 * math.sqrt(10))
    assert capped(std[1:3], "gradient").tolist() == [1, 9] and capped(std[:0], "iqr").tolist() == []


def test_room_by_hand() -> None:
    """The nearest honest update is 3 from the mean; the mask takes 2 of that, so that z is the root of 9 - 4."""
    centred, mask = torch.tensor([[3.0, 0], [-3, 0]]), torch.tensor([False, True])
    assert room(centred, torch.tensor([1.0, 2]), mask) == pytest.approx(math.sqrt(5))
    assert room(centred, torch.tensor([1.0, 4]), mask) == room(centred, torch.tensor([0.0, 4]), mask) == 0


@pytest.mark.parametrize("honest", [0, 1])
def test_without_two_honest_updates_the_mean_is_sent_and_counted(honest: int) -> None:
    scene, rows = hand_made(3 * torch.ones(honest, 6))
    for attack in (DEFAULT, replace(DEFAULT, bounded=True)):
        sent = attack.craft(rows, scene, torch.Generator()).rows
        assert bool((sent[:, :4] == 3 * honest).all()) and attack.idle(sent, rows, scene).all()
    with pytest.raises(ValueError, match="leave a round at most one honest client, whose update has no deviation"):
        DEFAULT.check_round(10, range(9, 11))
    DEFAULT.check_round(10, range(11))


def test_labels_are_taken_for_positions() -> None:
    """Of 40 images and 4 classes the first four are seen, each ten times where a batch is the whole set."""
    data = dataset()
    whole = replace(DEFAULT, batch_size=40)
    by_label, as_meant = (replace(whole, images=kind).prepare(data, generator(0, "prepare")) for kind in sparse.IMAGES)
    for (attack, rest), seen in ((by_label, 4), (as_meant, 40)):
        assert isinstance(attack, Sparse) and rest is data and len(attack.drawn) == 3
        for batch in attack.drawn:
            places, counts = (
                (batch.x.flatten(1)[:, None] == data.train.x.flatten(1)[None])
                .all(2)
                .nonzero()[:, 1]
                .unique(return_counts=True)
            )
            assert places.tolist() == [*range(seen)] and set(counts.tolist()) == {40 // seen}
    assert [len(part) for part in DEFAULT.prepare(data, generator(0, "prepare"))[0].drawn] == [16] * 3


def test_labels_that_are_no_positions_are_refused(compose: Callable, tiny: Callable) -> None:
    few = replace(dataset(), train=images(3))  # labels 0 to 2 of 3 images: as it should be
    DEFAULT.prepare(few, generator(0, "prepare"))
    with pytest.raises(ValueError, match=r"attack\.images=labels takes labels for positions .* must be drawn"):
        DEFAULT.prepare(replace(few, train=Samples(few.train.x, few.train.y + 1)), generator(0, "prepare"))
    with pytest.raises(ConfigError, match=r"dataset=text\w* has labels that are none: must be drawn"):
        build(tiny("attack=sparse", *ON_TEXT))


def test_the_mask_is_made_once(tiny: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both colluders of the first round, with the same noise, to the same bits."""
    made, seeds = list[Tensor](), set[int]()

    def spied(*args: Any) -> Tensor:
        seeds.add(args[-1].initial_seed())
        made.append(skeleton(*args))
        return made[-1]

    monkeypatch.setattr(sparse, "skeleton", spied)
    with start(tiny("attack=sparse", *QUICK["sparse"], "defense=fedavg", "poisoned_model_rate=0.4")) as (fed, state):
        first = play(replace(fed, evaluate_at=()), state).after
        second = play(replace(fed, evaluate_at=()), first).after
    assert len(made) == 2 and len(seeds) == 1 and torch.equal(*made) and torch.equal(second.memory[MASK], made[0])


def test_texts_are_pruned_on_texts(tiny: Callable, start: Callable) -> None:
    words = ("attack=sparse", "attack.images=drawn", "attack.loss=logits", *QUICK["sparse"], *ON_TEXT)
    with start(tiny(*words, "defense=fedavg", "poisoned_model_rate=0.4", "dataset.train=40")) as (fed, state):
        record = play(replace(fed, evaluate_at=()), state)
    assert record.metrics["attack/idle"] == 0 and bool(record.after.row.isfinite().all())
