"""FLIP's search for triggers, as its authors' program goes through it (KaiyuanZh/FLIP at 99a2fda3), in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

EPSILON, PATIENCE = 1e-7, 10


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
