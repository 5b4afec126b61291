"""Defenses in your own loop: plain state_dicts in, the next model and who is in it out.

    from flame import aggregate
    new_state, outcome = aggregate("flame_weights_only", global_state, client_states, noise=0.0)

A client's state_dict has the keys and shapes of the global one. What is wrong with it otherwise is for the defense: an
update that is not finite is left out and counted in `outcome.info`. Only torch, numpy, PyYAML and hdbscan are needed.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flame.defenses.base import Defense, defend
from flame.geometry.layout import StateLayout
from flame.round.plain import State, as_round, as_state_dict, check_finite, check_fit, check_tensors, layout_of, listed
from flame.round.seeding import generator
from flame.round.types import ServerState, Updates
from flame.run.named import named_defense

ROUND, MODEL, MEMORY = "round", "model", "memory/"  # keys of `Aggregator.state_dict`; the last is a prefix


@dataclass(frozen=True)
class Outcome:
    """Who is in the next model, and what the defense says of the round."""

    ids: tuple[int, ...]  # the n clients, in the order in which they were given
    weights: Tensor  # [n] float64, share of each client in the aggregate; 0 means rejected
    clip_factors: Tensor | None  # [n] float64 in [0, 1], what each update was scaled by; None: the rule does not clip
    info: Mapping[str, float]  # what a run would log: `flame/clip_bound`, `guard/nonfinite`, ...

    @property
    def mask(self) -> Tensor:
        """[n] bool, who is accepted."""
        return self.weights > 0

    @property
    def accepted(self) -> tuple[int, ...]:
        """Their ids."""
        return tuple(client for client, kept in zip(self.ids, self.mask.tolist(), strict=True) if kept)

    @property
    def rejected(self) -> tuple[int, ...]:
        """The ids of all others."""
        return tuple(client for client, kept in zip(self.ids, self.mask.tolist(), strict=True) if not kept)


def aggregate(
    defense: str | Defense,
    global_state: State,
    client_states: Sequence[State],
    samples: Sequence[int] | None = None,
    *,
    ids: Sequence[int] | None = None,
    root_state: State | None = None,
    parameters: Iterable[str] | None = None,
    seed: int = 0,
    round: int | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], Outcome]:
    """One round by itself; a rule that remembers clients is as in its first one, see `Aggregator`.

    `defense` is a name from conf/defense, with `options` for its keys, or any callable as in `flame.defenses.base`.
    `samples` [n], training samples of each client, are needed by rules that weigh by them. `root_state` is the model
    that the server trained itself, for rules that ask for it (fltrust). `parameters` are the keys that are trained:
    see `flame.round.plain` for what is taken for them otherwise. Noise is drawn from (seed, round), as in round `round`
    of a run; without a round, from the seed and the global model, so that a loop does not draw the same in each call.

    Raises:
        ValueError: a sentence about a state_dict, an option, or what the defense needs and does not have.
    """
    address = seed if round is not None else _address(seed, global_state)
    once = Aggregator(defense, seed=address, parameters=parameters, **options)
    once.round = round or 0
    return once(global_state, client_states, samples, ids=ids, root_state=root_state)


class Aggregator:
    """A defense that remembers: one call a round.

    Its memory and its round are plain tensors (`state_dict`, `load_state_dict`), so that a loop can be interrupted.
    """

    def __init__(
        self, defense: str | Defense, *, seed: int = 0, parameters: Iterable[str] | None = None, **options: Any
    ) -> None:
        """See `aggregate`."""
        self.name = defense if isinstance(defense, str) else type(defense).__name__
        self.defense = named_defense(defense, options) if isinstance(defense, str) else _object(defense, options)
        self.seed = seed
        self.parameters = listed("parameters", parameters)
        self.round = 0  # rounds finished
        self.memory: Mapping[str, Tensor] = {}
        self._model: Tensor | None = None  # digest of keys and shapes that the memory belongs to
        if getattr(self.defense, "needs_lab", False):
            raise ValueError(
                f"defense={self.name} tries models on samples, which state_dicts do not hold: use it in a run"
                f" (train.py defense={self.name})"
            )

    def __call__(
        self,
        global_state: State,
        client_states: Sequence[State],
        samples: Sequence[int] | None = None,
        *,
        ids: Sequence[int] | None = None,
        root_state: State | None = None,
    ) -> tuple[dict[str, Tensor], Outcome]:
        """The next global state_dict, and who is in it.

        `ids` [n] are whole numbers by which clients are known again in later rounds; without them, their positions.
        """
        clients = [*client_states]
        _check(global_state, clients, root_state, bool(getattr(self.defense, "root_samples", 0)), self.name)
        numbers, counts = self._numbers(ids, samples, len(clients))
        layout = self._layout(global_state)
        state, updates = _round(layout, global_state, clients, root_state, numbers, counts, self.round)
        if (check := getattr(self.defense, "check_clients", None)) is not None:
            check(len(clients))
        state = replace(state, memory=self.memory)
        verdict = defend(self.defense, state, updates, generator(self.seed, "defense", self.round))
        self.memory, self.round = verdict.state.memory, self.round + 1
        outcome = Outcome(tuple(numbers), verdict.weights, verdict.clip_factors, verdict.info)
        return as_state_dict(layout, verdict.state, global_state), outcome

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next call depends on, but for the settings that this object was made with."""
        model = {} if self._model is None else {MODEL: self._model}
        memory = {f"{MEMORY}{key}": value for key, value in self.memory.items()}
        return {ROUND: torch.tensor(self.round), **model, **memory}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken."""
        if ROUND not in saved:
            raise ValueError(f"the saved state has no {ROUND!r}: must be what Aggregator.state_dict() gave")
        self.round, self._model = int(saved[ROUND]), saved.get(MODEL)
        self.memory = {key.removeprefix(MEMORY): value for key, value in saved.items() if key.startswith(MEMORY)}

    def _layout(self, global_state: State) -> StateLayout:
        layout = layout_of(global_state, self.parameters)
        model = torch.tensor(hashed(repr(layout).encode()))
        if self._model is not None and self.memory and not torch.equal(model, self._model):
            raise ValueError("global_state has other keys or shapes than in the rounds before: make a new Aggregator")
        self._model = model
        return layout

    def _numbers(self, ids: Sequence[int] | None, samples: Sequence[int] | None, n: int) -> tuple[list[int], list[int]]:
        numbers = _whole("ids", range(n) if ids is None else ids, n, -(2**63))
        if len({*numbers}) < n:
            raise ValueError(f"ids={numbers[:10]} names a client twice: must be one for each client")
        if samples is None and _weighs_by_samples(self.defense):
            raise ValueError(
                f"defense={self.name} weighs clients by their training samples: give samples, one number each"
            )
        return numbers, _whole("samples", [1] * n if samples is None else samples, n, 1)


def _round(
    layout: StateLayout,
    before: State,
    clients: Sequence[State],
    root_state: State | None,
    ids: Sequence[int],
    samples: Sequence[int],
    number: int,
) -> tuple[ServerState, Updates]:
    """The round of n clients, with the server's own update where it trained, too."""
    if root_state is None:
        return as_round(layout, before, clients, ids, samples, number)
    state, everyone = as_round(layout, before, [*clients, root_state], [*ids, 0], [*samples, 1], number)
    return state, replace(everyone.first(len(clients)), root=everyone.rows[len(clients)])


