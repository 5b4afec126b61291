"""What flows through a round: samples in, rows of differences between engine and defense, a verdict out.

Letters used everywhere: n clients of a round, m compromised ones, d trainable parameters, b BatchNorm statistics,
N images, B batch, C H W image axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from flame.data.samples import Samples
from flame.geometry.guard import guard
from flame.geometry.layout import StateLayout
from flame.geometry.products import WIDE_ELEMENTS, Geometry, weighted_sum
from flame.round.device import copied


@dataclass(frozen=True)
class ServerState:
    """The whole of what a federation remembers between two rounds; a checkpoint is exactly this."""

    row: Tensor  # [d + b] float32, the global model in the layout's order
    counters: Tensor  # [c] int64, num_batches_tracked of each BatchNorm layer
    round: int = 0  # rounds finished
    memory: Mapping[str, Tensor] = field(default_factory=dict)  # history of a defense or attack, "<owner>/<name>"

    @classmethod
    def of(cls, layout: StateLayout, model: nn.Module) -> ServerState:
        """A federation that starts from this model."""
        (row,), (counters,) = layout.zeros(1)
        layout.flatten(model.state_dict(), row, counters)
        return cls(row, counters)


@dataclass(frozen=True)
class Cohort:
    """The clients of one round, with the truth that only the engine and the score may see."""

    ids: Tensor  # [n] int64, client numbers
    compromised: Tensor  # [n] bool


Fit = Callable[[nn.Module, Tensor, Tensor], None]  # model, x [N, ...] as it reads it, y [N]: trains in place
Notes = Mapping[str, Tensor]  # what a compromised client tells its accomplices of a round, by name; not the server

PER_CLIENT = ("ids", "rows", "counters", "samples", "losses", "recorded", "lab")  # fields of Updates, by client


class Lab(Protocol):
    """Where a defense with `needs_lab` tries models, in float32 and evaluation mode. Only numbers come out of it.

    A model is a whole row [d + b], global model plus update; integer counters play no part in evaluation. Models are
    taken one at a time, so that a generator of them costs the memory of one. A sample `x` is raw, as the run stores its
    own: an image [C, H, W] uint8, a text [T] of tokens, a row of features [F] (`flame/data/samples.py`).
    """

    def noise(self, count: int, stream: Generator) -> Tensor:
        """[count, ...], random samples: uniform pixels or tokens, normal features (`flame/data/reading.py`)."""

    def __getitem__(self, index: Tensor | slice) -> Lab:
        """The same laboratory with only these of its clients as validators."""

    @property
    def layout(self) -> StateLayout:
        """Of the models' rows."""

    @property
    def root(self) -> Samples:
        """The server's own samples, of a defense with `root_samples`."""

    def logits(self, models: Iterable[Tensor], x: Tensor) -> Tensor:
        """[k, N, classes] float32 of k models on samples `x` [N, ...]; whatever a broken model answers.

        Of a text whose every token is asked: the answer at the last one, which has read all others.
        """

    def features(self, models: Iterable[Tensor], x: Tensor) -> Tensor:
        """[k, N, p] float32, what the output layer of k models gets of samples `x` [N, ...], flat; of all tokens."""

    def trained(self, row: Tensor, samples: Samples, fit: Fit) -> Tensor:
        """[d + b], what `fit` makes of the model of `row` [d + b], which is called with samples as it reads them."""

    def class_losses(self, models: Iterable[Tensor], most: int) -> Tensor:
        """[v, k, classes] float64, what each of the round's clients says of k models on its own private shard.

        Mean cross entropy over the first `most` of its labels of each class (of a text every token may have one): NaN
        if it has none, inf if a model is broken. Compromised clients say what they like.
        """


