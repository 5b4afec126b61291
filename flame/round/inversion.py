"""The search for a trigger of a model (Wang et al., "Neural Cleanse", IEEE S&P 2019), as FLIP's authors have it.

A trigger is a mask and a pattern. Both descend the cross entropy of stamped images towards a class, plus a cost times
the mask's size; the cost rises after steps of success and falls after steps of failure. The smallest mask that turns
enough of the images is kept, and the search goes on from around it. After `Trigger` and `TriggerCombo` of
invert_MNIST.py in KaiyuanZh/FLIP at 99a2fda3: one trigger descends the mean loss of its images, two that are sought
together the sum of theirs. If both have just become smaller, the search goes on from around the second alone, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flame.round.optimizers import BareAdam

EDGE = 2 - 1e-7  # keeps tanh invertible at 0 and 1; this and the next three: constants of the authors' code
JITTER = 0.01  # around a new best trigger, from where the search goes on
PATIENCE, DEARER, CHEAPER = 10, 1.5, 1.5**1.5  # steps of success or failure after which a mask's cost changes
BETAS = (0.5, 0.9)  # of Adam


@dataclass(frozen=True)
class Trigger:
    """k triggers: an image x becomes (1 - mask) x + mask pattern."""

    mask: Tensor  # [k, 1, H, W] in [0, 1]
    pattern: Tensor  # [k, C, H, W] in [0, 1]

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, k: int) -> Trigger:
        return Trigger(self.mask[k : k + 1], self.pattern[k : k + 1])

    def stamp(self, x: Tensor, which: Tensor | int) -> Tensor:
        """Images [B, C, H, W] in [0, 1] with triggers `which` [B] on them, or with that one."""
        return (1 - self.mask[which]) * x + self.mask[which] * self.pattern[which]

    @property
    def sizes(self) -> Tensor:
        """[k], in pixels."""
        return self.mask.abs().sum(dim=(1, 2, 3))  # rounding may leave a mask just below 0

    def and_then(self, other: Trigger) -> Trigger:
        """These and the others behind them, copied."""
        return Trigger(torch.cat([self.mask, other.mask]), torch.cat([self.pattern, other.pattern]))


@dataclass(frozen=True)
class Inversion:
    """One search."""

    lr: float  # of Adam, > 0
    steps: int  # >= 1
    cost: float  # of a mask's pixel, > 0
    success: float  # share of the images that a trigger must turn, [0, 1]
    start: Trigger | None  # where from; None: drawn

    def __call__(
        self, answer: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, which: Tensor, stream: Generator
    ) -> Trigger:
        """One trigger for each number in `which` [N], turning images x [N, C, H, W] in [0, 1] into classes y [N].

        Mask and pattern are 0 where none was found. `answer` gives logits [N, classes] of such images.
        """
        (c, h, w), k = x.shape[1:], int(which.max()) + 1
        first = self.start or Trigger(drawn(stream, x, k, 1, h, w), drawn(stream, x, k, c, h, w))
        free = [raw(part).requires_grad_() for part in (first.mask, first.pattern)]
        optimizer = BareAdam(free, lr=self.lr, betas=BETAS)
        best = Trigger(x.new_zeros(k, 1, h, w), x.new_zeros(k, c, h, w))
        costs, least, streaks = [self.cost] * k, [float("inf")] * k, [0] * k
        each = F.one_hot(which, k).to(x.dtype)  # [N, k]
        for _ in range(self.steps):
            now = Trigger(*(squashed(part) for part in free))
            logits, sizes = answer(now.stamp(x, which)), now.sizes
            losses = F.cross_entropy(logits, y, reduction="none") @ each  # [k]
            loss = (losses / (len(y) if k == 1 else 1) + sizes * sizes.new_tensor(costs)).sum()
            for part, slope in zip(free, torch.autograd.grad(loss, free), strict=True):
                part.grad = slope
            optimizer.step()
            turned = (logits.argmax(1) == y).to(x.dtype) @ each / each.sum(0)
            for i, (hit, size) in enumerate(zip((turned >= self.success).tolist(), sizes.tolist(), strict=True)):
                if hit and size < least[i]:
                    least[i] = size
                    restart(free, now, best, i, stream)
                streaks[i] = max(streaks[i], 0) + 1 if hit else min(streaks[i], 0) - 1
                if abs(streaks[i]) >= PATIENCE:
                    costs[i], streaks[i] = costs[i] * DEARER if hit else costs[i] / CHEAPER, 0
        return best


@torch.no_grad()
def restart(free: list[Tensor], now: Trigger, best: Trigger, i: int, stream: Generator) -> None:
    """Keep trigger i of `now` in `best`, and have the search go on from `now`, for trigger i from around it."""
    for part, value, kept in ((free[0], now.mask, best.mask), (free[1], now.pattern, best.pattern)):
        kept[i] = value[i]
        around = value.clone()
        around[i] += JITTER * (2 * drawn(stream, value, *value.shape[1:]) - 1)
        part.copy_(raw(around))


def drawn(stream: Generator, like: Tensor, *shape: int) -> Tensor:
    """Uniform in [0, 1), drawn on the CPU."""
    return torch.rand(shape, generator=stream, dtype=like.dtype).to(like.device)


def raw(value: Tensor) -> Tensor:
    """What `squashed` makes the value [...] of, once that is clamped to [0, 1]."""
    return ((value.clamp(0, 1) - 0.5) * EDGE).atanh()


def squashed(free: Tensor) -> Tensor:
    """[...] in [0, 1]."""
    return free.tanh() / EDGE + 0.5
