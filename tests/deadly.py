"""An attack on the simulator itself, for test_faults.py: a compromised client takes its worker down."""

from __future__ import annotations

import os
import signal

from attacks.base import Attack
from flame.round.client import LocalJob


class Deadly(Attack):
    """Trains benignly for two rounds; from then on the kernel seems to run out of memory."""

    def train(self, job: LocalJob) -> float:
        """SIGKILL from round 2 on."""
        if job.round >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(job)
