"""What data of the user's own say of themselves: the mean and the spread of their pixels, and facts to be declared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spread(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of `x` [N, C, H, W] uint8, scaled to [0, 1].

    From whole numbers, so that they depend neither on the order of the images nor on the number of threads.
    """
    means, stds = [], []
    for channel in x.unbind(1):
        counts = [0] * 256
        for part in channel.split(1024):
            found = torch.bincount(part.flatten(), minlength=256).tolist()
            counts = [a + b for a, b in zip(counts, found, strict=True)]
        n = sum(counts)
        first = sum(level * count for level, count in enumerate(counts))
        second = sum(level * level * count for level, count in enumerate(counts))
        means.append(first / n / 255)
        stds.append(math.sqrt(n * second - first * first) / n / 255)
    return tuple(means), tuple(stds)


def given_or_found(
    mean: Sequence[float] | None, std: Sequence[float] | None, x: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, those of the training images `x` where the YAML says null."""
    if mean is not None and std is not None:
        return tuple(mean), tuple(std)
    own_mean, own_std = spread(x)
    return own_mean if mean is None else tuple(mean), own_std if std is None else tuple(std)


def check_said(what: str, said: dict[str, int | None], found: dict[str, int]) -> None:
    """A ValueError, with the values to set, unless every one of these facts, from which models are built, is declared.

    `found` is what the data have; that both agree is checked with the images (`flame/data/check.py`).
    """
    if silent := [key for key, value in said.items() if value is None]:
        words = " ".join(f"dataset.{key}={value}" for key, value in found.items())
        raise ValueError(
            f"dataset.{silent[0]}=null must be said, as models are built from it: {what} has {words}; say so if that"
            " is what you mean"
        )
