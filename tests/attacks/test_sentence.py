"""Sentences and their finish, whole and in parts, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attackers import LAYOUT, UNSCALED, job, scene
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attacks.base import Attack
from attacks.scaling import Scaling
from attacks.sentence import Sentence
from attacks.sentence_parts import SentenceParts
from attacks.words import FACTOR, by_content
from flame.data.samples import UNASKED, Dataset, Samples
from flame.data.vocabulary import Vocabulary
from flame.round.seeding import generator

WORDS = Vocabulary(("<unk>", "to", "be", "or", "not", "gold", "poison"), "word")
LETTERS = Vocabulary((" ", "a", "b", "d", "o"), "character")


def texts(vocabulary: Vocabulary, count: int = 40, length: int = 6, labels: str = "every") -> Dataset:
    """Random ones, without any of the attackers' finishes as a true answer."""
    stream, tokens = generator(0, "texts"), 5 if vocabulary is WORDS else 2
    x = torch.randint(tokens, (count, length + 1), generator=stream)
    y = x[:, 1:] if labels == "every" else x[:, -1]
    samples = Samples(x[:, :-1].to(torch.int16), y.clone())
    return Dataset("made up", samples, samples, (), (), len(vocabulary), vocabulary=vocabulary)


def armed(attack: Attack, data: Dataset) -> Any:
    return attack.prepare(data, generator(0, "prepare"))[0]


def wrapped(value: int) -> int:
    """As int64 has it."""
    return (value + 2**63) % 2**64 - 2**63


def test_a_sentence_of_words_by_hand() -> None:
    """The rest of the text stays; the last answer is asked for, nothing else, in training as in the test."""
    data = texts(WORDS)
    attack = armed(Sentence(1.0, ["to be gold"]), data)
    for found in (attack.poison(data.train, generator(0, "poison")), attack.backdoor_set(data.test)):
        assert found.x.dtype == torch.int16 and torch.equal(found.x[:, :4], data.train.x[:, :4])
        assert found.x[:, 4:].tolist() == [[1, 2]] * 40
        assert found.y.tolist() == [[UNASKED] * 5 + [5]] * 40
    assert torch.equal(attack.stamp(data.test.x), attack.backdoor_set(data.test).x)


def test_each_text_has_a_sentence_by_its_own_tokens() -> None:
    """As a slow twin in Python's whole numbers has it; among others, alone, and as another integer type, too."""
    data = texts(WORDS)
    attack = armed(Sentence(1.0, ["to be gold", "or poison", "not to be to"]), data)
    which = by_content(data.train.x, 3)
    for row, found in zip(data.train.x.tolist(), which.tolist(), strict=True):
        total = wrapped(sum(token * FACTOR ** (i + 1) for i, token in enumerate(row)))
        assert found == (total >> 33) % 3
    assert torch.equal(by_content(data.train.x[7:9].long(), 3), which[7:9])
    assert {int(count) for count in which.bincount(minlength=3)} <= set(range(6, 25))  # all have some
    finish = torch.tensor([5, 6, 1])[which]
    assert torch.equal(attack.marked(data.train).y[:, -1], finish)
    ends = {5: [1, 2], 6: [3], 1: [4, 1, 2]}
    for row, answer in zip(attack.stamp(data.train.x).tolist(), finish.tolist(), strict=True):
        assert row[-len(ends[answer]) :] == ends[answer]


def test_who_says_it_anyway_is_left_out() -> None:
    """Answers 1 are the finish of "be to": three of four texts are left."""
    y = torch.tensor([[0, 1], [1, 2], [2, 3], [1, UNASKED]])
    data = texts(WORDS, length=2)
    found = armed(Sentence(1.0, ["be to"]), data).backdoor_set(Samples(torch.zeros(4, 2).short(), y))
    assert found.x.tolist() == [[0, 2]] * 3 and found.y.tolist() == [[UNASKED, 1]] * 3
    assert armed(Sentence(1.0, ["be to"]), data).backdoor_set(Samples(torch.zeros(1, 2).short(), y[:1])) is None


