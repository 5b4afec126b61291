"""From texts, each with its holder, to a data set of tokens whose every next one is to be predicted.

A holder's text is cut at a token: what comes last is his part of the test set, as LEAF's splits by order have it. Each
part is cut into windows that do not overlap: x = t[i : i + T], y = t[i + 1 : i + T + 1]. A last window that is shorter
is dropped, so that everything is asked; a window spans neither two holders nor the cut.

The vocabulary is that of the training text: all its characters by code point, or its most frequent words, ties by
alphabet, after `<unk>`. A data set may state its alphabet. Characters that are in none are left out of all texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flame.data.facts import check_said
from flame.data.samples import Dataset, Holders, Samples
from flame.data.vocabulary import TASKS, UNKNOWN, Vocabulary, cut

SMALL = torch.iinfo(torch.int16).max + 1  # tokens that int16 can number
Tokens = Sequence[str]  # of a text: a list of words, or the text itself, whose items are its characters


def from_texts(
    name: str,
    texts: Mapping[str, str],
    task: str,
    length: int,
    tokens: int | None,
    min_characters: int,
    test_share: float,
    alphabet: str = "",
) -> Dataset:
    """The data set `name` of holders' texts; those under `min_characters` take no part.

    `alphabet` is for characters; "" is that of the training text.

    Raises:
        ValueError: a setting is out of range, or does not fit the texts.
    """
    check_task(task)
    if not 0 < test_share < 1:  # nan
        raise ValueError(f"dataset.test_share={test_share} is out of range: must be in (0, 1)")
    if min_characters < 1:
        raise ValueError(f"dataset.min_characters={min_characters} is out of range: must be a whole number >= 1")
    kept = {holder: cut(text, task) for holder, text in texts.items() if len(text) >= min_characters}
    if not kept:
        longest = max(map(len, texts.values()), default=0)
        raise ValueError(
            f"dataset.min_characters={min_characters} leaves nobody: the longest of {len(texts)} texts has {longest};"
            " lower it"
        )
    at = {holder: len(all_of) - round(test_share * len(all_of)) for holder, all_of in kept.items()}
    train = {holder: all_of[: at[holder]] for holder, all_of in kept.items()}
    test = [all_of[at[holder] :] for holder, all_of in kept.items()]
    known = vocabulary([alphabet] if alphabet and task == "character" else train.values(), task, tokens)
    return assembled(name, train, test, known, length)


def assembled(
    name: str, train: Mapping[str, Tokens], test: Iterable[Tokens], known: Vocabulary, length: int
) -> Dataset:
    """The data set `name`: windows of `length` tokens of each holder's training text, and of all test texts.

    Raises:
        ValueError: a training text or all test texts are shorter than a window.
    """
    if length < 1:
        raise ValueError(f"dataset.length={length} is out of range: must be a whole number >= 1")
    said = {holder: numbers(text, known) for holder, text in train.items()}
    if short := [holder for holder, text in said.items() if len(text) <= length]:
        raise ValueError(
            f"dataset.length={length} is more than the training text of {len(short)} of {len(train)} holders allows,"
            f" which must have {length + 1} {known.task}s at least ({', '.join(map(repr, short[:5]))}): lower it, or"
            " raise what a holder must have to take part (dataset.min_characters, dataset.min_tokens)"
        )
    parts = [_windows(text, length) for text in said.values()]
    held = [_windows(numbers(text, known), length) for text in test]
    if not sum(len(part) for part in held):
        raise ValueError(
            f"dataset.length={length}: no test text has {length + 1} {known.task}s, a window and what comes next: lower"
            " it, or raise dataset.test_share"
        )
    of = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    asked, tested = (_samples(torch.cat(each), len(known)) for each in (parts, held))
    return Dataset(name, asked, tested, (), (), len(known), Holders(of, tuple(train)), vocabulary=known)


def vocabulary(texts: Iterable[Tokens], task: str, tokens: int | None) -> Vocabulary:
    """Of these texts: all characters, which must be `tokens`; or the most frequent words, `tokens` with `<unk>`.

    Raises:
        ValueError: `tokens` is out of range; the sentence says what the texts have.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts.pop(UNKNOWN, None)
    found = len(counts) + (task == "word")
    check_said(f"the text to train on, for dataset.task={task},", {"tokens": tokens}, {"tokens": found})
    assert tokens is not None
    if task == "character":
        if tokens != found:
            raise ValueError(
                f"dataset.tokens={tokens} does not fit dataset.task=character, which has {found} here: set it to that"
            )
        return Vocabulary(tuple(sorted(counts)), task)
    if not 2 <= tokens <= found:
        raise ValueError(
            f"dataset.tokens={tokens} is out of range: must be in [2, {found}], as the training text has"
            f" {found - 1} different words beside {UNKNOWN}"
        )
    order = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary((UNKNOWN, *order[: tokens - 1]), task)


def numbers(text: Tokens, known: Vocabulary) -> Tensor:
    """[M] int64, as `Vocabulary.encode` has them of a text that is cut; characters all at once."""
    if not isinstance(text, str):
        unknown = known.number.get(UNKNOWN, -1)
        found = torch.tensor([known.number.get(token, unknown) for token in text], dtype=torch.int64)
        return found[found >= 0]
    codes, alphabet = _codes(text), _codes("".join(known.tokens))  # sorted, as the vocabulary is
    at = np.searchsorted(alphabet, codes).clip(max=len(alphabet) - 1)
    return torch.from_numpy(at[alphabet[at] == codes])


def check_task(task: str) -> None:
    """A ValueError unless it is one."""
    if task not in TASKS:
        raise ValueError(f"dataset.task={task!r} is unknown: must be one of {', '.join(TASKS)}")


def _codes(text: str) -> NDArray[np.uint32]:
    """[M], the code points."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _windows(of: Tensor, length: int) -> Tensor:
    """Windows [n, length + 1] of tokens [M], each with the token after it, which is the next one's first."""
    return of.unfold(0, length + 1, length) if len(of) > length else of.new_empty(0, length + 1)


def _samples(windows: Tensor, tokens: int) -> Samples:
    """Inputs in the smallest type that numbers the vocabulary, and labels; both contiguous."""
    small = torch.int16 if tokens <= SMALL else torch.int32
    return Samples(windows[:, :-1].to(small).contiguous(), windows[:, 1:].contiguous())
