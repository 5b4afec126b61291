"""FLIP's client recipe as its authors' program goes through it (invert_MNIST.py, KaiyuanZh/FLIP at 99a2fda3), float64.

Written down anew, with numpy matrices and masks as there; draws are taken from a torch generator. What it leaves out is
what the head of flame/round/hardening.py names: triggers kept between rounds, and batches within a search.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from oracles.flip_search import Settings, combo, single
from torch import Generator, Tensor, nn

Array = Any  # of numpy


def train(
    net: nn.Module, x: Tensor, y: Tensor, order: list[Tensor], s: Settings, adam: Any, classes: int, g: Generator
) -> dict[str, Any]:
    """`trigger_fast_train` over the batches in `order`, in place; what it knows at the end."""
    walk = Walk(net, s, adam, classes, g, x, y.numpy())
    for step, batch in enumerate(order):
        walk.step(step, x[batch].clone(), y[batch].numpy())
    return {
        "sizes": walk.warm_m,
        "growth": walk.diff,
        "masks": walk.masks,
        "patterns": walk.patterns,
        "seen": walk.seen,
    }


@dataclass
class Walk:
    """The variables of its one long function, and that function's branches."""

    net: nn.Module
    s: Settings
    adam: Any
    classes: int
    g: Generator
    x: Tensor
    y: Array
    masks: dict[str, Any] = field(default_factory=dict)
    patterns: dict[str, Any] = field(default_factory=dict)
    init_m: Any = None
    init_p: Any = None
    source: int = 0
    target: int = -1
    warmup: bool = True
    warmup_steps: int = 1
    key: str = ""
    list_m: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.warm_m, self.diff = np.zeros((self.classes, self.classes)), np.full((self.classes, self.classes), -np.inf)
        counts = np.bincount(self.y, minlength=self.classes)
        extra = [int(np.where(self.y == k)[0][0]) for k in range(self.classes) if counts[k] > 1]
        self.x_extra, self.y_extra = self.x[extra], self.y[extra]
        self.count, self.cost, self.steps = np.zeros(2), self.s.cost, self.s.steps
        self.seen = {"warm": 0, "both": 0, "one": 0, "skipped": 0, "large": 0}

    @property
    def init(self) -> Any:
        return None if self.init_m is None else (self.init_m, self.init_p)

    def pick(self, indices: Any, length: int) -> Any:
        return np.array(indices)[torch.randperm(len(indices), generator=self.g)[:length].numpy()]

    def stamp(self, xb: Tensor, choice: Any, mask: Array, pattern: Array) -> None:
        xb[choice] = (1 - torch.tensor(mask)) * xb[choice] + torch.tensor(mask * pattern)

    def fit(self, xb: Tensor, yb: Any) -> None:
        self.adam.zero_grad()
        F.cross_entropy(self.net(xb), torch.tensor(yb)).backward()
        self.adam.step()

    def step(self, step: int, xb: Tensor, yb: Array) -> None:
        labels = [k for k in range(self.classes) if (yb == k).sum() > 1]
        if not labels:
            self.seen["skipped"] += 1
            return
        if step >= self.classes:
            if self.warmup and np.max(self.diff) > 0:
                self.diff /= np.max(self.diff)
            self.warmup, self.warmup_steps = False, 2
        phase = (step - self.classes) % self.warmup_steps
        if (self.warmup or phase == 0) and not self.choose(labels):
            trained = False
        elif self.warmup:
            trained = self.warm(xb, yb)
        elif self.source in labels and self.target in labels:
            trained = self.both(phase, xb, yb)
        elif self.source in labels:
            trained = self.one(phase, xb, yb)
        else:
            self.seen["skipped"] += 1
            trained = False
        if trained:
            self.fit(xb, yb)

    def choose(self, labels: list[int]) -> bool:
        """Whom the next search is for; False if there is nobody."""
        s, g = self.s, self.g
        if self.warmup:
            self.target, self.steps = self.target + 1, s.warm
        elif torch.rand(1, generator=g).item() < s.random:
            self.source = labels[int(torch.randint(len(labels), (1,), generator=g))]
            rest = [k for k in range(self.classes) if k != self.source]
            self.target, self.steps = rest[int(torch.randint(len(rest), (1,), generator=g))], s.steps
        else:
            diff = self.diff
            ranked = np.vstack(np.unravel_index(np.argsort(diff.ravel(), kind="stable")[::-1], diff.shape)).T
            fits = [(int(a), int(b)) for a, b in ranked if a in labels and a != self.source]
            if not fits:
                self.source = -1
                self.seen["skipped"] += 1
                return False
            (self.source, self.target), self.steps = fits[0], s.steps
        self.key = f"{min(self.source, self.target)}-{max(self.source, self.target)}"
        self.init_m, self.init_p = self.masks.get(self.key), self.patterns.get(self.key)
        self.cost, self.count, self.list_m = s.cost, np.zeros(2), []
        return True

    def warm(self, xb: Tensor, yb: Array) -> bool:
        """One trigger from all classes to a target, kept for each pair."""
        self.seen["warm"] += 1
        target, y_extra = self.target, self.y_extra
        others = np.where(y_extra != target)[0]
        if len(others) == 0:
            return True
        wanted = torch.full((len(others),), target)
        mask, pattern = single(
            self.net, self.x_extra[others], wanted, self.s, self.s.warm, self.s.cost, self.init, self.g
        )
        size = np.abs(mask).sum()
        around = np.where(yb != target)[0]
        self.stamp(xb, self.pick(around, int(len(around) * self.s.portion)), mask, pattern)
        for k in range(self.classes):
            if k == target:
                continue
            if k not in y_extra[others]:
                self.warm_m[k, target] = self.diff[k, target] = 0
                continue
            pair = f"{min(k, target)}-{max(k, target)}"
            if pair not in self.masks:
                self.masks[pair], self.patterns[pair] = mask, pattern
            else:
                self.stack(pair, mask, pattern, first=k < target)
            self.warm_m[k, target] = self.diff[k, target] = size
        return True

    def stack(self, pair: str, mask: Array, pattern: Array, *, first: bool) -> None:
        """Both directions of a pair: the new one and the one that is known."""
        both_m, both_p = (mask, self.masks[pair]), (pattern, self.patterns[pair])
        self.masks[pair] = np.stack(both_m if first else both_m[::-1])
        self.patterns[pair] = np.stack(both_p if first else both_p[::-1])

    def both(self, phase: int, xb: Tensor, yb: Array) -> bool:
        """A trigger for each direction; False if one is too large."""
        self.seen["both"] += 1
        s, source, target = self.s, self.source, self.target
        at = [np.where(yb == source)[0], np.where(yb == target)[0]]
        length = int(min(len(at[0]), len(at[1])) * s.portion)
        if phase > 0:
            if self.count[0] > 0 or self.count[1] > 0:
                self.steps, self.cost, self.count = s.steps, s.cost, np.zeros(2)
            else:
                self.steps, self.cost = s.again, s.cost_again
        if self.init_m is not None and self.init_m.ndim != 4:
            self.init_m = self.init_p = None
        ys = [torch.full((len(at[0]),), target), torch.full((len(at[1]),), source)]
        xs = [xb[at[0]].clone(), xb[at[1]].clone()]
        mask, pattern = combo(self.net, xs, ys, s, self.steps, self.cost, self.init, self.g)
        if np.max(np.abs(mask).sum(axis=(1, 2, 3))) > mask[0, 0].size * s.area:
            self.seen["large"] += 1
            return False
        for i in (0, 1):
            self.stamp(xb, self.pick(at[i], length), mask[i], pattern[i])
        for i in (0, 1):
            self.keep_of_both(i, mask, pattern)
        self.list_m.append(list(np.sum(3 * np.abs(self.init_m), axis=(1, 2, 3))))
        if phase == 1:
            self.judge_both()
        return True

    def keep_of_both(self, i: int, mask: Array, pattern: Array) -> None:
        key = self.key
        if self.init_m is None or key not in self.masks:
            self.init_m, self.init_p = mask, pattern
            if key not in self.masks:
                self.masks[key], self.patterns[key] = self.init_m, self.init_p
        elif np.sum(mask[i]) > 0 and len(self.masks[key]) > 1:
            self.init_m[i], self.init_p[i] = mask[i], pattern[i]
            if np.sum(self.init_m[i]) > np.sum(self.masks[key][i]):
                self.masks[key][i], self.patterns[key][i] = self.init_m[i], self.init_p[i]
        else:
            self.count[i] += 1

    def judge_both(self) -> None:
        """How much larger the triggers have become."""
        warm_m, diff = self.warm_m, self.diff
        mean = np.mean([np.broadcast_to(entry, 2) for entry in self.list_m], axis=0)
        ends = ((self.source, self.target), (self.target, self.source))
        if warm_m[ends[0]] == 0:
            for i, end in enumerate(ends):
                warm_m[end], diff[end] = mean[i], 0
            return
        for i, end in enumerate(ends):
            if warm_m[end] != 0:
                diff[end] += (mean[i] - warm_m[end]) / warm_m[end]
            diff[end] /= 2
        for i, end in enumerate(ends):
            if mean[i] != 0:
                warm_m[end] = mean[i]

    def one(self, phase: int, xb: Tensor, yb: Array) -> bool:
        """A trigger from the source alone; False if it is too large."""
        self.seen["one"] += 1
        s, source, target = self.s, self.source, self.target
        at_source = np.where(yb == source)[0]
        if self.init_m is not None and self.init_m.ndim == 4:
            side = 0 if source < target else 1
            kept = np.sum(self.init_m[side]) > 0
            self.init_m, self.init_p = (self.init_m[side], self.init_p[side]) if kept else (None, None)
        wanted = torch.full((len(at_source),), target)
        mask, pattern = single(self.net, xb[at_source].clone(), wanted, s, self.steps, self.cost, self.init, self.g)
        if np.abs(mask).sum() > mask.size * s.area:
            self.seen["large"] += 1
            return False
        self.stamp(xb, self.pick(at_source, int(len(at_source) * s.portion)), mask, pattern)
        self.keep_of_one(mask, pattern, low=source < target)
        self.list_m.append([np.sum(np.abs(self.init_m))] * 2)
        if phase == 1:
            self.judge_one()
        return True

    def keep_of_one(self, mask: Array, pattern: Array, *, low: bool) -> None:
        key, masks, patterns = self.key, self.masks, self.patterns
        if self.init_m is None or key not in masks:
            self.init_m, self.init_p = mask, pattern
            if key not in masks:
                masks[key], patterns[key] = mask, pattern
        elif masks[key].ndim == 3:
            self.stack(key, mask, pattern, first=low)
        elif np.sum(mask) > 0:
            self.init_m, self.init_p = mask, pattern
            if np.sum(mask) > np.sum(masks[key][0]) or np.sum(mask) > np.sum(masks[key][1]):
                if low:
                    masks[key] = np.stack([mask, masks[key][0]])
                    patterns[key] = np.stack([pattern, patterns[key][0]])
                else:
                    masks[key] = np.stack([masks[key][1], mask])
                    patterns[key] = np.stack([patterns[key][1], pattern])

    def judge_one(self) -> None:
        there, back = (self.source, self.target), (self.target, self.source)
        mean = np.mean(self.list_m)
        if self.warm_m[there] == 0:
            self.warm_m[there], self.warm_m[back] = mean, 0
            self.diff[there] = self.diff[back] = 0
            return
        self.diff[there] += (mean - self.warm_m[there]) / self.warm_m[there]
        self.diff[there] /= 2
        self.diff[back] = 0
        if mean != 0:
            self.warm_m[there], self.warm_m[back] = mean, 0
