"""Mimic (Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022):
all colluders send what one honest client sends, so that its data counts m + 1 times and the others' less. Nothing about
such an update is unusual.

Whom they mimic, as in the authors' code (epfml/byzantine-robust-noniid-optimizer 0e27349, codes/attacks/mimic.py): z is
the direction in which the honest updates differ most. One step of the power method, from a random vector, begins it,
and in round t of the `warmup` mu and z move on by 1 / (1 + t). In each of those rounds the client with the largest
<x, z> is mimicked; afterwards, always the last of them.

Threat model: the colluders see all honest updates, as in the paper (`Scene.sight`).

Deviations: where a round is a sample of the clients, the one to be mimicked may not take part; then it is the client
with the largest <x, z> among those that do (the authors have all clients in each round). Updates point against
gradients; z and -z are alike until the random start chooses, so that nothing depends on it. Without a spread z stays
the random vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Crafted, Scene, require, seen
from attacks.crafting import Crafting

KEY = "attack/mimic"  # memory: <KEY>/rounds [], /mean [k], /direction [k], /target [] client number


@dataclass(frozen=True)
class Mimic(Crafting):
    """What one honest client sends, m times more."""

    warmup: int  # rounds in which the client is still looked for, >= 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.warmup >= 1, "warmup", self.warmup, "a whole number >= 1")

    @property
    def omniscient(self) -> bool:
        """The paper grants it."""
        return True

    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """The chosen client's columns for all."""
        return self._chosen(scene, stream)[0]

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """What is crafted, and what was learned about whom to mimic."""
        crafted = super().craft(rows, scene, stream)
        return Crafted(crafted.rows, self._chosen(scene, stream)[1])

    def _chosen(self, scene: Scene, stream: Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[k] the columns of the client to mimic, and the memory of the choice; the columns of a round of attackers
        alone are 0."""
        sight = seen(scene)
        honest = sight.others[:, self.columns(scene)]  # [n - m, k]
        ids, known = sight.updates.ids[~sight.mine], scene.state.memory
        if not len(honest):
            return honest.new_zeros(honest.shape[1]), {}
        t = int(known.get(f"{KEY}/rounds", torch.tensor(0)))
        memory = dict(known) if t >= self.warmup else learned(honest, known, t, stream)
        place = int((honest.double() @ memory[f"{KEY}/direction"].double()).argmax())
        if t >= self.warmup and bool((ids == known[f"{KEY}/target"]).any()):
            place = int((ids == known[f"{KEY}/target"]).int().argmax())
        elif t < self.warmup:
            memory[f"{KEY}/target"] = ids[place].clone()
        memory[f"{KEY}/rounds"] = torch.tensor(t + 1)
        return honest[place], {key: value for key, value in memory.items() if key.startswith(KEY)}


def learned(honest: Tensor, known: Mapping[str, Tensor], t: int, stream: Generator) -> dict[str, Tensor]:
    """mu and z after round t of the warm-up, from honest updates [n, k]."""
    average = honest.mean(0)
    if t == 0:
        start = torch.randn(len(average), generator=torch.Generator().set_state(stream.get_state()))
        return {f"{KEY}/mean": average, f"{KEY}/direction": power_step(honest - average, start)}
    mean = (t * known[f"{KEY}/mean"] + average) / (1 + t)
    z = known[f"{KEY}/direction"]
    z = (t * z + power_step(honest - mean, z)) / (1 + t)
    return {f"{KEY}/mean": mean, f"{KEY}/direction": z / z.norm()}


def power_step(centred: Tensor, z: Tensor) -> Tensor:
    """[k] of length 1, sum_i <c_i, z> c_i of `centred` updates [n, k]; z [k] at length 1 where that is 0."""
    wide, z = centred.double(), z.double()
    moved = wide.T @ (wide @ z)
    return (moved / moved.norm() if bool(moved.norm() > 0) else z / z.norm()).float()
