"""FLDetector (Zhang, Cao, Jia and Gong, KDD 2022): clients whose updates defy prediction are rejected.

An honest client's next update is predicted from its last one and the global model's last move: g_i + H (w_t - w_{t-1}),
H from the last N rounds by L-BFGS (compact form: Byrd, Nocedal and Schnabel, 1994). The distance of the real update
from it, divided by the round's mean, is a round's score; scores are averaged over N rounds. If the gap statistic sees
more than one cluster of scores, k-means splits them in two, and who is in the upper half is rejected.

Deviations and open points: a rejected client is left out of the round; the paper stops, drops it for good and trains
anew. A round's clients are a sample here: a client is predicted from its last update, however old, and one that has
none is not judged. The judged are now few, now many, so that the paper's score, a share of the round's sum, would
accuse those who were judged among few; the multiple of the mean is that share times their number. Scoring starts with
the third round and judging with the first score (FLPoison waits 50 rounds and then for windows), as runs here are
shorter; one or two judged clients are never rejected. The gap statistic has the mean of logarithms (the authors' code:
the logarithm of the mean).
The memory holds one update per client seen, 4 d bytes each. A singular system is solved by least squares. k-means and
the gap statistic are those of `auror.py` and `points.py`; the number of clusters is the smallest k of the gap
criterion. Trainable parameters are predicted; BatchNorm statistics are averaged over the accepted clients, counters
stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from flame.defenses.auror import two_means
from flame.defenses.base import average, uniform
from flame.defenses.per_client import recall, remember
from flame.defenses.points import gap_clusters
from flame.round.types import ServerState, Updates, Verdict

LAST = "defense/fldetector/update"  # per client: its last update
SCORES = "defense/fldetector/scores"  # per client: how many there are, then the last N, newest first
AGGREGATES = "defense/fldetector/aggregates"  # [<= N + 1, d] float32, how the global model moved, newest last


@dataclass(frozen=True)
class FLDetector:
    """The mean of the clients that do what they were expected to."""

    window: int  # N, rounds of L-BFGS pairs and of scores, >= 1
    most_clusters: int  # K of the gap statistic, >= 2
    references: int  # B, >= 1, uniform samples that the gap statistic compares with

    def __post_init__(self) -> None:
        for key, least in (("window", 1), ("most_clusters", 2), ("references", 1)):
            if getattr(self, key) < least:
                raise ValueError(
                    f"defense.{key}={getattr(self, key)} is out of range: must be a whole number >= {least}"
                )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        trainable, memory, ids = updates.layout.span("weights_only"), state.memory, updates.ids
        rows = updates.rows[:, trainable]
        record = recall(memory, SCORES, ids, 1 + self.window)  # [n, 1 + N]
        past = memory.get(AGGREGATES, rows[:0])  # [k, d]
        known = torch.isin(ids, memory.get(f"{LAST}/ids", ids[:0]))
        if len(past) > 1:
            predicted = recall(memory, LAST, ids, rows.shape[1]) + hessian_product(past)
            record = torch.where(known[:, None], scored(record, relative_errors(rows, predicted, known)), record)
        accepted = self.expected(record, stream)
        shares = uniform(accepted)
        row = average(state, updates, shares)
        memory = remember(remember(memory, LAST, ids, rows), SCORES, ids, record)
        moved = (row - state.row)[None, trainable]
        memory = {**memory, AGGREGATES: torch.cat([past, moved])[-self.window - 1 :]}
        info = {"fldetector/judged": float((record[:, 0] > 0).sum())}
        return Verdict(replace(state, row=row, memory=memory), shares, info)

    def expected(self, record: Tensor, stream: Generator) -> Tensor:
        """[n] bool, everyone but the upper of two clusters of mean scores, where there are clusters at all."""
        judged = record[:, 0] > 0
        means = (record[:, 1:].double().sum(dim=1) / record[:, 0].clamp(1, self.window))[judged, None]
        accepted = torch.ones(len(record), dtype=torch.bool)
        if len(means) > 2 and gap_clusters(means, self.most_clusters, self.references, stream) > 1:
            accepted[judged] = ~two_means(means)[1][:, 0]
        return accepted


def scored(record: Tensor, scores: Tensor) -> Tensor:
    """The `record` [n, 1 + N] with `scores` [n] as the newest and the oldest forgotten."""
    return torch.cat([record[:, :1] + 1, scores[:, None].float(), record[:, 1:-1]], dim=1)


def relative_errors(rows: Tensor, predicted: Tensor, known: Tensor) -> Tensor:
    """[n] float64, distances of `rows` from `predicted` [n, d] over their mean among the `known` [n]; 0 for others."""
    errors = torch.linalg.vector_norm(rows - predicted, dim=1, dtype=torch.float64) * known
    return errors * known.sum() / errors.sum().clamp_min(torch.finfo(torch.float64).tiny)


def hessian_product(aggregates: Tensor) -> Tensor:
    """[d] float32, H (w_t - w_{t-1}) from how the global model moved in the last k >= 2 rounds, [k, d].

    The pairs of L-BFGS are s_j, a round's move, and y_j, by how much the next one differs from it; the model's last
    move is the last aggregate. All are combinations of the aggregates, whose k x k inner products suffice.
    """
    wide = aggregates.double()
    gram = wide @ wide.T
    ss, sy = gram[:-1, :-1], (gram[:, 1:] - gram[:, :-1])[:-1]  # [k - 1, k - 1]
    v = gram[:, -1]
    sigma = (sy[-1, -1] / ss[-1, -1]).nan_to_num(0, 0, 0)
    lower, diagonal = sy.tril(-1), sy.diagonal().diag()
    middle = torch.cat([torch.cat([sigma * ss, lower], dim=1), torch.cat([lower.T, -diagonal], dim=1)])
    solved = torch.linalg.pinv(middle) @ torch.cat([sigma * v[:-1], v.diff()])
    along_s, along_y = solved.chunk(2)
    weights = torch.zeros(len(wide), dtype=torch.float64)  # of the aggregates in the product
    weights[-1] += sigma
    weights[:-1] -= sigma * along_s - along_y
    weights[1:] -= along_y
    return (weights @ wide).float()
