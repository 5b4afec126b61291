"""Indicators: single parameters through which attackers learn what the server did with each of them.

The part of 3DFed (Li et al., IEEE S&P 2023) that reads the defense. Each colluder plants a value in a parameter of its
own that benign clients hardly move and the loss hardly feels; the next global model tells how much of it arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import require
from flame.data.samples import Samples
from flame.geometry.layout import Entry, StateLayout
from flame.round.client import LocalJob, batches, cross_entropy

REJECTED, CLIPPED, ACCEPTED = range(3)
WHOLE = 0.8  # of the largest feedback: less means clipped; the authors' code
CANDIDATES = 10  # parameters looked at for each one that is needed; likewise


def quiet_layer(layout: StateLayout) -> Entry:
    """Where indicators are sought: the last convolution, else the last weights before the classifier, else those."""
    weights = [e for e in layout.entries if e.stop <= layout.trainable]
    return max(weights, key=lambda e: (e.block == "trunk", min(len(e.shape), 4), e.start))


def curvature(job: LocalJob, images: Samples) -> Tensor:
    """[k] row sums of the loss's Hessian over `quiet_layer`, magnitude of the sum over batches; the model is kept."""
    weight = job.model.get_parameter(quiet_layer(StateLayout.of(job.model)).key)
    total = torch.zeros(weight.numel())
    job.model.eval()
    for batch in batches(len(images), job.training.batch_size, job.stream("indicators")):
        loss = cross_entropy(job.model, job.normalise(images.x[batch]), images.y[batch])
        (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), weight)
        total += bend.flatten()
    return total.abs()


def choose(movement: Tensor, bend: Tensor, count: int) -> Tensor:
    """[count] int64 places: of the parameters that move least (movement [k]), those with the least curvature [k]."""
    require(
        count <= len(movement), "indicators", count, f"in [1, {len(movement)}], the weights of the layer they are in"
    )
    candidates = movement.argsort(stable=True)[: CANDIDATES * count]
    return candidates[bend[candidates].argsort(stable=True)[:count]]


def read(arrived: Tensor, planted: Tensor, clients: int, silence: float) -> Tensor | None:
    """[m] REJECTED, CLIPPED or ACCEPTED, from what arrived in the global model [m] of what was planted [m].

    Feedback, arrived / planted, is 1 / n for a client that was averaged in whole. None if it cannot come from a mean:
    the server adds noise. `silence`, in units of 1 / n, is what the other clients alone may move an indicator by.
    """
    feedback = arrived / planted
    floor = silence / clients
    if bool((feedback < -floor).any() or (feedback > 1 + floor).any()):
        return None
    answers = torch.where(feedback <= WHOLE * feedback.max(), CLIPPED, ACCEPTED)
    return answers.masked_fill(feedback <= floor, REJECTED)
