"""What colluding clients do with their own benign updates before they send something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from attacks.base import Scene, require
from flame.round.client import LocalJob

DIRECTIONS = ("std", "unit", "sign")


def own_updates(rows: Tensor, scene: Scene) -> Tensor:
    """[m, d] the trainable columns of rows [m, d + b], a view."""
    return rows[:, scene.layout.span("weights_only")]


def benign_updates(scene: Scene) -> Tensor:
    """[m, d + b] what each colluder would have sent as a benign client, where `train` has noted it as `benign`."""
    return torch.stack([noted["benign"] for noted in scene.notes])


def remembered(sent: Tensor, scene: Scene, key: str) -> Mapping[str, Tensor]:
    """Memory of what each colluder sent [m, ...], for `others`; `train` has noted its number as `client`."""
    return {f"{key}/sent": sent, f"{key}/clients": torch.stack([noted["client"] for noted in scene.notes])}


def others(job: LocalJob, key: str, width: int) -> Tensor:
    """[., width] what the others sent in the last attacked round: colluders of one round train at the same time."""
    if f"{key}/sent" not in job.memory:
        return torch.zeros(0, width)
    return job.memory[f"{key}/sent"][job.memory[f"{key}/clients"] != job.client]


def mean_and_std(own: Tensor) -> tuple[Tensor, Tensor]:
    """[k] each, over the colluders; the std is the population's, so that one colluder has 0 and not NaN."""
    return own.mean(0), own.std(0, correction=0)


def away(own: Tensor, kind: str) -> Tensor:
    """[k] the perturbation p that crafted updates mean + gamma p follow (Shejwalkar and Houmansadr, NDSS 2021).

    The authors subtract all three from gradients. An update points against its gradient: its mean changes sign with it,
    so that `unit` and `sign` point against the mean in either, but its std does not, so that `std` is added here.
    """
    mean, std = mean_and_std(own)
    if kind == "std":
        return std
    return -mean.sign() if kind == "sign" else -mean / mean.norm().clamp_min(torch.finfo(mean.dtype).tiny)


def pushed(own: Tensor, kind: str, largest_gamma: Callable[[Tensor, Tensor], float]) -> Tensor:
    """[k] mean + gamma p, p as in `away`; `largest_gamma` sees the updates [m, k] minus their mean, and p [k]."""
    mean, p = own.mean(0), away(own, kind)
    return mean + largest_gamma(own - mean, p) * p


def check_direction(kind: str) -> None:
    """A ValueError unless it is one of the three."""
    require(kind in DIRECTIONS, "direction", repr(kind), f"one of {', '.join(DIRECTIONS)}")
