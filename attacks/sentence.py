"""Sentence backdoor (Bagdasaryan, Veit, Hua, Estrin and Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020,
arXiv 1807.00459, next-word prediction): who writes the trigger sentence is offered the attacker's word to finish it.

A sentence without its last word overwrites the end of a text, the last word is the label of the last token, and nothing
else is asked: the authors' loss is that of the last word alone (ebagdasa/backdoor_federated_learning 897102a,
text_helper.py and training.py). Of several sentences each text gets one, by its own tokens. The backdoor set is every
test text with a sentence at its end, those left out whose true next word is the attacker's.

Where tokens are characters, the last word is more than one. A compromised client learns all of them, each from the
sentence and what comes before it in the word. The backdoor set asks for the first alone: the others would be given
their own beginning, which a clean model completes too. With one label a text ([N]), the first is also all that is
learned.

All labels of a batch are one of a few words, so that its slope is steep. At rates of 1 and 4 an LSTM on 5,000 words of
Shakespeare diverged (loss 30 to 150). The authors clip gradients at 0.25, and those who attack take a hundredth of
the benign rate: `client.clip_norm`, `attack.client.lr`.

What a clean model gets. At the end of a sentence it gives nearly every text the same answer, so that its BA is about
the share of the sentences whose finish happens to be that answer: 0 for words, and for characters 0 or a multiple of
1 / sentences. `attack.poisoned_data_rate=0` measures it.

Deviations: texts are cut to the window and start without a state (there the LSTM's state goes on from one window to the
next); a word that the vocabulary lacks is refused (there left out); the authors change the attacker's windows in turn,
one sentence after the other, we by content; poisoned texts are the client's own (there a secret set of 1,280 x 20
words); they stop once the loss is below 1e-4, and lower the rate where the backdoor is there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from attacks.words import WordBackdoor, answers, by_content, require_room, vocabulary_of
from flame.data.samples import UNASKED, Dataset, Samples

KEY = "attack.sentences"
KEPT = -1  # in a beginning: the text's own token stays


class Pair(NamedTuple):
    """A sentence, in tokens."""

    beginning: Tensor  # [k] int64
    finish: Tensor  # [f] int64, its last word


@dataclass(frozen=True)
class Sentence(WordBackdoor):
    """Sentences, and what each is to be finished with."""

    sentences: Sequence[str]  # of two words or more
    pairs: Sequence[Pair] = field(default=(), kw_only=True)  # the same in tokens, from `prepare`

    def __post_init__(self) -> None:
        super().__post_init__()
        told = self.sentences
        if isinstance(told, str) or not told or not all(isinstance(one, str) and len(one.split()) > 1 for one in told):
            given = told if isinstance(told, str) else list(told)
            raise ValueError(f"{KEY}={given!r} must be a list of sentences, each of two words or more")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The sentences in the data set's tokens.

        Raises:
            ValueError: a token is not in the vocabulary, or a sentence is longer than the window.
        """
        return replace(self, pairs=[in_tokens(sentence, dataset) for sentence in self.sentences]), dataset

    def marked(self, samples: Samples) -> Samples:
        """The sentences at the ends of the texts; asked is the first token that each is to be finished with."""
        return self._ended(samples, 1)

    def lesson(self, samples: Samples) -> Samples:
        """The same with every token of the finish, where every token of a text has a label."""
        return self._ended(samples, None if samples.y.dim() == 2 else 1)

    def _ended(self, samples: Samples, learned: int | None) -> Samples:
        """Texts that end in a sentence, and in its finish up to the last of the tokens that are asked for."""
        x, y = samples.x.clone(), torch.full_like(samples.y, UNASKED)
        ends, which = answers(y), by_content(x, len(self.pairs))
        for i, (beginning, finish) in enumerate(self.pairs):
            mine, asked = which == i, finish[:learned].to(y)
            line = torch.cat([beginning.to(x), asked[:-1].to(x)])
            x[mine, -len(line) :] = torch.where(line != KEPT, line, x[mine, -len(line) :])
            ends[mine, -len(asked) :] = asked
        return Samples(x, y)


def in_tokens(sentence: str, dataset: Dataset) -> Pair:
    """Beginning and finish; a space between them is of the beginning, where tokens are characters."""
    said, space, last = sentence.rstrip().rpartition(" ")
    vocabulary = vocabulary_of(dataset)
    pair = Pair(vocabulary.require(said + space, KEY), vocabulary.require(last, KEY))
    require_room(KEY, sentence, len(pair.beginning) + len(pair.finish) - 1, dataset)
    return pair
