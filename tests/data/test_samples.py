"""Samples of all kinds: how they are cut, moved, read and judged, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from flame.data.check import checked
from flame.data.reading import noise, reader
from flame.data.samples import UNASKED, Dataset, Samples
from flame.data.vocabulary import Vocabulary
from flame.round.evaluate import evaluate, total
from flame.round.smoothing import vote

VOCABULARY = Vocabulary(("<unk>", "to", "be", "or", "not"), "word")
TEXT = Samples(torch.tensor([[1, 2], [3, 4], [1, 2]], dtype=torch.int16), torch.tensor([[2, 3], [-100, 1], [2, -100]]))
WORDS = Dataset("toys", TEXT, TEXT[:2], (), (), 5, vocabulary=VOCABULARY)
ROWS = Samples(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), torch.tensor([0, 1]))
TABLE = Dataset("toys", ROWS, ROWS, (2.0, 20.0), (1.0, 10.0), 2)


class Next(nn.Module):
    """Answers that the next token is the present one plus `by`."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(float(by)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T] int64 -> [B, 5, T]."""
        return 10 * torch.eye(5)[(x + int(self.by)) % 5].transpose(1, 2)


def test_only_what_is_asked_is_judged() -> None:
    """4 of 6 are asked: 1 -> 2 right, 2 -> 3 right, 4 -> 1 wrong, 1 -> 2 right; each class is told apart."""
    assert TEXT.asked == 4 and len(TEXT) == 3
    found = evaluate(Next(1), TEXT, reader(WORDS), truth=TEXT.y)
    assert (found.correct, found.count, found.accuracy) == (3, 4, 0.75)
    assert found.answers == {(2, 2, 2): 2, (3, 3, 3): 1, (1, 1, 0): 1}
    logs = torch.log_softmax(torch.tensor([10.0, 0, 0, 0, 0]), 0)
    assert found.loss == pytest.approx(-float(3 * logs[0] + logs[1]), rel=1e-6)
    assert total([evaluate(Next(1), TEXT[part], reader(WORDS)) for part in (slice(0, 1), slice(1, 3))]).correct == 3


def test_a_vote_judges_what_is_asked() -> None:
    found = vote([Next(1), Next(1), Next(0)], TEXT, reader(WORDS), alpha=0.001, truth=TEXT.y)
    assert (found.correct, found.count) == (3, 4) and found.answers == {(2, 2, 2): 2, (3, 3, 3): 1, (1, 1, 0): 1}
    assert found.certified == 0  # three votes are no certainty


def test_random_samples_are_of_the_datas_kind() -> None:
    tokens = noise(WORDS)(50, Generator().manual_seed(0))
    assert tokens.shape == (50, 2) and tokens.dtype == torch.int16 and tokens.unique().tolist() == [0, 1, 2, 3, 4]
    rows = noise(TABLE)(4000, Generator().manual_seed(0))
    assert rows.dtype == torch.float32 and rows.mean(0).tolist() == pytest.approx([2, 20], rel=0.05)
    assert rows.std(0).tolist() == pytest.approx([1, 10], rel=0.05)
    pixels = torch.randint(0, 256, (3, 1, 2, 2), dtype=torch.uint8, generator=Generator().manual_seed(7))
    images = Dataset("toys", Samples(pixels, torch.arange(3)), Samples(pixels, torch.arange(3)), (0.5,), (0.5,), 3)
    assert torch.equal(noise(images)(3, Generator().manual_seed(7)), pixels)


def test_what_models_read() -> None:
    assert (WORDS.kind, TABLE.kind) == ("tokens", "features")
    assert torch.equal(reader(WORDS)(TEXT.x), TEXT.x.long()) and reader(WORDS)(TEXT.x).dtype == torch.int64
    assert torch.equal(reader(TABLE)(ROWS.x), torch.tensor([[-1.0, -1], [1, 1]]))
    assert ROWS.x[0, 0] == 1  # nothing is read in place


def test_text_and_its_tokens() -> None:
    assert VOCABULARY.encode("To BE, or what?").tolist() == [1, 2, 0, 3, 0, 0]
    assert VOCABULARY.decode(torch.tensor([1, UNASKED, 2])) == "to be"
    letters = Vocabulary(("a", "b", " "), "character")
    assert letters.encode("b az").tolist() == [1, 2, 0] and letters.decode(torch.tensor([1, 2, 0])) == "b a"
    with pytest.raises(ValueError, match=r"attack\.text='to bee': 'bee' is none of the 5 tokens .* nearest are 'be'"):
        VOCABULARY.require("to bee", "attack.text")
    with pytest.raises(ValueError, match=r"attack\.text='' has no word: must be text"):
        VOCABULARY.require("", "attack.text")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": TEXT.x + 3}, r"train\.x has tokens in \[4, 7\] of a vocabulary of 5: must be in \[0, 4\]"),
        ({"x": TEXT.x.float()}, r"train\.x is torch\.float32: must be torch\.int16 or .*; convert it"),
        ({"y": TEXT.y + 3}, r"train\.y has labels in \[-97, 6\], dataset\.classes=5 allows \[0, 4\]"),
        ({"y": torch.full((3, 2), UNASKED)}, r"train\.y asks nothing of 3 samples \(-100 is no class\)"),
        ({"y": torch.zeros(3, 4).long()}, r"train\.y has the shape \(3, 4\): must be \[N\] or that of x, \(3, 2\)"),
    ],
)
def test_tokens_are_checked(change: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        checked(replace(WORDS, train=replace(TEXT, **change)), {})


@pytest.mark.parametrize(
    ("change", "facts", "sentence"),
    [
        ({}, {"length": 3}, r"dataset\.length=3 does not fit toys: its train tokens are \(2,\) \(tokens of a text\)"),
        ({}, {"tokens": 4}, r"dataset\.tokens=4 does not fit toys, whose vocabulary has 5"),
        ({"mean": (0.5,)}, {}, r"dataset\.mean=\(0\.5,\) is out of range: must be \(\), as tokens are read as they"),
    ],
)
def test_facts_of_tokens_are_compared(change: dict[str, object], facts: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        checked(replace(WORDS, **change), facts)  # type: ignore[arg-type]
    assert checked(WORDS, {"length": 2, "tokens": 5}).vocabulary is VOCABULARY


def test_rows_of_features_are_checked() -> None:
    assert checked(TABLE, {"features": 2}).std == (1.0, 10.0)
    broken = replace(ROWS, x=ROWS.x / torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"train\.x has 2 numbers that are NaN or infinite"):
        checked(replace(TABLE, train=broken), {})
    with pytest.raises(ValueError, match=r"dataset\.std=\(0\.0, 1\.0\) is out of range: must be 2 positive numbers"):
        checked(replace(TABLE, std=(0.0, 1.0)), {})
    with pytest.raises(ValueError, match=r"dataset\.features=3 does not fit toys"):
        checked(TABLE, {"features": 3})
