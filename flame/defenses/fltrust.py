"""FLTrust (Cao et al., NDSS 2021, equations 2 to 4): the server trains too, and trusts clients by their angle to it.

Trust is ReLU(cos(U_i, U_0)), U_0 the server's own update; every update is scaled to the length of U_0, and the mean is
weighted by trust.

The server's images (`root_samples`) are drawn at random from the training set before the clients' shares are dealt,
and belong to no client; the server trains on them as a benign client does.

Deviations and open points: global learning rate 1. Cosines and lengths are those of the trainable parameters;
BatchNorm statistics are averaged by trust, unscaled, and counters stay the server's. An update shorter than 1e-20 has
no direction and no trust. If nobody is trusted (U_0 of length 0 included) the model stays as it is. As factors can
exceed 1, they are not reported as clipping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Generator

from flame.defenses.base import average
from flame.round.types import ServerState, Updates, Verdict

SHORTEST_NORM = 1e-20  # keeps the factor to the server's length within float32


@dataclass(frozen=True)
class FLTrust:
    """The mean of equally long updates, weighted by trust."""

    root_samples: int  # images of the server, >= 1

    def __post_init__(self) -> None:
        if self.root_samples < 1:
            raise ValueError(f"defense.root_samples={self.root_samples} is out of range: must be >= 1 (the paper: 100)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone at an acute angle to the server is accepted.

        Raises:
            ValueError: the round has no update of the server's own.
        """
        if updates.root is None:
            raise ValueError("defense=fltrust needs the server's own update, which this round was recorded without")
        trainable = updates.layout.span("weights_only")
        root = updates.root[trainable]
        length, norms = float(root.double().norm()), updates.geometry.norms("weights_only")
        cosines = (updates.rows[:, trainable] @ root).double() / (norms * length)
        trust = cosines.relu().nan_to_num(0, 0, 0).masked_fill(norms < SHORTEST_NORM, 0)
        info = {"fltrust/mean_trust": float(trust.mean()), "fltrust/root_norm": length}
        if not bool(trust.any()):
            return Verdict(state, trust, info)
        shares = trust / trust.sum()
        factors = length / norms.clamp_min(SHORTEST_NORM)
        return Verdict(replace(state, row=average(state, updates, shares, factors)), shares, info)