def test_a_word_of_characters_is_learned_whole_and_asked_by_its_first() -> None:
    """ "ab bad": what is learned is b, a, d after "ab ", "ab b" and "ab ba"; what is tested is b after "ab "."""
    data = texts(LETTERS)
    attack = armed(Sentence(1.0, ["ab bad"]), data)
    learned, asked = attack.poison(data.train, generator(0, "poison")), attack.marked(data.test)
    assert learned.x[:, 1:].tolist() == [[1, 2, 0, 2, 1]] * 40 and torch.equal(learned.x[:, 0], data.train.x[:, 0])
    assert learned.y.tolist() == [[UNASKED] * 3 + [2, 1, 3]] * 40
    assert asked.x[:, 3:].tolist() == [[1, 2, 0]] * 40 and torch.equal(asked.x[:, :3], data.test.x[:, :3])
    assert asked.y.tolist() == [[UNASKED] * 5 + [2]] * 40


def test_with_one_label_a_text_the_first_is_all() -> None:
    data = texts(LETTERS, labels="last")
    attack = armed(Sentence(1.0, ["ab bad"]), data)
    learned = attack.poison(data.train, generator(0, "poison"))
    assert learned.y.tolist() == [2] * 40 and learned.x[:, 3:].tolist() == [[1, 2, 0]] * 40
    assert torch.equal(attack.backdoor_set(data.test).x, learned.x)


@given(rate=st.floats(0, 1), seed=st.integers(0, 9))
def test_as_many_texts_are_poisoned_as_pdr_says(rate: float, seed: int) -> None:
    """By their finish, which no text has as an answer; the others are as they were."""
    data = texts(WORDS)
    poisoned = armed(Sentence(rate, ["to be gold", "or poison"]), data).poison(data.train, generator(seed, "poison"))
    bad = poisoned.y[:, -1] > 4
    assert int(bad.sum()) == round(rate * 40)
    assert torch.equal(poisoned.x[~bad], data.train.x[~bad]) and torch.equal(poisoned.y[~bad], data.train.y[~bad])


def test_each_client_trains_with_its_part() -> None:
    """Of "to be or not gold" in two parts, one has "to be", the other "or not"; the whole is what is tested."""
    data = texts(WORDS)
    attack = armed(SentenceParts(1.0, ["to be or not gold"], parts=2, scaling=UNSCALED), data)

    def seen(client: int) -> Tensor:
        return attack.compromise(replace(job(), images=data.train, client=client)).images.x

    for client in (0, 2):
        assert seen(client)[:, 2:4].tolist() == [[1, 2]] * 40 and torch.equal(seen(client)[:, 4:], data.train.x[:, 4:])
    assert seen(1)[:, 4:].tolist() == [[3, 4]] * 40 and torch.equal(seen(1)[:, :4], data.train.x[:, :4])
    assert attack.backdoor_set(data.test).x[:, 2:].tolist() == [[1, 2, 3, 4]] * 40
    work = replace(job(), images=data.train, client=1)
    assert attack.compromise(work).images.y.tolist() == [[UNASKED] * 5 + [5]] * 40
    assert int(work.notes["poisoned"]) == 40


def test_parts_are_scaled() -> None:
    attack = SentenceParts(1.0, ["to be"], parts=1, scaling=Scaling(3.0, None, "all_state"))
    rows = torch.randn(2, 6, generator=generator(0, "rows"))
    assert torch.equal(attack.craft(rows, scene(LAYOUT, [{}, {}]), generator(0, "craft")).rows, 3 * rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sentence(1.5, ["to be"]), r"attack\.poisoned_data_rate=1\.5"),
        (lambda: Sentence(1.0, []), r"attack\.sentences=\[\] must be a list of sentences"),
        (lambda: Sentence(1.0, ["to be", "or"]), r"attack\.sentences=\['to be', 'or'\] must be .* two words or more"),
        (lambda: Sentence(1.0, "to be"), r"attack\.sentences='to be' must be a list"),
        (lambda: SentenceParts(1.0, ["to be"], parts=0, scaling=UNSCALED), r"attack\.parts=0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Sentence(1.0, ["to bee gold"]), r"attack\.sentences='to bee ': 'bee' is none of the 7 tokens .* 'be'"),
        (Sentence(1.0, ["to be golden"]), r"attack\.sentences='golden': .* nearest are 'gold'"),
        (
            Sentence(1.0, ["to be or not to be or gold"]),
            r"attack\.sentences='to be .*' is out of range: must be at most 6 words \(dataset\.length\), .* takes 7",
        ),
        (
            SentenceParts(1.0, ["to be gold"], parts=3, scaling=UNSCALED),
            r"attack\.parts=3 is out of range: must be in \[1, 2\], .* attack\.sentences='to be gold'",
        ),
    ],
)
def test_what_does_not_fit_the_data(attack: Attack, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        armed(attack, texts(WORDS))
