"""A little is enough (Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed
Learning", NeurIPS 2019, algorithm 3): all colluders send mean + z * std of their own benign updates, coordinate by
coordinate, which stays within the spread of the benign ones. The authors subtract from gradients, which is this in
updates.

`z: null` is the paper's z_max, the largest z that a majority of clients lies beyond in expectation. It is 0 or below
where colluders are few: at n = 10 it is 0 for two, 0.18 for three and 0.43 for four; at n = 50, 0.25 for ten. The run
is refused where it is 0, since all would send their benign mean.

With `search` (attack=alie_optimal) z is the factor that hurts the rule in force most, as in ByzFL's Optimal ALIE: the
attacker then knows that rule and sees all honest updates, whose mean and deviation it takes (`line_search.py`).

The authors' code has a fixed z, 1.5 unless told otherwise, and the deviation of the population
(moranant/attacking_distributed_learning, malicious.py at 7c4f5eb). So has ByzFL, of a sample (LPD-EPFL/byzfl,
attacks.py at 16cd795). FLPoison takes z_max, below 0 too, and the updates of all benign clients (vio1etus/FLPoison,
attackers/alie.py at eb74fb2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

from torch import Generator, Tensor

from attacks.base import Scene, require, require_two
from attacks.collusion import mean_and_std
from attacks.crafting import Crafting
from attacks.line_search import LineSearch, honest_moments


@dataclass(frozen=True)
class ALIE(Crafting):
    """The mean, a few standard deviations off."""

    z: float | None  # standard deviations, > 0; None: z_max
    search: LineSearch | None = field(default=None, kw_only=True)  # finds z in its place; None: an attacker without it

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.z is None or self.z > 0, "z", self.z, "null (z_max) or > 0")

    @property
    def omniscient(self) -> bool:
        """With a search alone."""
        return self.search is not None

    def check_round(self, clients: int, colluders: range) -> None:
        """A ValueError for a single colluder, or if z_max is to be taken and is 0; a search needs neither."""
        if self.search is not None:
            return
        require_two(self, clients, colluders, "has no spread to hide in")
        if self.z is None and not any(z_max(clients, m) for m in colluders):
            raise ValueError(
                f"attack.z=null is z_max, 0 for {colluders[-1]} colluders among {clients} clients, so that all would"
                " send their benign mean: must be a number, such as the authors' 1.5, or have more colluders"
            )

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """mean + z * std for all."""
        if self.search is not None:
            columns = self.columns(scene)
            mean, std = honest_moments(scene, columns)
            return mean + self.search.factor(lambda factor: mean + factor * std, scene, columns, stream) * std
        mean, std = mean_and_std(own)
        z = z_max(scene.clients, len(own)) if self.z is None else self.z
        return mean + z * std


def z_max(n: int, m: int) -> float:
    """The z with Phi(z) = (n - m - s) / (n - m), where s = n//2 + 1 - m supporters are missing for a majority.

    0 where that would be negative, or where the colluders are a majority already.
    """
    benign, supporters = n - m, n // 2 + 1 - m
    if not 0 < supporters < benign:
        return 0.0
    return max(0.0, NormalDist().inv_cdf((benign - supporters) / benign))
