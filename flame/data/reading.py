"""The one step between what is stored and what a model reads: a function of a batch, for each kind of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from flame.data.samples import Dataset


def reader(dataset: Dataset) -> Callable[[Tensor], Tensor]:
    """What turns a raw batch of the data set into what a model reads; it can be pickled."""
    if dataset.kind == "tokens":
        return Tensor.long
    return partial(READ[dataset.kind], mean=dataset.mean, std=dataset.std)


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Raw images [B, C, H, W] uint8 -> (x / 255 - mean) / std [B, C, H, W] float32 in channels_last.

    A multiplication, then an addition, each rounded by itself: the bits depend neither on the batch that a pixel stands
    in nor on whether a machine fuses the two. The arithmetic is done in the stored layout, where a channel's factor is
    constant along the inner loop, and the result copied: for three channels four times faster than the other order.

    Raises TypeError for other pixels: floats would be scaled once more, and in place, as `float` copies none.
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"images are {x.dtype}: must be torch.uint8, pixels in [0, 255], which are scaled here")
    scale, shift = _affine(mean, std, x.device)
    values = x.float().mul_(scale).add_(shift)
    # Not .contiguous(): with C = 1 that returns its argument, whose strides make convolutions choose the slow layout.
    return torch.empty_like(values, memory_format=torch.channels_last).copy_(values)


@lru_cache
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift [1, C, 1, 1] float32 of x * scale + shift, from float64."""
    m, s = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    return (1 / (255 * s)).float().to(device), (-m / s).float().to(device)


def standardised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Rows of features [B, F] float32 -> (x - mean) / std; a copy."""
    m, s = (torch.tensor(values, dtype=torch.float32, device=x.device) for values in (mean, std))
    return (x - m) / s


READ = {"images": normalise, "features": standardised}
