"""An attack on FLAME by somebody who has read it; ours.

Threat model. The attacker runs m >= 2 of the n clients of a round, which tell each other everything, and knows the
global model and all of FLAME: the clustering on cosine distances of models, its vector, the majority size, the bound at
the median norm. It does not see the other clients' data or updates, nor the noise, and cannot choose when its clients
are drawn.

1. Each compromised client trains what it would honestly send, b_i, and goes on from there on the inner attack's images;
   the backdoor is the mean delta of what that adds, over the colluders.
2. All send the same x = c + lambda delta, c the mean of the b_i, its trainable part brought to their median norm: what
   FLAME's bound is expected to be, so that clipping takes nothing and nothing is given away. Sending it m times
   makes a nucleus that HDBSCAN's single linkage grows around.
3. lambda is the largest in [0, reach], by bisection, at which x is not expected further from an unseen benign client
   than `budget` times what two benign clients are from each other. From D, the mean cosine distance of the b_i to each
   other, and E, that of x to the b_i: an unseen client is E + D / m away, because x is built around the b_i's own
   mean (for independent updates of variance s^2 around a common mean D = 2 s^2, and ||c - b_i||^2 falls short of
   ||c - b||^2 by 2 s^2 / m in expectation). With `adapt_to: both` this holds in both of FLAME's vectors. Where `reach`
   is met first, x stays below the budget.

`statistics: benign` sends the benign mean of BatchNorm's running mean and variance, `trained` moves them along with
delta. Counters are those of benign training. One colluder has no D, and would send its benign
update: such a run is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacks.around import Around
from attacks.base import Attack, Crafted, Scene, require, require_two, unpoisoned
from attacks.collusion import benign_updates
from attacks.crafting import Crafting
from attacks.differences import same_rows
from attacks.snapshot import Snapshot
from flame.data.samples import Dataset
from flame.geometry.products import Geometry
from flame.round.client import LocalJob

VECTORS = {"weights_only": ("weights_only",), "all_state": ("all_state",), "both": ("weights_only", "all_state")}
STATISTICS = ("benign", "trained")
HALVINGS = 30  # of the interval of lambda


@dataclass(frozen=True)
class FlameAware(Around):
    """As much of the backdoor as fits between benign clients."""

    own_training = True

    adapt_to: str  # weights_only | all_state | both, FLAME's clustering vectors
    budget: float  # > 0, in mean distances between benign clients
    reach: float | None  # largest lambda, > 0; None: n / m
    statistics: str  # benign | trained

    def __post_init__(self) -> None:
        require(self.adapt_to in VECTORS, "adapt_to", repr(self.adapt_to), f"one of {', '.join(VECTORS)}")
        require(self.budget > 0, "budget", self.budget, "> 0")
        require(self.reach is None or self.reach > 0, "reach", self.reach, "null (n / m) or > 0")
        require(self.statistics in STATISTICS, "statistics", repr(self.statistics), f"one of {', '.join(STATISTICS)}")

    def check_round(self, clients: int, colluders: range) -> None:
        """A ValueError for a single colluder."""
        require_two(self, clients, colluders, "has no distance to another")
        super().check_round(clients, colluders)

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The inner attack is prepared.

        Raises:
            ValueError: it is not in the data nor in the training, but in what it would send instead.
        """
        if isinstance(self.backdoor, Crafting):
            raise ValueError(
                f"attack.backdoor={type(self.backdoor).__name__} crafts what it sends, and FlameAware sends something"
                " else in its place: must be a way to poison data, such as badnets or label_flip"
            )
        return super().prepare(dataset, stream)

    def train(self, job: LocalJob) -> float:
        """Step 1: the benign update is noted, the model ends where the backdoor has taken it."""
        start = Snapshot.of(job.model)
        job.fit(job.images)
        benign = Snapshot.of(job.model)
        job.notes["benign"] = benign.row - start.row
        loss = super().train(job)
        replace(Snapshot.of(job.model), counters=benign.counters).load(job.model)
        return loss

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Steps 2 and 3; what the inner attack remembers (a learned trigger) is kept."""
        benign = benign_updates(scene)
        delta = (rows - benign).mean(0)
        if self.statistics == "benign":
            delta[scene.layout.trainable :] = 0
        lam = self._largest(benign, delta, scene)
        sent = moved(benign, delta, lam, scene).repeat(len(rows), 1)
        return replace(super().craft(rows, scene, stream), rows=sent)

    def idle(self, sent: Tensor, rows: Tensor, scene: Scene) -> Tensor:
        """All where nobody poisoned anything; and who sends no delta, just the benign mean at another length."""
        if all(map(unpoisoned, scene.notes)):
            return torch.ones(len(sent), dtype=torch.bool)
        benign = benign_updates(scene)
        still = moved(benign, torch.zeros_like(benign[0]), 0.0, scene).expand_as(sent)
        return same_rows(sent, still, scene.layout.trainable, mean=False)

    def _largest(self, benign: Tensor, delta: Tensor, scene: Scene) -> float:
        """Step 3. If not even lambda = 0 keeps to the budget, 0 is as near as it gets."""
        if len(benign) < 2:
            return 0.0
        low, high = 0.0, scene.clients / len(benign) if self.reach is None else self.reach
        if self._fits(moved(benign, delta, high, scene), benign, scene):
            return high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fits = self._fits(moved(benign, delta, middle, scene), benign, scene)
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _fits(self, x: Tensor, benign: Tensor, scene: Scene) -> bool:
        return all(excess(x, benign, scene, scope) <= self.budget for scope in VECTORS[self.adapt_to])


def moved(benign: Tensor, delta: Tensor, lam: float, scene: Scene) -> Tensor:
    """[d + b] step 2, from benign updates [m, d + b]."""
    d = scene.layout.trainable
    x = benign.mean(0) + lam * delta
    x[:d] *= benign[:, :d].norm(dim=1).quantile(0.5) / x[:d].norm().clamp_min(torch.finfo(x.dtype).tiny)
    return x


def excess(x: Tensor, benign: Tensor, scene: Scene, scope: str) -> float:
    """(E + D / m) / D of step 3 for benign updates [m, d + b], m >= 2."""
    distances = cosine_distances(torch.cat([x[None], benign]), scene, scope)
    m = len(benign)
    among = distances[1:, 1:].sum() / (m * (m - 1))
    return float((distances[0, 1:].mean() + among / m) / among)


def cosine_distances(rows: Tensor, scene: Scene, scope: str) -> Tensor:
    """[k, k] between the local models behind updates [k, d + b], as FLAME computes them."""
    counters = torch.zeros(len(rows), len(scene.state.counters), dtype=torch.int64)
    measured = Geometry.measure(scene.layout, scene.state.row, rows, scene.state.counters, counters)
    return measured.cosine_distances(scope)
