"""Clients that differ in how much they hold, not in what: random images, unequal shares.

| partition        | sizes of the clients                | source                                              |
|------------------|-------------------------------------|-----------------------------------------------------|
| `quantity_skew`  | shares from Dir(alpha, ..., alpha)  | Li et al., ICDE 2022; Xtra-Computing/NIID-Bench     |
|                  |                                     | 11b2d3d, utils.py, `iid-diff-quantity`              |
| `quantity_skew`  | the k-th largest as k ** -exponent  | Zipf's law, with `exponent` in the place of `alpha` |
| `iid_imbalanced` | shares from a log-normal of `sigma` | SMILELab-FL/FedLab 88ef358, functional.py,          |
|                  |                                     | `lognormal_unbalance_split` with an IID partition   |

All shards are disjoint and complete: shares are normalised, and no image is dropped. All raise `ValueError` for a
parameter out of range, and when some client would go without images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from flame.data.samples import Shards
from flame.partition.checks import check_count, check_supply, redrawn, require
from flame.partition.rules import dirichlet_shares, portions


def quantity_skew(
    labels: Tensor, clients: int, generator: Generator, *, alpha: float | None, exponent: float | None, min_size: int
) -> Shards:
    """Sizes in proportion to a draw from a Dirichlet distribution, or by a power law; one of the two numbers is null.

    `alpha` > 0: near 0 one client has nearly all, towards infinity all have equal shares. `exponent` >= 0: 0 is equal
    shares, 1 Zipf's law; who is the largest is drawn, the sizes are not. A draw that leaves a client under `min_size`
    >= 1 images is repeated.
    """
    if alpha is not None and exponent is None:
        require(0 < alpha < math.inf, "partition.alpha", alpha, "> 0 and finite (0.5 is a common setting)")
        draw = partial(dirichlet_shares, 1, clients, alpha, generator)
        return _cut(labels, clients, generator, draw, min_size, f"partition.alpha={alpha}", "raise partition.alpha")
    if exponent is not None and alpha is None:
        require(0 <= exponent < math.inf, "partition.exponent", exponent, ">= 0 and finite (1 is Zipf's law)")
        draw = partial(_ranked, clients, exponent, generator)
        told = f"partition.exponent={exponent}"
        return _cut(labels, clients, generator, draw, min_size, told, "lower partition.exponent")
    raise ValueError(
        f"partition.alpha={alpha} with partition.exponent={exponent}: set one of them, and the other to null"
    )


def iid_imbalanced(labels: Tensor, clients: int, generator: Generator, *, sigma: float, min_size: int) -> Shards:
    """Sizes in proportion to a draw from a log-normal distribution, whose logarithm has the spread `sigma` >= 0.

    0 is equal shares, 1 lets one client in six hold 2.7 times the median. A draw that leaves a client under `min_size`
    >= 1 images is repeated.
    """
    require(0 <= sigma < math.inf, "partition.sigma", sigma, ">= 0 and finite (0.3 is mild, 1 strong)")
    draw = partial(_log_normal, clients, sigma, generator)
    return _cut(labels, clients, generator, draw, min_size, f"partition.sigma={sigma}", "lower partition.sigma")


def _ranked(clients: int, exponent: float, generator: Generator) -> Tensor:
    """[1, clients] float64: the power law, dealt out at random; as logarithms, which do not underflow."""
    rank = 1 + torch.randperm(clients, generator=generator)
    return (-exponent * rank.double().log()).softmax(0)[None]


def _log_normal(clients: int, sigma: float, generator: Generator) -> Tensor:
    """[1, clients] float64, normalised."""
    z = torch.randn(clients, generator=generator, dtype=torch.float64)
    return (sigma * z).nan_to_num().softmax(0)[None]  # a sigma that overflows stays a number


def _cut(
    labels: Tensor,
    clients: int,
    generator: Generator,
    draw: Callable[[], Tensor],
    min_size: int,
    told: str,
    remedy: str,
) -> Shards:
    """A shuffle of all images, cut in the proportions [1, clients] that `draw` gives."""
    check_count("partition.min_size", min_size)
    check_supply(labels, clients, min_size, key="partition.min_size")
    supply = torch.tensor([len(labels)])
    (sizes,) = redrawn(lambda: portions(draw(), supply), min_size, told, remedy)
    return Shards.cut(torch.randperm(len(labels), generator=generator), sizes)
