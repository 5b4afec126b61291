"""Local model poisoning (Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated
Learning", USENIX Security 2020, section 3), with partial knowledge: the colluders know their own before-attack models
only, and take the sign s of their mean update for the direction in which the global model is about to move.

* `krum` (section 3.2): all send -lambda * s, as far off as a simulated Krum over the crafted and the before-attack
  updates still selects. lambda starts at the bound of theorem 1 and is halved; if it falls under the threshold, one
  more crafted copy joins the simulation.
* `trimmed_mean` (section 3.3; also for the median): each coordinate is drawn from 3 to 4 standard deviations beyond the
  mean, against the direction.

Deviations: crafted copies are identical (the paper moves them by a small epsilon); theorem 1's sums run over the
colluders' updates, the only ones known; everything is in differences to the global model, which changes no distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Scene, require, require_two
from attacks.collusion import mean_and_std
from attacks.crafting import Crafting
from flame.geometry.products import squared_distances

FORMS = ("krum", "trimmed_mean")
NEAR, FAR = 3.0, 4.0  # standard deviations between which the trimmed-mean form draws (section 3.3)


@dataclass(frozen=True)
class Fang(Crafting):
    """Against the direction in which the global model moves."""

    form: str  # krum | trimmed_mean, the rule that the attacker assumes
    threshold: float  # on lambda, > 0; used by the krum form

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.form in FORMS, "form", repr(self.form), f"one of {', '.join(FORMS)}")
        require(self.threshold > 0, "threshold", self.threshold, "> 0")

    def check_round(self, clients: int, colluders: range) -> None:
        """A ValueError for a single colluder in the trimmed-mean form; in the other one it has a direction to go."""
        if self.form == "trimmed_mean":
            require_two(self, clients, colluders, "has no spread to go beyond")

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """Updates that move against s."""
        mean, std = mean_and_std(own)
        s = torch.where(mean > 0, 1.0, -1.0)
        if self.form == "krum":
            return -largest_lambda(own, s, scene.clients, self.threshold) * s
        beyond = NEAR + (FAR - NEAR) * torch.rand(own.shape, generator=stream)  # [m, d]
        return mean - s * beyond * std


def largest_lambda(own: Tensor, s: Tensor, clients: int, threshold: float) -> float:
    """The first lambda, from the bound downwards, at which simulated Krum selects -lambda * s; own [m, d], s [d].

    Supporters are added one by one while even the threshold fails; when all m colluders send the crafted update and
    it is still not selected, the last lambda is sent for want of a better one.
    """
    gram = (own @ own.T).double()
    along, dimensions = (own @ s).double(), len(s)
    start = upper_bound(gram, dimensions, clients)
    lam = start
    for copies in range(1, len(own) + 1):
        lam = start
        while lam > threshold:
            to_crafted = gram.diagonal() + 2 * lam * along + lam**2 * dimensions  # [m] ||u_i + lambda s||^2
            if krum_selects_crafted(squared_distances(gram), to_crafted.clamp_min(0), copies):
                return lam
            lam /= 2
    return lam


def upper_bound(gram: Tensor, dimensions: int, clients: int) -> float:
    """Theorem 1's bound on lambda from the Gram matrix [m, m] of the colluders' updates among n clients."""
    m = len(gram)
    nearest = squared_distances(gram).sort(1).values[:, 1 : 1 + max(0, clients - m - 2)].sum(1)  # [m]
    spread = nearest.min() / (max(1, clients - 2 * m - 1) * dimensions)
    return math.sqrt(spread) + math.sqrt(gram.diagonal().max() / dimensions)


def krum_selects_crafted(among: Tensor, to_crafted: Tensor, copies: int) -> bool:
    """Whether Krum (Blanchard et al., NeurIPS 2017) picks the crafted update over all before-attack ones.

    Squared distances among the m before-attack updates [m, m] and from each to the crafted one [m]. Krum is told of
    `copies` Byzantine clients among m + copies, so a score sums the m - 2 nearest (at least one).
    """
    m = len(among)
    count = max(1, m - 2)
    crafted = torch.cat([to_crafted.new_zeros(copies - 1), to_crafted]).sort().values[:count].sum()
    others = torch.cat([among, to_crafted[:, None].expand(m, copies)], 1).sort(1).values  # column 0: to itself
    return bool(crafted <= others[:, 1 : 1 + count].sum(1).min())
