"""Windows of symbols that a model watches: what it finds improbable raises an alarm.

Nguyen et al., "DIoT: A Federated Self-learning Anomaly Detection System for IoT", ICDCS 2019 (arXiv 1804.07474): a GRU
gives the next symbol a probability; a symbol whose own is below a threshold is an anomaly, and a window of which more
than a share are anomalies is an alarm. Recalled from memory, not checked: the paper's thresholds are 0.01 and 0.5, its
window is 250 packets, and each packet is judged by the 20 before it.

Ours: a window is judged by itself, each symbol by those before it in the window; the first one is never judged. The
threshold is called sigma here, and the share gamma.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flame.data.samples import Samples

ATTACKS = "attacks"  # the part of a test set that has the attacks, beside the whole


@dataclass(frozen=True)
class Watched(Samples):
    """Windows [N, T], whose labels are the next symbols; right is who raises an alarm, or raises none, as wanted."""

    alarm: Tensor  # [N] bool, whether one is wanted
    sigma: float  # a symbol of a smaller probability is an anomaly
    gamma: float  # a window with a larger share of anomalies raises an alarm

    @property
    def asked(self) -> int:
        """How many windows are judged: all."""
        return len(self)

    def right(self, logits: Tensor) -> Tensor:
        """[N] bool, from logits [N, classes, T] (`Samples.right`)."""
        return self.raised(logits) == self.alarm

    def raised(self, logits: Tensor) -> Tensor:
        """[N] bool, which windows raise an alarm."""
        chances = logits.float().softmax(1).gather(1, self.y.unsqueeze(1)).squeeze(1)  # [N, T]
        return (chances < self.sigma).double().mean(1) > self.gamma

    def apart(self) -> dict[str, Samples]:
        """The attacks by themselves, where there are some beside benign windows (`Samples.apart`)."""
        some = bool(self.alarm.any()) and not bool(self.alarm.all())
        return {ATTACKS: self[self.alarm]} if some else {}


def watched(x: Tensor, y: Tensor, alarm: bool, sigma: float, gamma: float) -> Watched:
    """Windows [N, T] and their next symbols, of which all are to raise an alarm, or none."""
    return Watched(x, y, torch.full((len(x),), alarm), sigma, gamma)


def balanced(benign: Watched, attacks: Watched) -> Watched:
    """As many windows of either kind, so that accuracy on both is the mean of their rates.

    Of the larger kind the windows are taken that lie evenly spaced.
    """
    count = min(len(benign), len(attacks))
    some = [part[torch.arange(count) * len(part) // count] for part in (benign, attacks)]
    x, y, alarm = (torch.cat([getattr(part, name) for part in some]) for name in ("x", "y", "alarm"))
    return Watched(x, y, alarm, benign.sigma, benign.gamma)
