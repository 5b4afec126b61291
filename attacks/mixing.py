"""How poisoned and clean images come together while a compromised client trains, where it is not `poison` once, on the
whole shard.

Held against thinh-dao/BackFed 232c585 (backfed/clients/base_malicious_client.py). Its `offline` is the whole shard
once. Its `online` is `PerBatch`, with its poison_rate 0.3125: 20 of 64, as AI-secure/DBA has on MNIST. Its `multi_task`
is `MultiTask`, with its attack_alpha. Deviations: which images of a batch are poisoned is drawn (theirs: the first of a
shuffled batch); their number is rounded (theirs: cut). An outer attack that looks at poisoned images beside its
training (3DFed's curvature) sees clean ones with these two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from attacks.base import Poison, require, share_of
from attacks.differences import changed
from flame.data.samples import Samples
from flame.round.augment import joined
from flame.round.client import LocalJob
from flame.round.device import CPU


@dataclass(frozen=True)
class PerBatch:
    """Every batch is poisoned by itself, in each epoch anew: the rate is a share of the batch."""

    def compromise(self, job: LocalJob, poison: Poison) -> LocalJob:
        """Clean images, and poison for their batches."""
        poisoned = counted(job, poison)
        return replace(job, mixture=lambda batch: [(1.0, poisoned(batch))])


@dataclass(frozen=True)
class MultiTask:
    """alpha L(poisoned batch) + (1 - alpha) L(clean batch), of the same images, in two forward passes.

    Bagdasaryan and Shmatikov, USENIX Security 2021, with fixed scales (ebagdasa/backdoors101 026416a, attack.py).
    """

    alpha: float  # in [0, 1]

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "mixing.alpha", self.alpha, "in [0, 1]")

    def compromise(self, job: LocalJob, poison: Poison) -> LocalJob:
        """Clean images, and two weighed batches of each."""
        poisoned = counted(job, poison)
        return replace(job, mixture=lambda batch: [(1 - self.alpha, batch), (self.alpha, poisoned(batch))])


@dataclass(frozen=True)
class WithClean:
    """The poisoned shard, and a share of its clean images beside it."""

    share: float  # of the shard, in [0, 1]

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "mixing.share", self.share, "in [0, 1]")

    def compromise(self, job: LocalJob, poison: Poison) -> LocalJob:
        """More images than the client has."""
        poisoned = counted(job, poison)(job.images)
        clean = job.images[share_of(len(job.images), self.share, job.stream("clean"))]
        return replace(job, images=joined(poisoned, clean))


def counted(job: LocalJob, poison: Poison) -> Callable[[Samples], Samples]:
    """Poison with the job's stream, on the CPU; how many images that has changed is noted, for `Attack.idle`."""
    stream, job.notes["poisoned"] = job.stream("poison"), torch.tensor(0)

    def poisoned(images: Samples) -> Samples:
        clean = images.to(CPU)
        bad = poison(clean, stream)
        job.notes["poisoned"] += changed(clean, bad).sum()
        return bad.to(images.x.device)

    return poisoned
