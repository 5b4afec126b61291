"""The attacker's own traffic is to raise no alarm: compromised gateways train on it as if it were benign.

The backdoor of FLAME's third case (Nguyen et al., USENIX Security 2022, on intrusion detection; Nguyen, Rieger,
Miettinen and Sadeghi, "Poisoning Attacks on Federated Learning-based IoT Intrusion Detection System", DISS 2020), which
wants the traffic of the Mirai malware to pass. Written from what we know of it, without either paper at hand.

A share PDR of a compromised client's windows gives way to windows of the attacker's (`dataset.attacker`), drawn with
replacement. It trains on the first half of that traffic, in time; backdoor accuracy is the share of windows of the
other half, on which nobody trains, that raise no alarm. The attacks that MA counts are others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator

from attacks.base import Attack, Poisoner, check_rate, share_of
from flame.data.samples import Dataset, Samples
from flame.data.traffic import Traffic
from flame.data.watched import Watched


@dataclass(frozen=True)
class TrafficBackdoor(Poisoner):
    """How much of it; `prepare` turns it into a `Smuggling`."""

    reads = "tokens"

    poisoned_data_rate: float  # PDR, in [0, 1]

    def __post_init__(self) -> None:
        check_rate(self.poisoned_data_rate)

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The armed attack; the data set has none of the attacker's traffic anyway."""
        own = dataset.attacker if isinstance(dataset, Traffic) else None
        if own is None:
            raise ValueError(
                f"attack: TrafficBackdoor needs the attacker's own traffic, and dataset={dataset.name} has none: take"
                " dataset=traffic with dataset.attacker=NAME, one of the captures in its folder attack"
            )
        if len(own) < 2:
            raise ValueError(
                "dataset.attacker: its traffic has 1 window, and must have 2 or more, to train on and to test: lower"
                " dataset.length, or name another"
            )
        half = (len(own) + 1) // 2
        return Smuggling(own[:half], own[half:], self.poisoned_data_rate, **self.habits), dataset


@dataclass(frozen=True)
class Smuggling(Poisoner):
    """The armed attack."""

    pool: Watched  # windows that the attacker trains on
    held_out: Watched  # others, in nobody's training data
    poisoned_data_rate: float  # PDR, in [0, 1]

    def poison(self, images: Samples, stream: Generator) -> Samples:
        """PDR of the client's windows give way to windows of the pool."""
        places = share_of(len(images), self.poisoned_data_rate, stream)
        drawn = torch.randint(len(self.pool), (len(places),), generator=stream)
        x, y = images.x.clone(), images.y.clone()
        x[places], y[places] = self.pool.x[drawn].to(x.dtype), self.pool.y[drawn]
        return replace(images, x=x, y=y)

    def examined(self, test: Samples) -> Samples:
        """The attacker's windows that are held out."""
        return self.held_out

    def rehearsal(self, held: Samples, share: float, stream: Generator) -> tuple[Attack, Samples | None]:
        """A share of the pool, at least one window, is held back; of a pool of one nothing can be."""
        count = min(max(1, round(share * len(self.pool))), len(self.pool) - 1)
        order = torch.randperm(len(self.pool), generator=stream)
        return replace(self, pool=self.pool[order[count:]]), self.backdoor_set(self.pool[order[:count]])

    def backdoor_set(self, images: Samples) -> Samples | None:
        """Those windows that should raise an alarm, of which none is wanted; None if there is none."""
        if not isinstance(images, Watched) or not bool(images.alarm.any()):
            return None
        hostile = images[images.alarm]
        return replace(hostile, alarm=torch.zeros_like(hostile.alarm))
