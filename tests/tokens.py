"""Tiny federations on random texts: every token has a label but the first of each text, which nothing is asked of."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from attackers import recipe
from torch import Generator, Tensor, nn

from attacks.base import Attack
from flame.data.reading import noise, reader
from flame.data.samples import UNASKED, Dataset, Samples, Shards
from flame.data.vocabulary import Vocabulary
from flame.defenses.base import Defense
from flame.engine.laboratory import Laboratory
from flame.engine.sequential import Sequential
from flame.engine.spill import Spill
from flame.engine.workbench import Task
from flame.federation import Federation
from flame.geometry.layout import StateLayout
from flame.round.cohort import Population, Schedule
from flame.round.seeding import addressed
from flame.round.server import Server
from flame.round.types import ServerState

WORDS, LENGTH, CLIENTS, EACH = 7, 4, 6, 5  # tokens of the vocabulary and of a text, clients, texts of each


class Reader(nn.Module):
    """Embedding, BatchNorm and linear layer, at each token by itself; logits [B, words, T]."""

    def __init__(self, words: int = WORDS, width: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] int64 -> [B, words, T]."""
        return self.out(self.norm(self.embedding(x).transpose(1, 2)).transpose(1, 2)).transpose(1, 2)


def texts(count: int, words: int = WORDS, length: int = LENGTH) -> Samples:
    """Whose next token is, as a rule, the present one plus 1."""
    stream = Generator().manual_seed(count)
    x = (torch.randint(words, (count, 1), generator=stream) + torch.arange(length)) % words
    y = (x + 1) % words
    y[:, 0] = UNASKED
    return Samples(x.to(torch.int16), y)


def dataset(words: int = WORDS, clients: int = CLIENTS) -> Dataset:
    """As many texts as the clients hold, and five of the server's."""
    names = Vocabulary(tuple(f"w{i}" for i in range(words)), "word")
    return Dataset("texts", texts(EACH * (clients + 1), words), texts(9, words), (), (), words, vocabulary=names)


def task(attack: Attack | None = None, model: nn.Module | None = None, **changes: Any) -> Task:
    """What the clients do; behind their shards is the server's."""
    with addressed(0, "test model"):
        net = model or Reader()
    data = dataset()
    shards = Shards.cut(torch.arange(len(data.train)), torch.full((CLIENTS + 1,), EACH))
    sets = {"clean": data.test, "backdoor": data.test[:4]}
    fields: dict[str, Any] = {"precision": "float32", "smoothing": None, "device": "cpu", "seed": 0} | changes
    return Task(
        model=net,
        layout=StateLayout.of(net),
        train=data.train,
        shards=shards,
        eval_sets=sets,
        normalise=reader(data),
        noise=noise(data),
        training=recipe(lr=0.5, momentum=0.0, weight_decay=0.0, epochs=1, batch_size=3),
        attack=attack or Attack(),
        spill=Spill(1.0, "."),
        **fields,
    )


def federation(defense: Defense, work: Task) -> tuple[Federation, ServerState]:
    """Five of the six clients a round, and what they start from."""
    population = Population(CLIENTS, 5, 0.2, "fixed", Schedule(0, None, 1, None), True, 0)
    server, engine = Server(None, 1.0, "mean"), Sequential(work)
    fed = Federation(population, work.attack, defense, server, engine, [], 0, [0], partial(Laboratory.of, work))
    return fed, ServerState.of(work.layout, work.model)
