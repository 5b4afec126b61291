"""The control that averages as many clients as FLAME accepts, chosen otherwise."""

from __future__ import annotations

import torch
from test_defenses import NORMED, a_round, answer, assert_close
from torch import Generator

from flame.defenses.majority import Majority
from flame.round.types import ServerState

LENGTHS = [[5, 0, 0], [0, 1, 0], [0, 0, 3], [2, 0, 0], [0, 2, 0]]


def test_the_shortest_by_hand() -> None:
    """Lengths 5, 1, 3, 2, 2: three of five are 1 and both 2s, whose mean is (2 + 0 + 0, 0 + 1 + 2, 0) / 3."""
    verdict = answer(Majority("length"), a_round(LENGTHS))
    assert_close(verdict.weights, 0, 1 / 3, 0, 1 / 3, 1 / 3)
    assert_close(verdict.state.row, 2 / 3, 1, 0)


def test_equal_lengths_go_by_number_in_any_order_of_arrival() -> None:
    """Of three updates of length 1 two are left: clients 3 and 5, wherever they stand."""
    for ids in ([3, 5, 9], [9, 5, 3], [5, 9, 3]):
        verdict = answer(Majority("length"), a_round(torch.eye(3), ids=torch.tensor(ids)))
        assert torch.tensor(ids)[verdict.accepted].sort().values.tolist() == [3, 5]


def test_statistics_have_no_say_in_the_length_and_counters_stay() -> None:
    rows = torch.tensor([[1.0, 0, 0, 9], [2, 0, 0, 0], [3, 0, 0, 0]])  # trunk, head, head, running_var
    updates = a_round(rows, NORMED)
    verdict = answer(Majority("length"), updates)
    assert verdict.accepted.tolist() == [True, True, False]
    assert_close(verdict.state.row, 1.5, 0, 0, 4.5)
    assert torch.equal(verdict.state.counters, updates.base_counters)


def test_a_draw_takes_every_set_equally_often_whoever_arrives_first() -> None:
    """Three of five clients: 1 of 10 sets, 1,000 draws, so 100 of each; four standard deviations are 38."""
    found: dict[tuple[int, ...], int] = {}
    updates = a_round(LENGTHS)
    turned = a_round(LENGTHS[::-1], ids=torch.arange(5).flip(0))
    state = ServerState(updates.base, updates.base_counters)
    for seed in range(1000):
        accepted = Majority("draw")(state, updates, Generator().manual_seed(seed)).accepted
        again = Majority("draw")(state, turned, Generator().manual_seed(seed)).accepted
        assert torch.equal(accepted, again.flip(0))
        key = tuple(accepted.nonzero().flatten().tolist())
        found[key] = found.get(key, 0) + 1
    assert len(found) == 10 and all(abs(count - 100) <= 38 for count in found.values())


def test_how_many_are_left() -> None:
    for n, kept in [(1, 1), (2, 2), (3, 2), (10, 6), (11, 6)]:
        assert int(answer(Majority("draw"), a_round(torch.ones(n, 3))).accepted.sum()) == kept
