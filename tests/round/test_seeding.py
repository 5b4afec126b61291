"""Random streams: a function of their address and of nothing else."""

from __future__ import annotations

import itertools
import random

import torch
from torch import Generator

from flame.round.seeding import generator

GOLDEN = 1_331_126_569_708_574_389


def draw(*address: int | str) -> list[float]:
    return torch.rand(4, generator=generator(*address)).tolist()


def test_every_part_of_the_address_counts() -> None:
    addresses = list(itertools.product((0, 1, -1), ("shuffle", "cohort"), (0, 1, 11), (0, 1, 11)))
    streams = {tuple(draw(*address)) for address in addresses}
    assert len(streams) == len(addresses)


def test_digits_do_not_run_together() -> None:
    assert draw(1, "shuffle", 1, 11) != draw(1, "shuffle", 11, 1)
    assert draw(11, "shuffle", 1, 1) != draw(1, "shuffle", 1, 1)


def test_streams_are_stateless() -> None:
    """Neither what was drawn before nor the order of asking matters, and the global generator is left alone."""
    before = torch.get_rng_state()
    clients = list(range(20))
    first = {c: draw(0, "shuffle", 3, c) for c in clients}
    random.Random(0).shuffle(clients)
    assert {c: draw(0, "shuffle", 3, c) for c in clients} == first
    assert torch.equal(torch.get_rng_state(), before)


def test_the_address_is_hashed_as_documented() -> None:
    """blake2b, 8 bytes, little-endian, of "0/cohort/3/17": a change here changes every result of the project."""
    assert generator(0, "cohort", 3, 17).initial_seed() == GOLDEN


def test_32_bits_of_the_address_decide() -> None:
    """As the head of `flame/round/seeding.py` says of torch's CPU generator."""
    one, two = (Generator().manual_seed(5 + high * 2**32) for high in (0, 7))
    assert torch.equal(torch.randn(100, generator=one), torch.randn(100, generator=two))


def test_neighbouring_streams_are_independent() -> None:
    """100,000 draws of two neighbours: mean 1/2 and correlation 0 within five standard errors."""
    a, b = (torch.rand(100_000, generator=generator(0, "shuffle", 0, client), dtype=torch.float64) for client in (0, 1))
    assert abs(float(a.mean()) - 0.5) < 5 * (1 / 12 / 1e5) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / 1e5**0.5
