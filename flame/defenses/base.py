"""What a defense is, how it is asked behind the guard, and the averaging that defenses share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from flame.round.types import Lab, ServerState, Updates, Verdict

Sends = Callable[[ServerState, Lab, Generator], ServerState]


class Defense(Protocol):
    """A pure function of one round; what it must remember goes through `ServerState.memory`.

    Nobody gains weight by sending less, beyond the bound that `tests/defenses/test_short_updates.py` has for each rule.

    One that needs more than updates says so by an attribute: `root_samples` (an int: samples at the server, which
    trains on them unless `root_update` is False) or `needs_lab` (True: it tries models, in `Updates.lab`). One that
    cannot filter every number of clients has a method `check_clients(n)`, which raises a ValueError before the run. One
    with a laboratory may have a method `sends(state, lab, stream)`: the state that the round's clients start from. How
    its model is judged is said by `randomized_smoothing` (a vote of noisy copies) and by `answer_confidence` (a float:
    answers of less probability do not count).
    """

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The next global model. `updates` holds n >= 1 clients, all finite."""


def defend(defense: Defense, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
    """The defense's verdict on the usable updates, spread over all n clients; unusable ones have weight 0.

    Without a single usable update the global model stays as it is.
    """
    usable, info = updates.guarded
    if not bool(usable.any()):
        return Verdict(
            state,
            torch.zeros(len(updates), dtype=torch.float64),
            {**info, "guard/kept_model": 1.0, "guard/floored": 0.0},
        )
    verdict = defense(state, updates.select(usable), stream)
    _check_shapes(verdict, state, int(usable.sum()))
    kept, floored = _sane(verdict.state, state, updates)
    return replace(
        verdict,
        state=kept,
        weights=_spread(verdict.weights, usable, 0.0),
        clip_factors=None if verdict.clip_factors is None else _spread(verdict.clip_factors, usable, 1.0),
        info={**verdict.info, **info, **floored},
    )


def _check_shapes(verdict: Verdict, state: ServerState, clients: int) -> None:
    """A ValueError unless the verdict is about so many clients, and its model of the size it was."""
    found = {"weights": verdict.weights, "state.row": verdict.state.row, "state.counters": verdict.state.counters}
    wanted = {"weights": (clients,), "state.row": state.row.shape, "state.counters": state.counters.shape}
    if verdict.clip_factors is not None:
        found["clip_factors"], wanted["clip_factors"] = verdict.clip_factors, (clients,)
    for name, value in found.items():
        if tuple(value.shape) != tuple(wanted[name]):
            raise ValueError(
                f"the defense's verdict has {name} of shape {tuple(value.shape)}: must be {tuple(wanted[name])}, with"
                " one weight for each of the updates that it got"
            )


def laboratory(name: str, updates: Updates) -> Lab:
    """The round's laboratory; a ValueError if there is none."""
    if updates.lab is None:
        raise ValueError(f"defense={name} tries models on samples, for which this round has no laboratory")
    return updates.lab


def average(state: ServerState, updates: Updates, weights: Tensor, factors: Tensor | None = None) -> Tensor:
    """[d + b] G plus the weighted sum of the updates, weights [n] adding up to 1.

    Trainable parameters are scaled by `factors` [n] first; BatchNorm statistics are averaged as they are. All rows
    must be finite, those of rejected clients (weight 0) too: `defend` sees to it.
    """
    trainable = updates.layout.span("weights_only")
    row = state.row.clone()
    row[trainable] += updates.weighted(weights if factors is None else weights * factors, trainable)
    row[trainable.stop :] += updates.weighted(weights, slice(trainable.stop, None))
    return row


def uniform(accepted: Tensor) -> Tensor:
    """[n] float64 weights: the accepted [n] bool share equally, the rest have 0; all 0 if nobody is accepted."""
    return accepted.double() / accepted.sum().clamp_min(1)


def clip_to(bound: float, norms: Tensor) -> Tensor:
    """[n] float64 in [0, 1], min(1, bound / norm); 1 for an update of length 0."""
    return torch.where(norms > bound, bound / norms, 1.0)


def _sane(new: ServerState, old: ServerState, updates: Updates) -> tuple[ServerState, dict[str, float]]:
    """The new state with running_var floored at 0 (noise can push it below); the old state if the new is not
    finite, memory included: what made the row NaN must not wait there for the next round."""
    if not bool(new.row.isfinite().all()):
        return old, {"guard/kept_model": 1.0, "guard/floored": 0.0}
    span = updates.layout.spans.get("running_var", slice(0, 0))
    negative = new.row[span] < 0
    if bool(negative.any()):
        row = new.row.clone()
        row[span] = row[span].clamp_min(0)
        new = replace(new, row=row)
    new = replace(new, counters=new.counters.clamp_min(0))
    return new, {"guard/kept_model": 0.0, "guard/floored": float(negative.sum())}


def check_minority(share: float) -> None:
    """A ValueError unless `malicious_share`, f / n as the operator assumes it, is that of a minority."""
    if not 0 <= share < 0.5:
        raise ValueError(f"defense.malicious_share={share} is out of range: must be in [0, 0.5)")


def minority(share: float, clients: int) -> int:
    """f, the attackers that are assumed among so many clients: the share of them, rounded, and fewer than half."""
    return min(round(share * clients), (clients - 1) // 2)


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """A ValueError that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"defense.{key}={value!r} is unknown: must be one of {', '.join(choices)}")


def _spread(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    """Values of the clients under `mask` [n] in their places among all n."""
    full = torch.full(mask.shape, fill, dtype=values.dtype)
    full[mask] = values
    return full