@dataclass(frozen=True)
class Updates:
    """What the clients sent, always as differences: local model minus global model."""

    layout: StateLayout
    base: Tensor  # [d + b] float32, the global row the differences are taken from
    base_counters: Tensor  # [c] int64
    ids: Tensor  # [n] int64, client numbers: a server knows who sent what
    rows: Tensor  # [n, d + b] float32
    counters: Tensor  # [n, c] int64, the clients' own values (not differences)
    samples: Tensor  # [n] int64, training images of each client
    losses: Tensor  # [n] float64, local training loss, for the record only: no defense may trust it
    root: Tensor | None = None  # [d + b], the server's own update, for a defense with `root_samples`
    recorded: Tensor | None = None  # [n, d + b] float32, local models read from a file: base + rows to the last bit
    lab: Lab | None = None  # for a defense with `needs_lab`; its validators are these clients
    aggregate_on: torch.device | None = None  # where rows are compared and averaged; None: where they are

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def geometry(self) -> Geometry:
        """Inner products per block, computed once however many scopes are asked for."""
        steps = self.counters - self.base_counters
        if self.aggregate_on is None:
            return Geometry.measure(self.layout, self.base, self.rows, self.base_counters, steps)
        base = self.base.to(self.aggregate_on)
        return Geometry.measure(self.layout, base, self.copied, self.base_counters, steps, WIDE_ELEMENTS)

    @cached_property
    def copied(self) -> Tensor:
        """[n, d + b] float32, the rows on `aggregate_on`, copied once a round."""
        assert self.aggregate_on is not None
        return copied(self.rows, self.aggregate_on)

    def weighted(self, weights: Tensor, span: slice) -> Tensor:
        """[d'] float32, the weighted sum of these columns of the rows, weights [n] float64.

        On `aggregate_on` in float64 and rounded once; on the host one float32 product.
        """
        if self.aggregate_on is None:
            return weights.float() @ self.rows[:, span]
        return weighted_sum(weights.to(self.aggregate_on), self.copied[:, span]).float().cpu()

    @cached_property
    def guarded(self) -> tuple[Tensor, Mapping[str, float]]:
        """[n] bool, the usable updates, and counts of the others (`flame/geometry/guard.py`); looked at once."""
        steps = self.counters.double() - self.base_counters
        return guard(self.layout, self.base, self.rows, steps, self.geometry.norms("all_state"))

    @property
    def models(self) -> Tensor:
        """[n, d + b] float32, the local models: as recorded, else rebuilt, which can differ in the last bit."""
        return self.base + self.rows if self.recorded is None else self.recorded

    def first(self, n: int) -> Updates:
        """The first n clients, as views."""
        return replace(self, **{k: v[:n] for k in PER_CLIENT if (v := getattr(self, k)) is not None})

    def select(self, keep: Tensor) -> Updates:
        """The clients under the mask `keep` [n] bool; nothing is copied when all are kept."""
        if bool(keep.all()):
            return self
        part = replace(self, **{k: v[keep] for k in PER_CLIENT if (v := getattr(self, k)) is not None})
        part.__dict__["geometry"] = self.geometry.select(keep)  # sub-matrices, not a second pass
        if self.aggregate_on is not None:
            part.__dict__["copied"] = self.copied[keep.nonzero()[:, 0].to(self.aggregate_on)]
        return part


@dataclass(frozen=True)
class Verdict:
    """A defense's answer to one round."""

    state: ServerState  # the next global model; `round` is advanced by the federation, not by the defense
    weights: Tensor  # [n] float64, share of each client in the aggregate; 0 means rejected
    info: Mapping[str, float] = field(default_factory=dict)  # scalars to log, "<defense>/<name>"
    clip_factors: Tensor | None = None  # [n] float64 in [0, 1], what each update was scaled by

    @property
    def accepted(self) -> Tensor:
        """[n] bool, the clients with a part in the aggregate."""
        return self.weights > 0


def digest(state: ServerState) -> str:
    """sha256 over the bits of row and counters: equal if and only if the models are bit-identical."""
    h = hashlib.sha256(state.row.contiguous().numpy().tobytes())
    h.update(state.counters.contiguous().numpy().tobytes())
    return h.hexdigest()
