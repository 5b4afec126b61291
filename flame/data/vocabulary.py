"""What tokens stand for: characters, words, or the symbols of a device's traffic."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

UNKNOWN = "<unk>"  # of the vocabularies that have it, the token for all that is in none
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]")  # a word with its apostrophes and hyphens, or a mark
TASKS = ("character", "word")  # how text may be cut
SYMBOL = "symbol"  # what traffic is cut into: what stands between blanks


@dataclass(frozen=True)
class Vocabulary:
    """All tokens that a data set has; a token's number is its place, and its class where it is to be predicted."""

    tokens: tuple[str, ...]  # distinct
    task: str  # how text is cut: character | word | symbol

    def __post_init__(self) -> None:
        if self.task not in (*TASKS, SYMBOL):
            raise ValueError(f"dataset.task={self.task!r} is unknown: must be one of {', '.join(TASKS)}")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def number(self) -> dict[str, int]:
        """Token -> its number."""
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, text: str) -> Tensor:
        """[M] int64, the text's tokens; what is in no vocabulary is `UNKNOWN`, and left out where there is none."""
        unknown = self.number.get(UNKNOWN, -1)
        found = (self.number.get(token, unknown) for token in cut(text, self.task))
        return torch.tensor([number for number in found if number >= 0], dtype=torch.int64)

    def decode(self, numbers: Tensor) -> str:
        """Text to look at, of token numbers [M]; what is below 0 (`UNASKED`) stands for no token and is left out."""
        return ("" if self.task == "character" else " ").join(self.tokens[i] for i in numbers.tolist() if i >= 0)

    def require(self, text: str, key: str) -> Tensor:
        """As `encode`.

        Raises:
            ValueError: there is no token in it, or one that the vocabulary lacks; the nearest are named.
        """
        tokens = cut(text, self.task)
        if not tokens:
            raise ValueError(f"{key}={text!r} has no {self.task}: must be text")
        for token in tokens:
            if token not in self.number:
                near = difflib.get_close_matches(token, self.tokens, n=3)
                advice = f"the nearest are {', '.join(map(repr, near))}" if near else "nothing is near it"
                raise ValueError(
                    f"{key}={text!r}: {token!r} is none of the {len(self)} tokens of the data: {advice}; take one of"
                    " them, or a larger vocabulary"
                )
        return self.encode(text)


def cut(text: str, task: str) -> Sequence[str]:
    """A text's tokens: its characters, its words and marks in lower case, or what stands between its blanks."""
    if task == SYMBOL:
        return text.split()
    return text if task == "character" else WORD.findall(text.lower())
