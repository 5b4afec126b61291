"""The weights that a network can least do without: FORCE (de Jorge, Sanyal, Behl, Torr, Rogez and Dokania, "Progressive
Skeletonization: Trimming more fat from a network at initialization", ICLR 2021, arXiv 2006.09081), after the copy of it
with which the attack `sparse` prunes (CRYPTO-KU/FL-Byzantine-Library 32922ca, pruners/force.py, `iterative_pruning`).

Of N weights, the parameters of two or more axes, step i = 1, ..., steps keeps the round(N keep^(i / steps)) with the
largest scores

    |w g|          w the weight before any pruning, g its mean slope in the network that step i - 1 has left

A weight that was pruned still has a slope, and so may come back.

Deviations: their weights are those of Linear and Conv2d, and other layers than these and BatchNorm2d shift their mask
against the parameters. The slopes of all steps are of the same batches; so are theirs from the second step on, since
the noise below seeds torch anew each time. Their schedule `linear` and their limits for single layers, both off by
default, are not here. Nor are their other pruners: the settings iter_snip and grasp_it, of other names than their code
looks for, run FORCE, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Generator, Tensor, nn

from attacks.snapshot import Snapshot

NOISE = 1e-10  # standard deviation of what is added to a score, so that few are equal; theirs
LARGEST = 1e9  # in place of an infinite score, and 0 of NaN; theirs

Batch = tuple[Tensor, Tensor]  # inputs and labels
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def skeleton(
    model: nn.Module, batches: Sequence[Batch], loss: Loss, keep: float, steps: int, stream: Generator
) -> Tensor:
    """[d] bool in the layout's order: which weights are kept, a share `keep`, and all parameters of fewer axes.

    The model stays as it is, and is read in training mode; its frozen weights are not kept. The stream is the noise's.
    """
    net = deepcopy(model).train()
    weights = [p for p in net.parameters() if p.dim() > 1 and p.requires_grad]
    dense = [p.detach().clone() for p in weights]
    noise = NOISE * torch.randn(sum(w.numel() for w in dense), generator=stream)
    for step in range(1, steps + 1):
        scores = saliency(dense, slopes(net, weights, batches, loss)) + noise
        kept = largest(scores, round(len(scores) * keep ** (step / steps)))
        fill(weights, kept, dense)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(p.dim() < 2)
    fill(weights, kept, [torch.ones_like(w) for w in dense])
    mask = Snapshot.of(net)
    return mask.row[: mask.layout.trainable] > 0


def slopes(net: nn.Module, weights: Sequence[Tensor], batches: Sequence[Batch], loss: Loss) -> list[Tensor]:
    """The mean gradient of the batches' losses, for each of the weights; 0 for one that plays no part."""
    total = [torch.zeros_like(w) for w in weights]
    for x, y in batches:
        found = torch.autograd.grad(loss(net, x, y), list(weights), allow_unused=True)
        total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
    return [t / len(batches) for t in total]


def saliency(dense: Sequence[Tensor], slope: Sequence[Tensor]) -> Tensor:
    """[N] scores, all weights in a row."""
    scores = torch.cat([(w * g).abs().flatten() for w, g in zip(dense, slope, strict=True)])
    return scores.cpu().nan_to_num(nan=0.0, posinf=LARGEST)


def largest(scores: Tensor, count: int) -> Tensor:
    """[N] bool, so many of the largest scores [N], at least one."""
    return torch.zeros(len(scores), dtype=torch.bool).index_fill(0, scores.topk(max(1, count)).indices, True)


@torch.no_grad()
def fill(weights: Sequence[Tensor], kept: Tensor, values: Sequence[Tensor]) -> None:
    """Write `values` into the weights where `kept` [N] is set, and 0 elsewhere."""
    for w, part, value in zip(weights, kept.split([w.numel() for w in weights]), values, strict=True):
        w.copy_(value * part.view(w.shape).to(w.device))
