"""FLIP (Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in Federated Learning", ICLR 2023),
the server's part: the mean of all updates, and no answer where the model is not sure.

Whoever uses the model drops an answer whose probability is below `answer_confidence`: it counts as right neither in MA
nor in BA. That is said by the attribute of that name, which the evaluation asks for (`Confident` in
flame/round/evaluate.py).
What hardens the model is the clients' part, `client=flip`: without it this is averaging, evaluated strictly.

Deviations and open points: after the authors' code (test.py and helper.py in KaiyuanZh/FLIP at 99a2fda3). Global
learning rate 1 (there, `lr_para` = 0.1 of the mean: `server.lr=0.1`). Loss and answers by class are those of all
images, whatever the model's confidence. BatchNorm statistics are averaged, counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator

from flame.defenses.base import average, uniform
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class FLIP:
    """The mean of all updates; its model answers where it is sure."""

    answer_confidence: float  # probability from which an answer counts, [0, 1)

    def __post_init__(self) -> None:
        if not 0 <= self.answer_confidence < 1:
            raise ValueError(
                f"defense.answer_confidence={self.answer_confidence} is out of range: must be in [0, 1) (0: all count)"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone is accepted."""
        shares = uniform(torch.ones(len(updates), dtype=torch.bool))
        return Verdict(replace(state, row=average(state, updates, shares)), shares)