def _check(before: State, clients: Sequence[State], root_state: State | None, needs_root: bool, name: str) -> None:
    """A ValueError unless all state_dicts are such, and fit the global one."""
    check_tensors("global_state", before)
    check_finite("global_state", before)
    if not clients:
        raise ValueError("client_states is empty: must hold the state_dict of one client at least")
    if needs_root and root_state is None:
        raise ValueError(
            f"defense={name} compares clients with a model that the server trained on data of its own, from the same"
            " global model: give it as root_state"
        )
    for i, client in enumerate(clients):
        check_fit(f"client_states[{i}]", before, client)
    if root_state is not None:
        check_fit("root_state", before, root_state)
        check_finite("root_state", root_state)


def _object(defense: Any, options: Mapping[str, Any]) -> Defense:
    """The callable itself; a ValueError if it is none, or if options are given that only a name takes."""
    if not callable(defense):
        raise ValueError(f"defense={defense!r} is no defense: must be a name from conf/defense, or a callable")
    if options:
        raise ValueError(f"{', '.join(options)}: options go with a defense by name; set them on the object")
    made: Defense = defense
    return made


def _weighs_by_samples(defense: Any) -> bool:
    """Whether the rule, a step or an inner rule of it, has `weights: samples`."""
    parts = [defense, getattr(defense, "aggregate", None)]
    inner = getattr(defense, "rule", None)
    return any(getattr(part, "weights", None) == "samples" for part in parts) or (
        inner is not None and _weighs_by_samples(inner)
    )


def _whole(name: str, values: Sequence[int], n: int, least: int) -> list[int]:
    """`values` as n whole numbers of 64 bits, none below `least`."""
    try:
        numbers = [operator.index(value) for value in values]
    except TypeError as error:
        raise ValueError(f"{name}={values!r:.60} must be whole numbers, one for each client ({error})") from error
    if len(numbers) != n or not all(least <= number < 2**63 for number in numbers):
        raise ValueError(
            f"{name}={numbers!r:.60} is out of range: must be {n} whole numbers, one for each client, >= {least}"
        )
    return numbers


def _address(seed: int, state: State) -> int:
    """A seed for one call, from the caller's and the bits of the global model."""
    check_tensors("global_state", state)
    bits = (value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for value in state.values())
    return hashed(str(seed).encode(), *bits)


def hashed(*parts: bytes) -> int:
    """63 bits of a hash."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return int.from_bytes(found.digest()[:8], "little") >> 1
