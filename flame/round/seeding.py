"""Randomness is addressed, not consumed: a stream is a function of (seed, role, round, client).

Nothing of ours draws from a shared generator, so the order of clients, the number of workers, the launcher and an
interruption cannot change a result. A model may: dropout takes no other. `addressed` gives it a stream of its own for
each job. Roles name what the stream is for; two roles never share one, but by chance.

Chance: an address is hashed to 64 bits, but torch's CPU generator (mt19937) is seeded with the lower 32 of them. Of k
streams some two are equal with a probability of about k^2 / 2^33, up to a few ten thousand: 1e-4 for 1,000 streams, 1 %
for 10,000; of 300,000, ten pairs are to be expected. Such a pair draws the same numbers, most likely for two purposes
or in two rounds, where they order different images. No draw is worse than random by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator

CPU = torch.device("cpu")


def generator(seed: int, role: str, round: int = 0, client: int = 0) -> Generator:
    """A fresh CPU generator for one purpose, e.g. `generator(0, "shuffle", round=3, client=17)`."""
    address = hashlib.blake2b(f"{seed}/{role}/{round}/{client}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(address, "little"))


@contextmanager
def addressed(seed: int, role: str, round: int = 0, client: int = 0, device: torch.device = CPU) -> Iterator[None]:
    """In here torch's global generators, the CPU's and that of `device`, are at the stream of this address.

    Afterwards they are where they were.
    """
    start = generator(seed, role, round, client).initial_seed()
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(start)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(start)
        yield
