"""The round loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from attacks.base import Attack, Crafted, Scene, Sight, unpoisoned
from flame.defenses.base import Defense, defend
from flame.engine.base import Engine
from flame.engine.exams import NONE_BESIDE, Exams
from flame.geometry.clustering import Clustering
from flame.round.breakdown import alarm_rates, class_rows, client_accuracies, source_accuracy
from flame.round.cohort import Population
from flame.round.evaluate import Evaluation
from flame.round.score import score
from flame.round.seeding import generator
from flame.round.server import Server
from flame.round.shadow import shadow_verdicts, xray
from flame.round.types import Cohort, Lab, Notes, ServerState, Updates, Verdict


@dataclass(frozen=True)
class Federation:
    """The parts that act in every round."""

    population: Population
    attack: Attack
    defense: Defense
    server: Server
    engine: Engine
    shadow: Sequence[str]  # scopes whose verdict on the same updates is recorded, whatever the defense
    seed: int
    evaluate_at: Container[int]  # rounds whose global model is evaluated
    lab: Callable[[ServerState, Cohort], Lab] | None = None  # of a round, for a defense that tries models
    exams: Exams = NONE_BESIDE  # what the engine evaluates on

    @property
    def root_samples(self) -> int:
        """Images that the defense keeps at the server; 0 for most."""
        return getattr(self.defense, "root_samples", 0)

    @property
    def trains_root(self) -> bool:
        """Whether the server trains on these images, as a client does; not where it only tries models on them."""
        return self.root_samples > 0 and getattr(self.defense, "root_update", True)

    def evaluates(self, state: ServerState) -> bool:
        """Whether the round that begins with this state ends with an evaluation."""
        return state.round in self.evaluate_at or self.population.waits(state.memory)


@dataclass(frozen=True)
class Round:
    """All that happened in one round; `updates.rows` is overwritten by the next."""

    number: int  # from 0
    cohort: Cohort
    before: ServerState
    updates: Updates
    verdict: Verdict
    shadows: Mapping[str, Clustering]
    metrics: Mapping[str, float]
    after: ServerState
    classes: Sequence[Mapping[str, Any]] = ()  # answers to test images by class, where they were counted


def play(fed: Federation, state: ServerState) -> Round:
    """One round of federated learning under attack and defense."""
    seconds: dict[str, float] = {}
    cohort = fed.population.cohort(state.round, state.memory)
    with timed(seconds, "train"):
        state = sent(fed, state, cohort)
        updates, notes = train(fed, state, cohort)
        state, idle = collude(fed, state, updates, cohort, notes)
    with timed(seconds, "aggregate"):
        verdict = defend(fed.defense, state, updates, generator(fed.seed, "defense", state.round))
        after = replace(fed.server(state, updates, verdict), round=state.round + 1)
    with timed(seconds, "shadow"):
        shadows = shadow_verdicts(updates, fed.shadow)
        shares = xray(updates)
    with timed(seconds, "evaluate"):
        evaluations = fed.engine.evaluate(after) if fed.evaluates(state) else {}
    accuracy = accuracies(evaluations)
    if "eval/ma" in accuracy and fed.population.hostile:
        after = replace(after, memory=fed.population.schedule.noted(after.memory, accuracy["eval/ma"], after.round))
    metrics = {
        **accuracy,
        **source_accuracy(evaluations),
        **alarm_rates(evaluations),
        **client_accuracies(evaluations, fed.exams.groups),
        **score(verdict, shadows, cohort),
        **verdict.info,
        **smallest_running_var(updates, after),
        **shares,
        **({"attack/idle": idle} if fed.attack.hostile else {}),
        "train/loss": float(updates.losses[~cohort.compromised].mean()),
        **{f"time/{phase}": s for phase, s in seconds.items()},
    }
    answers = class_rows(evaluations, fed.exams.classes)
    return Round(state.round, cohort, state, updates, verdict, shadows, metrics, after, answers)


def sent(fed: Federation, state: ServerState, cohort: Cohort) -> ServerState:
    """What clients start from: the global model, or what a defense with `sends` makes of it in its laboratory."""
    sends = getattr(fed.defense, "sends", None)
    if sends is None or fed.lab is None:
        return state
    changed: ServerState = sends(state, fed.lab(state, cohort), generator(fed.seed, "send", state.round))
    return changed


def train(fed: Federation, state: ServerState, cohort: Cohort) -> tuple[Updates, Sequence[Notes]]:
    """The cohort's updates and notes, and what the defense needs beside them.

    For one that tries models a laboratory; for one with data of its own the server's update (shard `clients`).
    """
    lab = fed.lab(state, cohort) if fed.lab else None
    device = fed.engine.aggregate_on
    if not fed.trains_root:
        updates, notes = fed.engine.train(state, cohort)
        return replace(updates, lab=lab, aggregate_on=device), notes
    ids = torch.cat([cohort.ids, torch.tensor([fed.population.clients])])
    everyone, notes = fed.engine.train(state, Cohort(ids, torch.cat([cohort.compromised, torch.tensor([False])])))
    n = len(cohort.ids)
    return replace(everyone.first(n), root=everyone.rows[n], lab=lab, aggregate_on=device), notes[:n]


def rounds(fed: Federation, state: ServerState, until: int) -> Iterator[Round]:
    """Rounds state.round, ..., until - 1."""
    while state.round < until:
        record = play(fed, state)
        yield record
        state = record.after


def collude(
    fed: Federation, state: ServerState, updates: Updates, cohort: Cohort, notes: Sequence[Notes]
) -> tuple[ServerState, float]:
    """Let the compromised clients rework their rows together, in place.

    The state with the attack's new memory, and how many of them sent what an honest client could have.
    """
    shared = [noted for noted, bad in zip(notes, cohort.compromised.tolist(), strict=True) if bad]
    if not shared or type(fed.attack).craft is Attack.craft:  # no copy for those who do not
        return state, float(sum(map(unpoisoned, shared)))
    stream = generator(fed.seed, "craft", state.round)
    sight = Sight(replace(updates), cohort.compromised) if fed.attack.omniscient else None
    scene = Scene(state, updates.layout, len(updates), shared, sight)
    crafted = fed.attack.craft(updates.rows[cohort.compromised], scene, stream)
    if not isinstance(crafted, Crafted):
        raise TypeError(f"attack.craft gave a {type(crafted).__name__}: must be attacks.base.Crafted(rows, memory)")
    rows = updates.rows[cohort.compromised]  # again, for an attack may have written into the first copy
    if crafted.rows.shape != rows.shape:
        raise ValueError(
            f"attack.craft gave rows of {tuple(crafted.rows.shape)}: must be {tuple(rows.shape)}, as it got"
        )
    updates.rows[cohort.compromised] = crafted.rows
    idle = float(fed.attack.idle(crafted.rows, rows, scene).sum())
    return replace(state, memory={**state.memory, **crafted.memory}) if crafted.memory else state, idle


def accuracies(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """MA on the clean test set; BA on the triggered one, where the attack has a backdoor; certified rates of a vote."""
    named = {short: evaluations[name] for short, name in (("ma", "clean"), ("ba", "backdoor")) if name in evaluations}
    found = {f"eval/{k}": e.accuracy for k, e in named.items()}
    found |= {f"eval/{k}_loss": e.mean_loss for k, e in named.items()}
    return found | {f"eval/{k}_certified": e.certified / e.count for k, e in named.items() if e.certified is not None}


def smallest_running_var(updates: Updates, after: ServerState) -> dict[str, float]:
    """The global model's smallest running variance, floored at 0 by the guard (`guard/floored` counts)."""
    span = updates.layout.spans.get("running_var")
    return {} if span is None else {"flame/min_running_var": float(after.row[span].min())}


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Wall seconds of a phase."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
