"""Poisoned weights with the BatchNorm statistics of honest training; ours.

Running mean and variance are sent by the client, and a server that averages them does not clip them. So nothing holds
an attacker to those that its poisoned images had: it trains twice from the global model, once as a benign client and
once as the inner attack does, and sends the second's weights with the first's statistics and counters. A detector that
looks at statistics then sees a benign client; what it loses by that is what statistics told it.

Threat model. The client knows its own data and the global model, no other client. On models without BatchNorm it is the
inner attack. Whoever scales afterwards scales weights alone, so that statistics stay honest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attacks.around import Around
from attacks.snapshot import Snapshot
from flame.round.client import LocalJob


@dataclass(frozen=True)
class ForgedStatistics(Around):
    """The inner attack, but for what BatchNorm would tell of it."""

    own_training = True  # an outer attack that trains in its place would send the statistics of that

    def train(self, job: LocalJob) -> float:
        """Both trainings from the global model; the inner one's loss."""
        start = Snapshot.of(job.model)
        job.fit(job.images)
        benign = Snapshot.of(job.model)
        start.load(job.model)
        loss = super().train(job)
        sent = Snapshot.of(job.model)
        sent.row[sent.layout.trainable :] = benign.row[sent.layout.trainable :]
        replace(sent, counters=benign.counters).load(job.model)
        return loss
