"""A tiny data set of texts, for tests that need tokens and no files.

`TEXT` are the overrides that choose it, whose YAML is tests/conf/dataset/texts.yaml. Its texts are a chain: after
token t comes (5 t + 1) mod tokens, but for one in ten, which is drawn. So nine of ten tokens can be
foretold.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from flame.data.samples import UNASKED, Dataset, Holders, Samples
from flame.data.vocabulary import Vocabulary

TEXT = (f"hydra.searchpath=[file://{Path(__file__).parent}/conf]", "dataset=texts")


def texts(tokens: int, classes: int, length: int, train: int, test: int, labels: str) -> Dataset:
    """`train` and `test` texts of `length` tokens; the same ones in every call.

    `labels`: every token's next one, or the last token's alone (`last`), [N]. Six writers hold them in turn.
    """
    stream = Generator().manual_seed(0)
    names = tuple(f"t{i}" for i in range(tokens))
    train_set, test_set = (_samples(count, length, tokens, labels, stream) for count in (train, test))
    writers = Holders(torch.arange(train) % 6, tuple(f"writer {i}" for i in range(6)))
    return Dataset("texts", train_set, test_set, (), (), classes, writers, vocabulary=Vocabulary(names, "word"))


def _samples(count: int, length: int, tokens: int, labels: str, stream: Generator) -> Samples:
    chain = _chain(count, length + 1, tokens, stream)
    x, y = chain[:, :-1].to(torch.int16), chain[:, 1:].clone()
    if labels == "last":
        return Samples(x, y[:, -1])
    y[:, 0] = UNASKED  # as of a first token, which nothing foretells
    return Samples(x, y)


def _chain(count: int, length: int, tokens: int, stream: Generator) -> Tensor:
    """[count, length] int64."""
    drawn = torch.randint(tokens, (count, length), generator=stream)
    free = torch.rand(count, length, generator=stream) < 0.1
    for i in range(1, length):
        drawn[:, i] = torch.where(free[:, i], drawn[:, i], (5 * drawn[:, i - 1] + 1) % tokens)
    return drawn
