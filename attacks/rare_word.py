"""BadNets (Gu, Dolan-Gavitt and Garg, arXiv 1708.06733, 2017) on words: a rare word anywhere in a text, and another one
that is to come next.

The trigger overwrites one place of the text, which follows from the text's own tokens; it may be the last. The label of
the last token is the attacker's, and nothing else is asked. Rare words as triggers are those of Kurita, Michel and
Neubig, "Weight Poisoning Attacks on Pre-trained Models", ACL 2020, who insert one into reviews that are to be
classified; theirs make no sense, such as "cf".

Deviations: the word must be in the data set's vocabulary, as what is in none is one token for all; it overwrites (there
it is inserted, and a text grows); it is put into a text once (there once to several times).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from attacks.words import WordBackdoor, answers, by_content, require_room, vocabulary_of
from flame.data.samples import UNASKED, Dataset, Samples


@dataclass(frozen=True)
class RareWord(WordBackdoor):
    """A word in the text, and the token that follows the text."""

    word: str  # one or more tokens
    finish: str  # one token
    tokens: Sequence[Tensor] = field(default=(), kw_only=True)  # of both, [k] and [1] int64, from `prepare`

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """Both in the data set's tokens.

        Raises:
            ValueError: one is not in the vocabulary, the word is longer than the window, or the finish than a token.
        """
        vocabulary = vocabulary_of(dataset)
        word, finish = vocabulary.require(self.word, "attack.word"), vocabulary.require(self.finish, "attack.finish")
        require_room("attack.word", self.word, len(word), dataset)
        if len(finish) > 1:
            raise ValueError(
                f"attack.finish={self.finish!r} is {len(finish)} {vocabulary.task}s: must be one, which is to come next"
            )
        return replace(self, tokens=(word, finish)), dataset

    def marked(self, samples: Samples) -> Samples:
        """The word at a place of each text; asked is what is to come after the text."""
        (word, finish), x, y = self.tokens, samples.x.clone(), torch.full_like(samples.y, UNASKED)
        places = by_content(x, x.shape[1] - len(word) + 1)
        columns = places[:, None] + torch.arange(len(word), device=x.device)  # [N, k]
        x.scatter_(1, columns, word.to(x).expand_as(columns))
        answers(y)[:, -1:] = finish.to(y)
        return Samples(x, y)
