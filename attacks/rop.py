"""ROP, relocated orthogonal perturbation (Ozfatura, Ozfatura, Kupcu and Gunduz, "Byzantines can also Learn from
History: Fall of Centered Clipping in Federated Learning", IEEE TIFS 2024), after the code of its group's library
(CRYPTO-KU/FL-Byzantine-Library 32922ca, attacks/rop.py), which decides here: the paper was not at hand.

Centered clipping clips around the last aggregate, so all colluders send that aggregate plus a perturbation at an angle
to where the model goes, which it takes for near:

    place      = pi v + (1 - pi) mu            v the last aggregate, 0 in the first round; mu the honest mean
    reference  = lambda v + (1 - lambda) mu    mu in the first round
    p          = the vector of ones, less its part along the reference, at length 1
    sent       = place + z (cos(angle) reference / ||reference|| - sin(angle) p)

The authors add sin(angle) p to gradients, whose signs are the other way round.

Threat model: the colluders see all honest updates (`Scene.sight`) and remember the global models they were sent.

Deviations: their clients send momenta, ours send updates; z is a length in these. v is the step of the global model
since it was last seen. `z: null` is their z_max from the numbers of clients, as in `alie`; where it is 0 the run is
refused. A reference of length 0 leaves the vector of ones as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.alie import z_max
from attacks.base import Crafted, Scene, require
from attacks.crafting import Crafting
from attacks.line_search import honest_moments

SEEN = "attack/rop"  # memory: [d + b] the global model it was last sent


@dataclass(frozen=True)
class ROP(Crafting):
    """The last aggregate, and a step aside."""

    z: float | None  # L2 length of the perturbation, > 0; None: z_max
    angle: float  # degrees between it and the reference, in [0, 360)
    pi: float  # share of the last aggregate in the place, in [0, 1]
    reference: float  # lambda, its share in the reference, in [0, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.z is None or 0 < self.z < math.inf, "z", self.z, "null (z_max) or in (0, inf)")
        require(0 <= self.angle < 360, "angle", self.angle, "in [0, 360), degrees")
        require(0 <= self.pi <= 1, "pi", self.pi, "in [0, 1], a share")
        require(0 <= self.reference <= 1, "reference", self.reference, "in [0, 1], a share")

    @property
    def omniscient(self) -> bool:
        """The authors grant it."""
        return True

    def check_round(self, clients: int, colluders: range) -> None:
        """A ValueError if z_max is to be taken and is 0."""
        if self.z is None and not any(z_max(clients, m) for m in colluders):
            raise ValueError(
                f"attack.z=null is z_max, 0 for {colluders[-1]} colluders among {clients} clients, so that nothing"
                " would be perturbed: must be a number, or have more colluders"
            )

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """One vector for all."""
        columns = self.columns(scene)
        mean, _ = honest_moments(scene, columns)
        now, before = scene.state.row[columns], scene.state.memory.get(SEEN)
        last = torch.zeros_like(now) if before is None else now - before[columns]
        z = z_max(scene.clients, len(own)) if self.z is None else self.z
        reference = mean if before is None else self.reference * last + (1 - self.reference) * mean
        place = self.pi * last + (1 - self.pi) * mean
        return place + z * aside(reference, math.radians(self.angle))

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """The global model is remembered, too."""
        return Crafted(super().craft(rows, scene, stream).rows, {SEEN: scene.state.row.clone()})


def aside(reference: Tensor, angle: float) -> Tensor:
    """[k] of length 1 at this angle (in radians) to the reference [k], away from the vector of ones for small ones."""
    wide = reference.double()
    unit = wide / wide.norm().clamp_min(torch.finfo(wide.dtype).tiny)
    ones = torch.ones_like(wide)
    orthogonal = ones - (ones @ unit) * unit
    orthogonal = orthogonal / orthogonal.norm().clamp_min(torch.finfo(wide.dtype).tiny)
    return (math.cos(angle) * unit - math.sin(angle) * orthogonal).float()
