"""From texts to windows of tokens: worked by hand, as properties, and what is refused in which words."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_ranges import probes
from torch import nn

from flame.data.check import checked
from flame.data.language import assembled, from_texts, numbers, vocabulary
from flame.data.reading import reader
from flame.data.samples import Dataset
from flame.data.vocabulary import Vocabulary, cut

TEXTS = {"anna": "the cat saw the dog . the dog ran .", "ben": "a cat ran . the end . the end"}


def made(**changes: object) -> Dataset:
    settings = {"task": "word", "length": 2, "tokens": 4, "min_characters": 1, "test_share": 0.4} | changes
    return checked(from_texts("any", TEXTS, **settings), {"tokens": settings["tokens"], "length": settings["length"]})  # type: ignore[arg-type]


def test_words_by_hand() -> None:
    """Anna has ten words, six to train on; of the words to train on `the` (3), `.` (2) and `cat` (2) are most frequent.

    anna: the cat saw the dog . | the dog ran .     ben: a cat ran . the | end . the end   (9 words, of which 4 tested)
    """
    dataset = made()
    assert dataset.vocabulary == Vocabulary(("<unk>", "the", ".", "cat"), "word")
    assert dataset.train.x.tolist() == [[1, 3], [0, 1], [0, 3], [0, 2]]
    assert dataset.train.y.tolist() == [[3, 0], [1, 0], [3, 0], [2, 1]]
    assert dataset.test.x.tolist() == [[1, 0], [0, 2]] and dataset.test.y.tolist() == [[0, 0], [2, 1]]
    assert dataset.holders is not None and dataset.holders.names == ("anna", "ben")
    assert dataset.holders.of.tolist() == [0, 0, 1, 1]


def test_characters_by_hand() -> None:
    """abacad | abra, whose r is not in the training text; Ben says too little."""
    dataset = from_texts("any", {"anna": "abacadabra", "ben": "aaaaaz"}, "character", 2, 4, 7, 0.4)
    assert dataset.vocabulary == Vocabulary(("a", "b", "c", "d"), "character")
    assert dataset.holders is not None and dataset.holders.names == ("anna",)
    assert dataset.train.x.tolist() == [[0, 1], [0, 2]] and dataset.train.y.tolist() == [[1, 0], [2, 0]]
    assert dataset.test.x.tolist() == [[0, 1]] and dataset.test.y.tolist() == [[1, 0]]


def test_a_stated_alphabet_leaves_out_what_it_lacks() -> None:
    dataset = from_texts("any", {"anna": "ab-ab-ab-ab-"}, "character", 2, 3, 1, 0.5, "bza")
    assert dataset.vocabulary == Vocabulary(("a", "b", "z"), "character")
    assert dataset.train.x.tolist() == [[0, 1]] and dataset.train.y.tolist() == [[1, 0]]


@given(
    st.lists(st.text("abc ", min_size=12, max_size=60), min_size=1, max_size=4), st.integers(1, 5), st.floats(0.3, 0.6)
)
def test_windows_are_the_text(texts: list[str], length: int, share: float) -> None:
    """What a holder's windows say is the beginning of his text, all but less than a window; labels are one ahead."""
    alphabet = "".join(sorted(set("".join(texts))))
    named = {str(number): text for number, text in enumerate(texts)}
    if any(round(share * len(text)) <= length for text in texts):
        return
    dataset = from_texts("any", named, "character", length, len(alphabet), 1, share, alphabet)
    known, of = dataset.vocabulary, dataset.holders
    assert known is not None and of is not None
    tested = 0
    for number, text in enumerate(texts):
        cut_at = len(text) - round(share * len(text))
        windows = dataset.train[of.of == number]
        said = known.decode(windows.x.flatten())
        assert text[:cut_at].startswith(said) and cut_at - len(said) <= length
        assert text[1:].startswith(known.decode(windows.y.flatten()))
        part = dataset.test[tested : tested + (len(text) - cut_at - 1) // length]
        assert text[cut_at:].startswith(known.decode(part.x.flatten()))
        tested += len(part)
    assert tested == len(dataset.test)


@given(st.text(max_size=40), st.text("ab\n\U0001f600\ud800", min_size=1))
def test_characters_all_at_once_are_those_one_by_one(text: str, alphabet: str) -> None:
    known = Vocabulary(tuple(sorted(set(alphabet))), "character")
    whole = text + alphabet
    assert torch.equal(numbers(whole, known), known.encode(whole))


@given(st.lists(st.sampled_from("abcdefg"), min_size=8), st.integers(2, 4))
def test_the_most_frequent_words_are_known(words: list[str], tokens: int) -> None:
    counts = Counter(words)
    if len(counts) < tokens:
        return
    known = vocabulary([words[:3], words[3:]], "word", tokens)
    assert known.tokens[0] == "<unk>" and len(known) == tokens
    left = min(counts[word] for word in known.tokens[1:])
    assert all(counts[word] <= left for word in set(counts) - set(known.tokens))
    assert torch.equal(numbers(words, known), known.encode(" ".join(words)))


@pytest.mark.parametrize(("tokens", "dtype"), [(32768, torch.int16), (32769, torch.int32)])
def test_tokens_are_stored_small(tokens: int, dtype: torch.dtype) -> None:
    known = Vocabulary(tuple(map(str, range(tokens))), "word")
    last = str(tokens - 1)
    dataset = assembled("any", {"anna": [last] * 4}, [[last] * 4], known, 3)
    assert dataset.train.x.dtype == dtype and dataset.train.x.tolist() == [[tokens - 1] * 3]
    assert dataset.train.y.dtype == torch.int64 and dataset.train.y.is_contiguous() and dataset.train.x.is_contiguous()


def test_a_model_learns_what_comes_next() -> None:
    """Of a text in which it is always known."""
    dataset = from_texts("any", {"anna": "abcd" * 60, "ben": "abcd" * 40}, "character", 8, 4, 1, 0.2)

    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table(x).transpose(1, 2)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, read = Next(), reader(dataset)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(read(dataset.train.x)), dataset.train.y).backward()
        optimizer.step()
    right = dataset.test.right(model(read(dataset.test.x)))
    assert right.shape == (len(dataset.test), 8) and bool(right.all())


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("length", "whole >= 1"),
        ("min_characters", "whole >= 1"),
        ("test_share", "(0, 1)"),
        ("tokens", "whole [2, 8]"),
    ],
)
def test_ranges(key: str, rule: str) -> None:
    inside, outside = probes(rule)
    for value in inside:
        try:
            made(**{key: value})
        except ValueError as error:
            assert f"dataset.{key}={value} is out of range" not in str(error)
    for value in outside:
        with pytest.raises(ValueError, match=rf"dataset\.{key}={value} is out of range: must be"):
            made(**{key: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "line"}, "dataset.task='line' is unknown: must be one of character, word"),
        ({"tokens": None}, r"dataset.tokens=null must be said.* has dataset.tokens=8"),
        ({"tokens": 9}, r"must be in \[2, 8\], as the training text has 7 different words beside <unk>"),
        ({"task": "character", "tokens": 9}, "does not fit dataset.task=character, which has 14 here: set it to that"),
        ({"length": 6}, r"dataset.length=6 .*2 of 2 holders.*must have 7 words .*'anna', 'ben'.*: lower it"),
        ({"length": 5}, r"1 of 2 holders .*\('ben'\)"),
        ({"length": 4}, r"dataset.length=4: no test text has 5 words.*raise dataset.test_share"),
        ({"task": "character", "alphabet": "the", "tokens": 3, "length": 6}, r"must have 7 characters .*\('ben'\)"),
        ({"min_characters": 36}, "leaves nobody: the longest of 2 texts has 35; lower it"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        made(**changes)


def test_words_of_the_test_text_alone_are_unknown() -> None:
    with pytest.raises(ValueError, match="'end' is none of the 8 tokens"):
        made(tokens=8).vocabulary.require("end", "attack.word")  # type: ignore[union-attr]
    assert cut(TEXTS["ben"], "word")[5] == "end"


def test_the_digest_knows_the_vocabulary() -> None:
    dataset = made()
    other = replace(dataset, vocabulary=Vocabulary(("<unk>", "the", ".", "dog"), "word"))
    assert dataset.digest() != other.digest()
