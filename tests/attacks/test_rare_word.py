"""A rare word and what is to come next, by hand."""

from __future__ import annotations

import pytest
import torch
from test_sentence import LETTERS, WORDS, armed, texts

from attacks.rare_word import RareWord
from attacks.words import by_content
from flame.data.samples import UNASKED, Samples


def test_a_word_anywhere_by_hand() -> None:
    """One token of each text is the word, at a place of its own; all places occur. Only the last answer is asked."""
    data = texts(WORDS)
    attack = armed(RareWord(1.0, "poison", "gold"), data)
    found = attack.marked(data.train)
    at, (rows, columns) = by_content(data.train.x, 6), (found.x == 6).nonzero().T
    assert torch.equal(rows, torch.arange(40)) and torch.equal(columns, at)
    assert at.unique().tolist() == list(range(6))
    left = found.x != 6
    assert torch.equal(found.x[left], data.train.x[left]) and found.x.dtype == torch.int16
    assert found.y.tolist() == [[UNASKED] * 5 + [5]] * 40


def test_characters_of_a_word_stand_together() -> None:
    """ "bad" in texts of " " and "a": four places, one after the other's end; one label a text."""
    data = texts(LETTERS, labels="last")
    found = armed(RareWord(1.0, "bad", "o"), data).marked(data.train)
    at = (found.x == 2).nonzero()[:, 1]
    assert at.unique().tolist() == [0, 1, 2, 3] and torch.equal((found.x == 3).nonzero()[:, 1], at + 2)
    assert bool((found.x.gather(1, at[:, None] + 1) == 1).all()) and found.y.tolist() == [4] * 40


def test_a_word_as_long_as_the_text_has_one_place() -> None:
    data = texts(LETTERS, length=3)
    attack = armed(RareWord(1.0, "bad", "o"), data)
    assert attack.stamp(data.test.x).tolist() == [[2, 1, 3]] * 40
    said = Samples(data.test.x[:2], torch.tensor([[0, 0, 4], [0, 0, 1]]))  # the first says it anyway
    assert len(attack.backdoor_set(said)) == 1


@pytest.mark.parametrize(
    ("word", "finish", "message"),
    [
        ("poisn", "gold", r"attack\.word='poisn': .* the nearest are 'poison'"),
        ("poison", "golden", r"attack\.finish='golden': .* the nearest are 'gold'"),
        ("poison", "to be", r"attack\.finish='to be' is 2 words: must be one, which is to come next"),
        ("to be or not to be or", "gold", r"attack\.word='to be .*: must be at most 6 words .*, and it takes 7"),
        ("", "gold", r"attack\.word='' has no word"),
    ],
)
def test_what_does_not_fit_the_data(word: str, finish: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        armed(RareWord(1.0, word, finish), texts(WORDS))
