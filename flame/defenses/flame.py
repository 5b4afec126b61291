"""FLAME (Nguyen et al., USENIX Security 2022, Algorithm 1): cluster, clip, average, add noise.

The steps are chosen once, when the defense is built (`flame/defenses/steps/` holds them with their variants), so that
`Flame.__call__` reads like the algorithm. `defense=flame_weights_only` is Algorithm 1; `flame_all_state` differs from
it in `vector.scope` alone; every other `flame_*` is a public implementation as its code stands.

Deviations and open points: `min_samples = 1` and `allow_single_cluster` are what public code uses, not traced to the
paper; BatchNorm statistics, which the paper does not mention, are averaged over the accepted clients, neither clipped
nor noised; integer counters stay the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Generator

from flame.defenses.steps.aggregate import Aggregate
from flame.defenses.steps.clip import Clip
from flame.defenses.steps.noise import Noise
from flame.defenses.steps.vector import Cluster, Vector
from flame.round.types import ServerState, Updates, Verdict


@dataclass(frozen=True)
class Flame:
    """Algorithm 1 for n >= 1 finite updates. With n = 1 or 2 there is no majority: everyone is accepted."""

    vector: Vector
    cluster: Cluster
    clip: Clip
    aggregate: Aggregate
    noise: Noise

    def check_clients(self, clients: int) -> None:
        """See `Cluster.check_clients`."""
        self.cluster.check_clients(clients)

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """One round: the next global model, who is in it, and the bound that was used."""
        distances = self.vector.distances(updates)  # [n, n] c_ij
        accepted = self.cluster.accept(distances)  # [n] the majority cluster
        updates = self.clip.centre(updates)  # W_i - G
        norms = self.clip.norms(updates)  # [n] e_i, of rejected clients too
        bound = self.clip.bound(norms, accepted)  # S_t
        factors = self.clip.factors(norms, bound, accepted)  # [n] min(1, S_t / e_i)
        clipped = self.clip.per_block(factors)  # the same for the trainable blocks, 1 for the others
        shares = self.aggregate.shares(updates, accepted)  # [n] 1 / L for each of the L accepted, else 0
        mean = self.aggregate.row(updates, shares, clipped)  # G + sum of shares * factors * updates
        counters = self.aggregate.counter_row(updates, accepted, clipped)  # the server's
        std = self.noise.std(bound, shares)  # lambda S_t
        row = self.noise.add(mean, std, updates.layout, stream)  # + N(0, (lambda S_t)^2)
        info = {
            "flame/clip_bound": bound,
            "flame/noise_std": std,
            "flame/clipped_share": float((factors[accepted] < 1).double().mean()),
        }
        return Verdict(replace(state, row=row, counters=counters), shares, info, factors)
