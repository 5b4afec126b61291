"""DBA (Xie, Huang, Chen and Li, ICLR 2020) on words: a trigger sentence in parts. Each compromised client trains with
its part of a sentence's beginning, the other words being the text's own; the whole sentence is what is tested.

Parts are runs of nearly equal length, and a client's is its number modulo the number of parts, as in `attacks/dba.py`.
Every part stands where it does in the whole, and every client learns the same finish. AI-secure/DBA has images and
tables of numbers alone: words are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Crafted, Scene, require
from attacks.scaling import Scaling
from attacks.sentence import KEPT, KEY, Pair, Sentence
from flame.data.samples import Dataset
from flame.round.client import LocalJob


@dataclass(frozen=True)
class SentenceParts(Sentence):
    """Sentences of which each compromised client has a part."""

    parts: int  # >= 1
    scaling: Scaling

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.parts >= 1, "parts", self.parts, "a whole number >= 1")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """As `Sentence`; a ValueError, too, if a beginning has fewer tokens than there are parts."""
        armed, rest = super().prepare(dataset, stream)
        assert isinstance(armed, SentenceParts)
        for sentence, pair in zip(self.sentences, armed.pairs, strict=True):
            if self.parts > len(pair.beginning):
                raise ValueError(
                    f"attack.parts={self.parts} is out of range: must be in [1, {len(pair.beginning)}], the tokens"
                    f" before the last word of {KEY}={sentence!r}"
                )
        return armed, rest

    def compromise(self, job: LocalJob) -> LocalJob:
        """Train on this client's part of each sentence."""
        return Sentence.compromise(replace(self, pairs=[self.part(pair, job.client) for pair in self.pairs]), job)

    def part(self, pair: Pair, client: int) -> Pair:
        """What a client has of a sentence."""
        mine = torch.arange(len(pair.beginning)).tensor_split(self.parts)[client % self.parts]
        beginning = torch.full_like(pair.beginning, KEPT)
        beginning[mine] = pair.beginning[mine]
        return pair._replace(beginning=beginning)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Scaled; each attacker does so for itself."""
        return Crafted(self.scaling.apply(rows, scene), {})
