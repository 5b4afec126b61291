"""The laboratory: what models answer there, whose losses come out, who may lie, and who does not validate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log, nan
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from labs import PER_CLIENT, Constant, Liar, Tiny, honest, laboratory
from test_defenses import PLAIN, a_round, assert_close, stream
from torch import Generator

from attacks.base import Attack
from flame.defenses.base import defend, uniform
from flame.engine.laboratory import first_of_each
from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, Updates, Verdict

EVEN, SKEWED, BROKEN = torch.zeros(3), torch.tensor([0, 0, log(3)]), torch.tensor([0, nan, 0])  # of `Constant`
COMPROMISED = torch.tensor([False, True, False])


def test_logits_are_the_models_own() -> None:
    lab = laboratory(Constant(), (1, 2, 2), honest(1))
    assert StateLayout.of(Constant()) == PLAIN
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    assert_close(lab.logits([EVEN, SKEWED], x).flatten(), *[0] * 6, *[0, log(3)] * 3)
    net = Tiny(inputs=4, hidden=3, classes=2).eval()
    net.bn.running_mean += 0.3  # evaluation uses it
    lab = laboratory(net, (1, 2, 2), honest(1))
    x = torch.randint(0, 256, (250, 1, 2, 2), generator=stream(), dtype=torch.uint8)  # three batches
    (row,), (counters,) = lab.bench.task.layout.zeros(1)
    lab.bench.task.layout.flatten(net.state_dict(), row, counters)
    torch.testing.assert_close(lab.logits([row], x)[0], net((x / 255 - 0.5) / 0.25).detach())


def test_class_losses_by_hand() -> None:
    y = torch.tensor([0, 1] * (PER_CLIENT // 2) + [1] * PER_CLIENT)  # the second client has no image of class 0
    told = laboratory(Constant(), (1, 1, 1), honest(2), y).class_losses([EVEN, SKEWED, BROKEN], 30)
    assert told.shape == (2, 3, 2)  # validators, models, classes
    assert_close(told[0].flatten(), log(2), log(2), log(4), log(4 / 3), inf, inf)
    assert_close(told[1, :, 1], log(2), log(4 / 3), inf)
    assert bool(told[1, :, 0].isnan().all())


@pytest.mark.parametrize("most", [1, 4, 99])
def test_class_losses_are_those_of_each_clients_first_images(most: int) -> None:
    net = Tiny(inputs=4, hidden=3, classes=3).eval()
    lab = laboratory(net, (1, 2, 2), honest(2), classes=3)
    (row,), (counters,) = lab.bench.task.layout.zeros(1)
    lab.bench.task.layout.flatten(net.state_dict(), row, counters)
    train = lab.bench.task.train
    losses = F.cross_entropy(net((train.x / 255 - 0.5) / 0.25), train.y, reduction="none").detach().view(2, PER_CLIENT)
    wanted = [[own[train.y[:PER_CLIENT] == c][:most].mean() for c in range(3)] for own in losses]
    torch.testing.assert_close(lab.class_losses([row], most)[:, 0], torch.tensor(wanted).double(), rtol=1e-5, atol=0)


def test_first_of_each_by_hand() -> None:
    y = torch.tensor([1, 0, 1, 1, 0, 2, 0])
    assert first_of_each(y, 1).tolist() == [0, 1, 5]
    assert first_of_each(y, 2).tolist() == [0, 1, 2, 4, 5]


def test_only_compromised_validators_lie() -> None:
    """The base attack is honest; an attack's answer must answer the question."""
    truth, told = (
        laboratory(Constant(), (1, 1, 1), COMPROMISED, attack=attack).class_losses([EVEN, SKEWED], 5)
        for attack in (Attack(), Liar())
    )
    assert torch.equal(truth[0], truth[1]) and torch.equal(told[~COMPROMISED], truth[~COMPROMISED])
    assert torch.equal(told[1], 10 * truth[1])
    with pytest.raises(ValueError, match=r"attack\.report gave \(1, 1, 2\) losses: must be \(1, 2, 2\)"):
        laboratory(Constant(), (1, 1, 1), COMPROMISED, attack=Liar(sense=False)).class_losses([EVEN, SKEWED], 5)


def test_fewer_validators_say_what_they_said_to_the_last_bit() -> None:
    lab = laboratory(Tiny(4, 3, 2), (1, 2, 2), COMPROMISED, attack=Liar())
    row = torch.randn(lab.bench.task.layout.size, generator=stream()).abs()
    whole = lab.class_losses([row], 5)
    for keep in (torch.tensor([True, True, False]), torch.tensor([2, 1])):
        assert torch.equal(lab[keep].class_losses([row], 5), whole[keep])
    updates = a_round(torch.zeros(3, 3), lab=lab)
    for part in (updates.first(2), updates.select(torch.tensor([True, True, False]))):
        assert part.lab is not None and torch.equal(part.lab.class_losses([row], 5), whole[:2])


@dataclass(frozen=True)
class Asking:
    """A defense that counts its validators."""

    needs_lab: ClassVar[bool] = True

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        assert updates.lab is not None
        told = updates.lab.class_losses([updates.base], 1)
        return Verdict(
            state, uniform(torch.ones(len(updates), dtype=torch.bool)), {"asking/told": float(told[0, 0, 0])}
        )


def test_whose_update_is_unusable_does_not_validate() -> None:
    rows = torch.zeros(3, 3)
    rows[1, 0] = nan
    updates = a_round(rows, lab=laboratory(Constant(), (1, 1, 1), COMPROMISED, attack=Liar()))
    verdict = defend(Asking(), ServerState(updates.base, updates.base_counters), updates, stream())
    assert verdict.weights.tolist() == [0.5, 0, 0.5]
    alone = replace(updates, rows=torch.tensor([[nan], [0.0], [nan]]).expand(3, 3))
    verdict = defend(Asking(), ServerState(updates.base, updates.base_counters), alone, stream())
    assert verdict.info["asking/told"] == pytest.approx(10 * log(2))  # the liar, alone
