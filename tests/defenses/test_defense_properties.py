"""What every defense promises, for each YAML in conf/defense: a new one is tested from the moment it exists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from labs import Tiny, laboratory
from labs import honest as nobody
from rules import NAMES, defense
from torch import Generator, Tensor

from flame.defenses.base import defend
from flame.geometry.layout import StateLayout
from flame.round.types import PER_CLIENT, ServerState, Updates, Verdict

every_defense = pytest.mark.parametrize("name", NAMES)
CLIPPING = [name for name in NAMES if name.startswith("flame_")]
CLIPPING += [
    "alignins",
    "arc",
    "deepsight",
    "flshield",
    "lasa",
    "norm_clip",
    "signguard",
    "weak_dp",
]  # that report clip factors
BY_POSITION = "flame_zhmzm"  # scales clients by one another's norms, so order matters and lengths are not bounded

NET = Tiny(inputs=3, hidden=2, classes=3)
LAYOUT = StateLayout.of(NET)
D = LAYOUT.trainable


def stream(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def generic(n: int, seed: int = 0) -> Tensor:
    """[n, d + b], updates without ties: a shared drift and each client's own."""
    noise = torch.randn(n + 1, LAYOUT.size, generator=stream(seed))
    rows = 0.1 * noise[0] + 0.05 * noise[1:]
    span = LAYOUT.spans["running_var"]
    rows[:, span] = rows[:, span].clamp(-0.5, 0.5)
    return rows


def a_round(rows: Tensor) -> tuple[ServerState, Updates]:
    """A global model with running_var 1 and what n clients made of it."""
    n = len(rows)
    base = torch.randn(LAYOUT.size, generator=stream(99))
    base[LAYOUT.spans["running_var"]] = 1.0
    counters = torch.tensor([7])
    updates = Updates(
        layout=LAYOUT,
        base=base,
        base_counters=counters,
        ids=torch.arange(n) * 3,
        rows=rows,
        counters=counters + torch.arange(1, n + 1)[:, None],
        samples=torch.arange(1, n + 1) * 10,
        losses=torch.zeros(n, dtype=torch.float64),
        root=0.1 * torch.randn(LAYOUT.size, generator=stream(98)) + rows[0].nan_to_num(0, 0, 0).clamp(-1, 1),
        lab=laboratory(NET, (1, 1, 3), nobody(n), classes=3),
    )
    return ServerState(base, counters), updates


def shuffled(updates: Updates, order: Tensor) -> Updates:
    return replace(updates, **{k: v[order] for k in PER_CLIENT if (v := getattr(updates, k)) is not None})


def check(verdict: Verdict, n: int) -> None:
    """What must hold of any verdict."""
    assert verdict.state.row.shape == (LAYOUT.size,) and bool(verdict.state.row.isfinite().all())
    assert verdict.weights.shape == (n,) and verdict.weights.dtype == torch.float64
    assert bool((verdict.weights >= 0).all()) and verdict.weights.sum() <= 1 + 1e-9
    assert all(isinstance(v, float) and "/" in k for k, v in verdict.info.items())
    if verdict.clip_factors is not None:
        assert verdict.clip_factors.shape == (n,)
        assert bool(((verdict.clip_factors >= 0) & (verdict.clip_factors <= 1)).all())


@every_defense
@pytest.mark.parametrize("n", [1, 2, 3, 4, 20])
def test_any_number_of_clients(name: str, n: int) -> None:
    state, updates = a_round(generic(n))
    verdict = defense(name)(state, updates, stream())
    check(verdict, n)
    assert bool(verdict.accepted.any())
    assert (verdict.clip_factors is not None) == (name in CLIPPING)


@every_defense
@pytest.mark.parametrize("n", [5, 9])
def test_permuted_clients_permute_the_verdict(name: str, n: int) -> None:
    if name == BY_POSITION:
        pytest.skip("depends on the order of the clients, as its YAML says")
    (state, updates), order = a_round(generic(n)), torch.randperm(n, generator=stream(5))
    other = state
    for number in range(2):  # the second round has a history
        one = defense(name)(state, updates, stream(number))
        two = defense(name)(other, shuffled(updates, order), stream(number))
        torch.testing.assert_close(two.weights, one.weights[order])
        torch.testing.assert_close(two.state.row, one.state.row, atol=1e-5, rtol=1e-5)
        state, other = replace(state, memory=one.state.memory), replace(other, memory=two.state.memory)


@every_defense
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_identical_clients_give_their_update(name: str, n: int) -> None:
    state, updates = a_round(generic(1).expand(n, -1).clone())
    updates = replace(updates, counters=updates.counters[:1].expand(n, -1))
    rule: Any = defense(name, quiet=True)
    verdict = rule(state, updates, stream())
    wanted = updates.rows[0] * (rule.aggregate.server_lr if hasattr(rule, "aggregate") else 1)
    if name == "foolsgold" and n > 1:
        wanted = torch.zeros_like(wanted)  # identical clients are what it exists to silence
    if name == "fltrust" and updates.root is not None:  # its direction, at the server's length
        wanted = wanted.clone()
        wanted[:D] *= updates.root[:D].norm() / wanted[:D].norm()
    if name == "lasa":  # whose smallest weights it leaves out
        wanted = torch.cat([rule.sparsified(wanted[None, :D], LAYOUT)[0], wanted[D:]])
    torch.testing.assert_close(verdict.state.row, state.row + wanted, atol=1e-6, rtol=1e-5)


def tensors(state: ServerState, updates: Updates) -> dict[str, Tensor]:
    """Everything that a defense is given."""
    fields = ("base", "base_counters", "root", *PER_CLIENT)
    given = {k: v for k in fields if isinstance(v := getattr(updates, k), Tensor)}
    return (
        given
        | {"row": state.row, "state/counters": state.counters}
        | {f"memory/{k}": v for k, v in state.memory.items()}
    )


@every_defense
def test_nothing_is_mutated(name: str) -> None:
    state, updates = a_round(generic(6))
    state = defense(name)(state, updates, stream()).state  # so that there is a memory to leave alone
    before = {k: v.clone() for k, v in tensors(state, updates).items()}
    defend(defense(name), state, updates, stream())
    after = tensors(state, updates)
    assert all(torch.equal(before[k], after[k]) for k in before | after)


@every_defense
def test_equal_streams_give_equal_bits(name: str) -> None:
    state, updates = a_round(generic(7))
    one, two = (defense(name)(state, updates, stream(3)) for _ in range(2))
    assert torch.equal(one.state.row, two.state.row) and torch.equal(one.weights, two.weights)
    assert one.info == two.info


@every_defense
def test_memory_keys_name_their_owner(name: str) -> None:
    state, updates = a_round(generic(5))
    state = replace(state, memory={"attack/other": torch.ones(1)})
    memory = defense(name)(state, updates, stream()).state.memory
    assert torch.equal(memory["attack/other"], torch.ones(1))
    assert all(key.startswith(f"defense/{name}") for key in memory if key != "attack/other")
