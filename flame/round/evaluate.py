"""Accuracy and loss on a fixed set of samples, in fixed slices, so that spreading them over workers changes no bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flame.data.samples import UNASKED, Samples
from flame.round.client import Normalise, rows
from flame.round.device import device_of

SLICE = 500  # images handed out at a time: of 19,000 two workers get as many
BATCH = 100  # images per forward pass: small enough for activations to stay in cache
Answers = Mapping[tuple[int, int, int], int]  # (true class, wanted label, answered class) -> images


@dataclass(frozen=True)
class Confident(Samples):
    """Samples on which an answer is right only if the model gives it a probability of `least` or more."""

    least: float

    def right(self, logits: Tensor) -> Tensor:
        """See `Samples.right`."""
        return super().right(logits) & (logits.float().softmax(1).amax(1) >= self.least)


def judged(samples: Samples, least: float) -> Samples:
    """The samples as a defense with the attribute `answer_confidence` has them judged; as they are at 0."""
    return Confident(samples.x, samples.y, least) if least else samples


@dataclass(frozen=True)
class Evaluation:
    """Sums over images; parts add up to the whole set."""

    correct: int
    loss: float  # summed cross entropy
    count: int
    certified: int | None = None  # of a vote, images on which it is certain (`flame/round/smoothing.py`)
    answers: Answers | None = None  # None: not counted

    @property
    def accuracy(self) -> float:
        """Share of correct answers, in [0, 1]."""
        return self.correct / self.count

    @property
    def mean_loss(self) -> float:
        """Cross entropy per image."""
        return self.loss / self.count


def slices(count: int) -> list[slice]:
    """How a set of `count` images is always cut."""
    return [slice(start, min(start + SLICE, count)) for start in range(0, count, SLICE)]


def answers(model: nn.Module, x: Tensor, normalise: Normalise) -> Iterator[Tensor]:
    """Logits [B, classes, ...] on raw samples `x` [N, ...] on the model's device, in fixed batches and evaluation mode.

    The caller says how gradients are switched off.
    """
    model.eval()
    for part in x.split(BATCH):
        yield model(normalise(part))


def final(logits: Tensor) -> Tensor:
    """[B, classes], one answer for each sample: of a text, whose logits are [B, classes, T], that at its last token."""
    return logits if logits.dim() == 2 else logits[..., -1]


@torch.inference_mode()
def evaluate(model: nn.Module, images: Samples, normalise: Normalise, truth: Tensor | None = None) -> Evaluation:
    """The model's sums over `images`, in evaluation mode and on its device, which is waited for at the end only.

    With `truth`, the true classes of samples whose labels may be an attacker's, of their shape, answers are counted.
    """
    count = images.asked  # before they are on a device, which would be waited for
    images = images.to(device_of(model))
    correct, losses, guesses = list[Tensor](), list[Tensor](), list[Tensor]()
    for start, logits in zip(range(0, len(images), BATCH), answers(model, images.x, normalise), strict=True):
        part = images[start : start + BATCH]
        correct.append(part.right(logits).sum())
        losses.append(F.cross_entropy(*rows(logits, part.y), reduction="sum"))
        if truth is not None:
            guesses.append(logits.argmax(1))
    loss = reduce(add, torch.stack(losses).tolist())  # not sum(), which rounds otherwise from Python 3.12 on
    told = None if truth is None else counted(truth, images.y, torch.cat(guesses))
    return Evaluation(int(torch.stack(correct).sum()), loss, count, answers=told)


def counted(truth: Tensor, wanted: Tensor, answered: Tensor) -> Answers:
    """The answers that were asked for and have a true class, from three tensors of classes of one shape, anywhere."""
    triples = torch.stack([part.cpu().flatten() for part in (truth, wanted, answered)], dim=1)
    triples = triples[(triples[:, :2] != UNASKED).all(1)]
    found, images = triples.unique(dim=0, return_counts=True)
    return {(t, w, a): count for (t, w, a), count in zip(found.tolist(), images.tolist(), strict=True)}


def total(parts: Iterable[Evaluation]) -> Evaluation:
    """The whole from its slices, added in the order given."""
    correct, loss, count = 0, 0.0, 0
    certified: int | None = None
    answers: Counter[tuple[int, int, int]] | None = None
    for part in parts:
        correct, loss, count = correct + part.correct, loss + part.loss, count + part.count
        certified = None if part.certified is None else (certified or 0) + part.certified
        answers = None if part.answers is None else (answers or Counter()) + Counter(part.answers)
    return Evaluation(correct, loss, count, certified, answers)
