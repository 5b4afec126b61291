"""FLIP's client recipe as its authors' program goes through it (invert_MNIST.py, KaiyuanZh/FLIP at 99a2fda3), float64.

Written down anew, with numpy matrices and masks as there; draws are taken from a torch generator. What it leaves out is
what the head of flame/round/hardening.py names: triggers kept between rounds, and batches within a search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

EPSILON, PATIENCE = 1e-7, 10
Show = Callable[[Tensor], Tensor]


@dataclass
class Settings:
    portion: float
    rate: float
    warm: int
    steps: int
    again: int
    cost: float
    cost_again: float
    threshold: float
    area: float
    random: float


def inward(value: Tensor) -> Tensor:
    return torch.arctanh((torch.clip(value, 0.0, 1.0) - 0.5) * (2 - EPSILON))


def outward(value: Tensor) -> Tensor:
    return torch.tanh(value) / (2 - EPSILON) + 0.5


def single(net: nn.Module, x: Tensor, y: Tensor, s: Settings, steps: int, cost: float, start: Any, g: Generator) -> Any:
    """`Trigger.generate`: mask [1, H, W] and pattern [C, H, W] as arrays."""
    net.eval()
    c, h, w = x.shape[1:]
    if start is None:
        mask0 = torch.rand(h, w, generator=g, dtype=torch.float64)
        pattern0 = torch.rand(c, h, w, generator=g, dtype=torch.float64)
    else:
        mask0, pattern0 = (torch.tensor(np.array(part)) for part in start)
    m, p = inward(mask0).requires_grad_(), inward(pattern0).requires_grad_()
    adam = torch.optim.Adam([m, p], lr=s.rate, betas=(0.5, 0.9))
    best, reg_best = (torch.zeros(1, h, w).double(), torch.zeros(c, h, w).double()), float("inf")
    up = down = 0
    for _ in range(steps):
        mask, pattern = outward(m).expand(1, h, w), outward(p)
        out = net((1 - mask) * x + mask * pattern)
        hit = (out.argmax(1) == y).double().mean().item()
        reg = mask.abs().sum()
        adam.zero_grad()
        (F.cross_entropy(out, y) + cost * reg).backward()
        adam.step()
        if hit >= s.threshold and reg.item() < reg_best:
            best, reg_best = (mask.detach().clone(), pattern.detach().clone()), reg.item()
            noisy = [part + 0.01 * (2 * torch.rand(part.shape, generator=g, dtype=torch.float64) - 1) for part in best]
            with torch.no_grad():
                m.copy_(inward(noisy[0]).view(m.shape))
                p.copy_(inward(noisy[1]))
        up, down = (up + 1, 0) if hit >= s.threshold else (0, down + 1)
        if up >= PATIENCE:
            up, cost = 0, cost * 1.5
        elif down >= PATIENCE:
            down, cost = 0, cost / 1.5**1.5
    net.train()
    return tuple(part.numpy() for part in best)


def combo(net: nn.Module, xs: Any, ys: Any, s: Settings, steps: int, cost0: float, start: Any, g: Generator) -> Any:
    """`TriggerCombo.generate`: masks [2, 1, H, W] and patterns [2, C, H, W] as arrays."""
    net.eval()
    c, h, w = xs[0].shape[1:]
    if start is None:
        mask0 = torch.rand(2, 1, h, w, generator=g, dtype=torch.float64)
        pattern0 = torch.rand(2, c, h, w, generator=g, dtype=torch.float64)
    else:
        mask0, pattern0 = (torch.tensor(np.array(part)) for part in start)
    m, p = inward(mask0).requires_grad_(), inward(pattern0).requires_grad_()
    adam = torch.optim.Adam([m, p], lr=s.rate, betas=(0.5, 0.9))
    best_m, best_p = torch.zeros(2, 1, h, w).double(), torch.zeros(2, c, h, w).double()
    reg_best, cost, up, down = [float("inf")] * 2, [cost0] * 2, [0, 0], [0, 0]
    for _ in range(steps):
        mask, pattern = outward(m), outward(p)
        outs = [net((1 - mask[i]) * xs[i] + mask[i] * pattern[i]) for i in (0, 1)]
        regs = mask.abs().sum(dim=(1, 2, 3))
        total = sum(F.cross_entropy(outs[i], ys[i], reduction="sum") + regs[i] * cost[i] for i in (0, 1))
        adam.zero_grad()
        total.backward()  # type: ignore[union-attr]
        adam.step()
        now_m, now_p = mask.detach(), pattern.detach()
        for i in (0, 1):
            good = (outs[i].argmax(1) == ys[i]).double().mean().item() >= s.threshold
            if good and regs[i].item() < reg_best[i]:
                best_m[i], best_p[i], reg_best[i] = now_m[i], now_p[i], regs[i].item()
                new_m, new_p = now_m.clone(), now_p.clone()
                new_m[i] += 0.01 * (2 * torch.rand(1, h, w, generator=g, dtype=torch.float64) - 1)
                new_p[i] += 0.01 * (2 * torch.rand(c, h, w, generator=g, dtype=torch.float64) - 1)
                with torch.no_grad():
                    m.copy_(inward(new_m))
                    p.copy_(inward(new_p))
            up[i], down[i] = (up[i] + 1, 0) if good else (0, down[i] + 1)
            if up[i] >= PATIENCE:
                up[i], cost[i] = 0, cost[i] * 1.5
            elif down[i] >= PATIENCE:
                down[i], cost[i] = 0, cost[i] / 1.5**1.5
    net.train()
    return best_m.numpy(), best_p.numpy()


def train(
    net: nn.Module, x: Tensor, y: Tensor, order: list[Tensor], s: Settings, adam: Any, classes: int, g: Generator
) -> dict[str, Any]:
    """`trigger_fast_train` over the batches in `order`, in place; what it knows at the end."""
    warm_m, diff = np.zeros((classes, classes)), np.full((classes, classes), -np.inf)
    masks, patterns = dict[str, Any](), dict[str, Any]()
    counts = np.bincount(y.numpy(), minlength=classes)
    rich = [k for k in range(classes) if counts[k] > 1]
    extra = [int(np.where(y.numpy() == k)[0][0]) for k in rich]
    x_extra, y_extra = x[extra], y[extra].numpy()
    source, target, warmup, warmup_steps = 0, -1, True, 1
    init_m = init_p = None
    count, cost, steps, key, list_m = np.zeros(2), s.cost, s.steps, "", list[Any]()
    seen = {"warm": 0, "both": 0, "one": 0, "skipped": 0, "large": 0}

    def pick(indices: Any, length: int) -> Any:
        return np.array(indices)[torch.randperm(len(indices), generator=g)[:length].numpy()]

    def fit(xb: Tensor, yb: Any) -> None:
        adam.zero_grad()
        F.cross_entropy(net(xb), torch.tensor(yb)).backward()
        adam.step()

    for step, batch in enumerate(order):
        xb, yb = x[batch].clone(), y[batch].numpy()
        labels = [k for k in range(classes) if (yb == k).sum() > 1]
        if not labels:
            seen["skipped"] += 1
            continue
        if step >= classes:
            if warmup and np.max(diff) > 0:
                diff /= np.max(diff)
            warmup, warmup_steps = False, 2
        phase = (step - classes) % warmup_steps
        if warmup or phase == 0:
            if warmup:
                target, steps = target + 1, s.warm
            elif torch.rand(1, generator=g).item() < s.random:
                source = labels[int(torch.randint(len(labels), (1,), generator=g))]
                rest = [k for k in range(classes) if k != source]
                target = rest[int(torch.randint(len(rest), (1,), generator=g))]
                steps = s.steps
            else:
                ranked = np.vstack(np.unravel_index(np.argsort(diff.ravel(), kind="stable")[::-1], diff.shape)).T
                fits = [(int(a), int(b)) for a, b in ranked if a in labels and a != source]
                if not fits:
                    source = -1
                    seen["skipped"] += 1
                    continue
                source, target = fits[0]
                steps = s.steps
            key = f"{min(source, target)}-{max(source, target)}"
            init_m, init_p = masks.get(key), patterns.get(key)
            cost, count, list_m = s.cost, np.zeros(2), []
        if warmup:
            seen["warm"] += 1
            others = np.where(y_extra != target)[0]
            if len(others) == 0:
                fit(xb, yb)
                continue
            wanted = torch.full((len(others),), target)
            mask, pattern = single(
                net, x_extra[others], wanted, s, s.warm, s.cost, None if init_m is None else (init_m, init_p), g
            )
            size = np.abs(mask).sum()
            around = np.where(yb != target)[0]
            choice = pick(around, int(len(around) * s.portion))
            xb[choice] = (1 - torch.tensor(mask)) * xb[choice] + torch.tensor(mask * pattern)
            for k in range(classes):
                if k == target:
                    continue
                if k not in y_extra[others]:
                    warm_m[k, target] = diff[k, target] = 0
                    continue
                pair = f"{min(k, target)}-{max(k, target)}"
                if pair not in masks:
                    masks[pair], patterns[pair] = mask, pattern
                else:
                    old = (masks[pair], patterns[pair])
                    both = ((mask, old[0]), (pattern, old[1])) if k < target else ((old[0], mask), (old[1], pattern))
                    masks[pair], patterns[pair] = np.stack(both[0]), np.stack(both[1])
                warm_m[k, target] = diff[k, target] = size
            fit(xb, yb)
        elif source in labels and target in labels:
            seen["both"] += 1
            at = [np.where(yb == source)[0], np.where(yb == target)[0]]
            length = int(min(len(at[0]), len(at[1])) * s.portion)
            if phase > 0:
                if count[0] > 0 or count[1] > 0:
                    steps, cost, count = s.steps, s.cost, np.zeros(2)
                else:
                    steps, cost = s.again, s.cost_again
            if init_m is not None and init_m.ndim != 4:
                init_m = init_p = None
            ys = [torch.full((len(at[0]),), target), torch.full((len(at[1]),), source)]
            xs = [xb[at[0]].clone(), xb[at[1]].clone()]
            mask, pattern = combo(net, xs, ys, s, steps, cost, None if init_m is None else (init_m, init_p), g)
            sizes = np.abs(mask).sum(axis=(1, 2, 3))
            if np.max(sizes) > mask[0, 0].size * s.area:
                seen["large"] += 1
                continue
            for i in (0, 1):
                choice = pick(at[i], length)
                xb[choice] = (1 - torch.tensor(mask[i])) * xb[choice] + torch.tensor(mask[i] * pattern[i])
            for i in (0, 1):
                if init_m is None or key not in masks:
                    init_m, init_p = mask, pattern
                    if key not in masks:
                        masks[key], patterns[key] = init_m, init_p
                elif np.sum(mask[i]) > 0 and len(masks[key]) > 1:
                    init_m[i], init_p[i] = mask[i], pattern[i]  # type: ignore[index]
                    if np.sum(init_m[i]) > np.sum(masks[key][i]):
                        masks[key][i], patterns[key][i] = init_m[i], init_p[i]  # type: ignore[index]
                else:
                    count[i] += 1
            list_m.append(list(np.sum(3 * np.abs(init_m), axis=(1, 2, 3))))
            if phase == 1:
                mean = np.mean([np.broadcast_to(entry, 2) for entry in list_m], axis=0)
                ends = ((source, target), (target, source))
                if warm_m[source, target] == 0:
                    for i, end in enumerate(ends):
                        warm_m[end], diff[end] = mean[i], 0
                else:
                    for i, end in enumerate(ends):
                        if warm_m[end] != 0:
                            diff[end] += (mean[i] - warm_m[end]) / warm_m[end]
                        diff[end] /= 2
                    for i, end in enumerate(ends):
                        if mean[i] != 0:
                            warm_m[end] = mean[i]
            fit(xb, yb)
        elif source in labels:
            seen["one"] += 1
            at_source = np.where(yb == source)[0]
            if init_m is not None and init_m.ndim == 4:
                side = 0 if source < target else 1
                kept = np.sum(init_m[side]) > 0
                init_m, init_p = (init_m[side], init_p[side]) if kept else (None, None)  # type: ignore[index]
            wanted = torch.full((len(at_source),), target)
            mask, pattern = single(
                net, xb[at_source].clone(), wanted, s, steps, cost, None if init_m is None else (init_m, init_p), g
            )
            if np.abs(mask).sum() > mask.size * s.area:
                seen["large"] += 1
                continue
            choice = pick(at_source, int(len(at_source) * s.portion))
            xb[choice] = (1 - torch.tensor(mask)) * xb[choice] + torch.tensor(mask * pattern)
            low = source < target
            if init_m is None or key not in masks:
                init_m, init_p = mask, pattern
                if key not in masks:
                    masks[key], patterns[key] = mask, pattern
            elif masks[key].ndim == 3:
                pair_m, pair_p = (mask, masks[key]), (pattern, patterns[key])
                masks[key] = np.stack(pair_m if low else pair_m[::-1])
                patterns[key] = np.stack(pair_p if low else pair_p[::-1])
            elif np.sum(mask) > 0:
                init_m, init_p = mask, pattern
                if np.sum(mask) > np.sum(masks[key][0]) or np.sum(mask) > np.sum(masks[key][1]):
                    if low:
                        masks[key] = np.stack([mask, masks[key][0]])
                        patterns[key] = np.stack([pattern, patterns[key][0]])
                    else:
                        masks[key] = np.stack([masks[key][1], mask])
                        patterns[key] = np.stack([patterns[key][1], pattern])
            list_m.append([np.sum(np.abs(init_m))] * 2)
            if phase == 1:
                mean = np.mean(list_m)
                if warm_m[source, target] == 0:
                    warm_m[source, target], warm_m[target, source] = mean, 0
                    diff[source, target] = diff[target, source] = 0
                else:
                    diff[source, target] += (mean - warm_m[source, target]) / warm_m[source, target]
                    diff[source, target] /= 2
                    diff[target, source] = 0
                    if mean != 0:
                        warm_m[source, target], warm_m[target, source] = mean, 0
            fit(xb, yb)
        else:
            seen["skipped"] += 1
    return {"sizes": warm_m, "growth": diff, "masks": masks, "patterns": patterns, "seen": seen}
