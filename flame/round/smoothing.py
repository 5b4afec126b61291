"""A global model that answers by the vote of its noisy copies (Xie et al., ICML 2021, parameter smoothing).

A defense asks for it with an attribute `randomized_smoothing`; the engines then evaluate the vote in the model's
place, slice by slice as ever, and all else stays as it is. `eval/ma` and `eval/ba` are the vote's accuracies,
`eval/*_loss` the cross entropy of the copies' mean probability, `eval/*_certified` the share of images, rightly
answered or not, on which the vote is certain.

Deviations and open points: an uncertain vote counts like any other, where the paper's certification abstains. Equal
votes go to the lower class. Trainable parameters alone are noised; the authors' code noises the whole state_dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flame.data.samples import UNASKED, Samples
from flame.round.client import Normalise, rows
from flame.round.device import device_of
from flame.round.evaluate import BATCH, Evaluation, answers, counted
from flame.round.seeding import generator
from flame.round.types import ServerState

NOISELESS = "defense/crfl/noiseless"  # in a state's memory: [d], the trainable parameters before the round's noise


@dataclass(frozen=True)
class Smoothing:
    """The smoothed classifier: of copies w + N(0, sigma_T^2), the class that most of them answer."""

    copies: int  # M, >= 1; evaluation takes so many times as long
    noise_std: float  # sigma_T, >= 0, per coordinate
    alpha: float  # of each of a certificate's two bounds, the chance that it is wrong, (0, 1)

    def __post_init__(self) -> None:
        where = "defense.randomized_smoothing"
        if self.copies < 1:
            raise ValueError(f"{where}.copies={self.copies} is out of range: must be a whole number >= 1")
        if not 0 <= self.noise_std < math.inf:
            raise ValueError(f"{where}.noise_std={self.noise_std} is out of range: must be >= 0 (0: equal copies)")
        if not 0 < self.alpha < 1:
            raise ValueError(f"{where}.alpha={self.alpha} is out of range: must be in (0, 1) (the authors: 0.001)")

    def centre(self, state: ServerState) -> ServerState:
        """The model that the copies are made of: the global one without the noise that it was sent out with."""
        model = state.memory.get(NOISELESS)
        return state if model is None else replace(state, row=torch.cat([model, state.row[len(model) :]]))

    def noisy(self, row: Tensor, trainable: int, seed: int, round: int) -> Iterator[Tensor]:
        """Copies of `row` [d + b], one after the other, with noise on its first d = `trainable` numbers."""
        for number in range(self.copies):
            noise = torch.randn(trainable, generator=generator(seed, "smoothing", round, number))
            yield torch.cat([row[:trainable] + self.noise_std * noise, row[trainable:]])


@torch.inference_mode()
def vote(
    models: Iterable[nn.Module],
    images: Samples,
    normalise: Normalise,
    alpha: float,
    truth: Tensor | None = None,
) -> Evaluation:
    """Sums over `images` for the vote of `models`, which may be one module with other values in it each time.

    With `truth` [N], answers are counted as in `evaluate`.
    """
    answered, losses = list[Tensor](), list[Tensor]()
    for model in models:
        images = images.to(device_of(model))
        parts = zip(answers(model, images.x, normalise), images.y.split(BATCH), strict=True)
        told = [(x.argmax(1), _losses(x, y), x.shape[1]) for x, y in parts]
        said, lost, (classes, *_) = zip(*told, strict=True)
        answered.append(torch.cat(said))
        losses.append(torch.cat(lost))
    winners, first, second = leading(torch.stack(answered))
    logarithms = torch.logsumexp(-torch.stack(losses), dim=0) - math.log(len(losses))  # of mean probabilities
    sure = certified(first - second, len(losses), alpha)[images.y != UNASKED].sum()
    counts = None if truth is None else counted(truth, images.y, winners)
    pairs = zip(range(0, len(images), BATCH), winners.split(BATCH), strict=True)
    correct = sum(int(images[start : start + BATCH].right(ballot(part, classes)).sum()) for start, part in pairs)
    return Evaluation(correct, -float(logarithms.sum()), images.asked, int(sure), counts)


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """float64 of the shape of y, the cross entropy of each answer; 0 where nothing is asked."""
    return F.cross_entropy(*rows(logits.double(), y), reduction="none").view_as(y)


def leading(answered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the answers of copies [copies, ...]: the class that leads [...], its votes, and those of the second."""
    ordered = answered.sort(dim=0).values
    place = torch.arange(len(ordered), device=ordered.device).view(-1, *[1] * (ordered.dim() - 1))
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    votes = place - torch.where(new, place, 0).cummax(dim=0).values + 1  # of the same class, up to here
    winner = ordered.gather(0, votes.argmax(dim=0, keepdim=True))  # the first: of equals the lower class
    return winner[0], votes.amax(dim=0), votes.masked_fill(ordered == winner, 0).amax(dim=0)


def ballot(winners: Tensor, classes: int) -> Tensor:
    """[B, classes, ...] uint8, logits that answer `winners` [B, ...]."""
    shape = (len(winners), classes, *winners.shape[1:])
    return torch.zeros(shape, dtype=torch.uint8, device=winners.device).scatter_(1, winners[:, None], 1)


def certified(lead: Tensor, copies: int, alpha: float) -> Tensor:
    """Bool, of the shape of `lead`, the winner's votes less the second's: whether more copies would answer the same.

    The paper's certification at radius 0: by Hoeffding's inequality the leader's true share is above
    p_A - sqrt(log(1 / alpha) / 2 M), and that of the second below p_B plus as much, each but for a chance of alpha.
    """
    return lead > math.sqrt(2 * copies * math.log(1 / alpha))
