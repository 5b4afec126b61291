"""The one step between what is stored and what a model reads, a function of a batch for each kind of data; and what
random samples of that kind are."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Generator, Tensor

from flame.data.samples import Dataset

Noise = Callable[[int, Generator], Tensor]  # how many -> random samples [count, ...], raw


def reader(dataset: Dataset) -> Callable[[Tensor], Tensor]:
    """What turns a raw batch of the data set into what a model reads; it can be pickled."""
    if dataset.kind == "tokens":
        return Tensor.long
    return partial(READ[dataset.kind], mean=dataset.mean, std=dataset.std)


def noise(dataset: Dataset) -> Noise:
    """What draws random samples as the data set stores its own; it can be pickled.

    Pixels are uniform levels, tokens uniform in the vocabulary, features standard normal once they are read.
    """
    shape, vocabulary = tuple(dataset.train.x.shape[1:]), dataset.vocabulary
    if dataset.kind == "features":
        return partial(features, mean=dataset.mean, std=dataset.std)
    dtype = dataset.train.x.dtype
    return partial(whole, shape=shape, below=256 if vocabulary is None else len(vocabulary), dtype=dtype)


def whole(count: int, stream: Generator, shape: tuple[int, ...], below: int, dtype: torch.dtype) -> Tensor:
    """[count, *shape] uniform whole numbers in [0, below)."""
    return torch.randint(0, below, (count, *shape), dtype=dtype, generator=stream)


def features(count: int, stream: Generator, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[count, F] float32, rows of normal numbers of these means and spreads [F]."""
    return torch.tensor(mean) + torch.tensor(std) * torch.randn(count, len(mean), generator=stream)


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
