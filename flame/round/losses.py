"""The loss of one batch of local training, whichever way an attack or the client's recipe bends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flame.data.samples import Samples
from flame.round.augment import View

Normalise = Callable[[Tensor], Tensor]  # uint8 [B, C, H, W] -> float32, channels_last
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> scalar loss
Mixture = Callable[[Samples], Sequence[tuple[float, Samples]]]  # a raw batch -> weights and batches
Harden = Callable[[Tensor, Tensor], Tensor | None]  # raw x, y -> what the model reads; None: not to be trained on


def batch_loss(
    model: nn.Module,
    images: Samples,
    normalise: Normalise,
    objective: Objective,
    mixture: Mixture | None,
    view: View,
    harden: Harden | None,
) -> Callable[[Tensor], Tensor | None]:
    """What gives the loss of the images at some positions [B]; None where they are not to be trained on."""

    def loss_of(batch: Tensor) -> Tensor | None:
        if mixture is None:
            x, y = view(images, batch), images.y[batch]
            seen = normalise(x) if harden is None else harden(x, y)
            return None if seen is None else objective(model, seen, y)
        parts = mixture(images[batch])
        views = [view(p, torch.arange(len(p), device=batch.device)) for _, p in parts]
        terms = [w * objective(model, normalise(x), p.y) for (w, p), x in zip(parts, views, strict=True)]
        return torch.stack(terms).sum()

    return loss_of
