"""Attacks whose colluders send something else than what they trained, made from their own benign updates.

An attack says what, for the columns that it is given; which columns those are is `statistics`:

* `honest`: the trainable ones. BatchNorm statistics are sent as trained. The papers define these attacks for gradients
  or weights and say nothing of statistics: the choice is ours.
* `crafted`: those and the statistics, as one vector, as FLPoison has it (vio1etus/FLPoison, model_utils.py at eb74fb2).
  A crafted variance below 0 would give its sender away, to the server's guard (`guard/implausible`) and as NaN. So it
  is raised to 0, the least that a benign client can send. Nothing else keeps what is crafted within the honest range:
  `sign_flip`, `ipm` and `gaussian` send variances of 0 in many channels.

Counters are sent as trained in either.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Crafted, Scene, require

COLUMNS = {"honest": "weights_only", "crafted": "all_state"}  # scope of the row that is crafted


@dataclass(frozen=True)
class Crafting(Attack):
    """A subclass has the formula."""

    statistics: str = field(default="honest", kw_only=True)  # honest | crafted; older runs have no such key: honest

    def __post_init__(self) -> None:
        require(self.statistics in COLUMNS, "statistics", repr(self.statistics), f"one of {', '.join(COLUMNS)}")

    @abstractmethod
    def formula(self, own: Tensor, scene: Scene, stream: Generator) -> Tensor:
        """[m, k], or [k] for all, in place of the colluders' benign columns [m, k], which it leaves as they are."""

    def columns(self, scene: Scene) -> slice:
        """The part of a row that is crafted."""
        return scene.layout.span(COLUMNS[self.statistics])

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """The formula in the columns that `statistics` names; the others as trained."""
        columns = self.columns(scene)
        crafted = rows.clone()
        crafted[:, columns] = self.formula(rows[:, columns], scene, stream)
        if self.statistics == "crafted":
            variances = scene.layout.spans.get("running_var", slice(0, 0))
            crafted[:, variances] = torch.maximum(crafted[:, variances], -scene.state.row[variances])
        return Crafted(crafted, {})
