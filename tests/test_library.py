"""`flame.aggregate` and `flame.Aggregator`: a run's verdicts on plain state_dicts of any architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import recorded_updates
from oracles.recorded import cached_round
from torch import Generator, Tensor, nn

from flame import Aggregator, aggregate
from flame.defenses.base import average, defend, uniform
from flame.defenses.bucketing import Bucketing
from flame.defenses.fedavg import FedAvg
from flame.federation import Round
from flame.geometry.layout import StateLayout
from flame.round.plain import layout_of
from flame.round.seeding import generator
from flame.round.smoothing import NOISELESS
from flame.round.types import ServerState, Updates, Verdict
from flame.run.named import named_defense
from flame.run.place import CONF

State = dict[str, Tensor]

NAMES = sorted(path.stem for path in (CONF / "defense").glob("*.yaml"))
NEEDS_LAB = [name for name in NAMES if getattr(named_defense(name, {}), "needs_lab", False)]
SEVEN = cached_round(0, 7, True)
QUICKER: dict[str, dict[str, Any]] = {"snowball": {"start": 9}}  # no autoencoder before round 9


def moved(state: State, seed: int, std: float = 0.1) -> State:
    """A local model: floats and counters have moved."""
    stream = Generator().manual_seed(seed)
    return {
        k: v + (std * torch.randn(v.shape, generator=stream)).to(v.dtype) if v.is_floating_point() else v + 1
        for k, v in state.items()
    }


def federation(state: State, n: int = 5) -> list[State]:
    return [moved(state, seed) for seed in range(n)]


LINEAR = {"weight": torch.eye(3), "bias": torch.zeros(3)}


@pytest.mark.parametrize("name", sorted({*NAMES} - {*NEEDS_LAB}))
def test_equals_a_run_to_the_bit(name: str) -> None:
    """The same models as rows, behind the guard, with the stream of round 3 of a run with seed 5."""
    options = QUICKER.get(name, {})
    state, updates = recorded_updates(0, 7)
    models = torch.stack([torch.cat([w[e.key].flatten() for e in updates.layout.entries]) for w in SEVEN.client_states])
    updates = replace(updates, recorded=models, root=updates.rows.mean(0) if name == "fltrust" else None)
    wanted = defend(named_defense(name, options), replace(state, round=3), updates, generator(5, "defense", 3))
    root = None
    if updates.root is not None:
        root = updates.layout.unflatten(updates.base + updates.root, updates.base_counters)
    new, found = aggregate(
        name, SEVEN.global_state, SEVEN.client_states, SEVEN.samples, seed=5, round=3, root_state=root, **options
    )
    after = updates.layout.unflatten(wanted.state.row, wanted.state.counters)
    if root is None:
        assert torch.equal(found.weights, wanted.weights) and found.info == wanted.info
        assert all(torch.equal(new[key], after[key]) for key in after)
    torch.testing.assert_close(new, dict(after))
    assert list(new) == list(SEVEN.global_state)
    assert found.accepted == tuple(wanted.accepted.nonzero().flatten().tolist())
    assert sorted(found.accepted + found.rejected) == list(range(7))


def test_equals_the_rounds_of_an_engine(history: list[Round]) -> None:
    """Local models are rebuilt from the engine's rows here, to a last bit."""
    played = history[-1]  # whose rows no later round has overwritten
    sent, verdict, layout = played.updates, played.verdict, played.updates.layout
    before = layout.unflatten(sent.base, sent.base_counters)
    clients = [layout.unflatten(*pair) for pair in zip(sent.models, sent.counters, strict=True)]
    new, found = aggregate("flame_weights_only", before, clients, ids=sent.ids.tolist(), round=played.number)
    assert found.mask.tolist() == verdict.accepted.tolist()
    assert found.info["flame/clip_bound"] == pytest.approx(verdict.info["flame/clip_bound"], rel=1e-5)
    torch.testing.assert_close(new, dict(layout.unflatten(verdict.state.row, verdict.state.counters)))


def test_a_mean_by_hand() -> None:
    clients = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 6.0])}]
    start = {"w": torch.tensor([1.0, 0.0])}
    assert aggregate("fedavg", start, clients)[0]["w"].tolist() == [2, 3]
    assert aggregate("fedavg", start, clients, [3, 1], weights="samples")[0]["w"].tolist() == [1.5, 1.5]


def test_a_broken_client_is_left_out_and_counted() -> None:
    clients = federation(LINEAR)
    clients[2] = {**clients[2], "bias": torch.full((3,), torch.nan)}
    new, found = aggregate("fedavg", LINEAR, clients)
    assert found.info["guard/nonfinite"] == 1 and found.rejected == (2,)
    assert all(bool(value.isfinite().all()) for value in new.values())


def test_inputs_are_left_alone_and_not_shared() -> None:
    clients = federation(LINEAR)
    before = [{k: v.clone() for k, v in state.items()} for state in (LINEAR, *clients)]
    new, _ = aggregate("fedavg", LINEAR, clients)
    new["weight"].zero_()
    assert all(torch.equal(a[k], b[k]) for a, b in zip(before, (LINEAR, *clients), strict=True) for k in a)


class TestTwoShortest:
    """A defense of one's own, as the guide has it."""

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        shortest = updates.geometry.norms("weights_only").argsort()[:2]
        weights = uniform(torch.zeros(len(updates), dtype=torch.bool).index_fill(0, shortest, True))
        return Verdict(replace(state, row=average(state, updates, weights)), weights)

    def test_by_object(self) -> None:
        clients = [moved(LINEAR, seed, std) for seed, std in enumerate((3.0, 0.1, 2.0, 0.2))]
        assert aggregate(TestTwoShortest(), LINEAR, clients, ids=[7, 8, 9, 10])[1].accepted == (8, 10)


def test_batchnorm_is_recognised() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    assert layout_of(net.state_dict(), None) == StateLayout.of(net)


def test_other_float_buffers_are_known_by_name_or_mark() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("scale", torch.ones(2))
    plain, marked = net.state_dict(), net.state_dict(keep_vars=True)
    told = {"parameters": dict(net.named_parameters())}
    for state, options in ((plain, told), (marked, {})):
        clients = [{**moved({k: v.detach() for k, v in state.items()}, i), "scale": torch.ones(2)} for i in range(3)]
        new, _ = aggregate("flame_weights_only", state, clients, noise=1.0, **options)
        assert torch.equal(new["scale"], torch.ones(2)) and not any(value.requires_grad for value in new.values())
    clients = federation(plain, 3)
    new, _ = aggregate("weak_dp", plain, clients)  # told nothing, it is noised
    assert not torch.equal(new["scale"], torch.stack([c["scale"] for c in clients]).mean(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_odd_entries_come_back(dtype: torch.dtype) -> None:
    start = {
        "temperature": torch.tensor(2.0, dtype=dtype),  # 0-d
        "w": torch.ones(4, dtype=dtype),
        "mask": torch.tensor([True, False]),
        "position_ids": torch.arange(3, dtype=torch.int32),
        "bn.num_batches_tracked": torch.tensor(7.0),  # of code that averages everything
        "empty": torch.zeros(0, dtype=dtype),
    }
    clients = [{**start, "w": start["w"] + step, "temperature": start["temperature"] + step} for step in (0.5, 1.5)]
    clients[0]["bn.num_batches_tracked"] = torch.tensor(9)
    new, _ = aggregate("fedavg", start, clients)
    assert {k: (v.dtype, v.shape) for k, v in new.items()} == {k: (v.dtype, v.shape) for k, v in start.items()}
    assert new["w"].tolist() == [2.0] * 4 and new["temperature"].item() == 3
    assert new["mask"].tolist() == [True, False] and new["bn.num_batches_tracked"] == 7


def test_float64_updates_below_float32_resolution_are_told_apart() -> None:
    start = {"w": torch.full((3,), 1000.0, dtype=torch.float64)}
    clients = [{"w": start["w"] + torch.tensor(d).double()} for d in ([1e-6, 0, 0], [1.1e-6, 0, 0], [0, 1e-6, 0])]
    _, found = aggregate("flame_weights_only", start, clients, vector={"of": "update"}, noise=0.0)
    assert found.accepted == (0, 1) and found.info["flame/clip_bound"] == pytest.approx(1e-6, rel=1e-3)


def test_a_loop_draws_new_noise_and_the_same_call_the_same() -> None:
    options: dict[str, Any] = {"noise_std": 1.0, "bound": 1e9}
    clients = [LINEAR] * 3
    first, _ = aggregate("norm_clip", LINEAR, clients, **options)
    again, _ = aggregate("norm_clip", LINEAR, clients, **options)
    other, _ = aggregate("norm_clip", LINEAR, clients, seed=1, **options)
    next_, _ = aggregate("norm_clip", first, [first] * 3, **options)
    assert torch.equal(first["weight"], again["weight"]) and not torch.equal(first["weight"], other["weight"])
    steps = first["weight"] - LINEAR["weight"], next_["weight"] - first["weight"]
    assert not torch.allclose(*steps, atol=1e-3)
    fixed = [aggregate("norm_clip", s, [s] * 3, round=4, **options)[0]["weight"] - s["weight"] for s in (LINEAR, first)]
    torch.testing.assert_close(*fixed)


@pytest.mark.parametrize("name", ["foolsgold", "fldetector", "afa", "centered_clipping", "crfl"])
def test_an_aggregator_remembers_and_goes_on_where_it_was_saved(name: str, tmp_path: Any) -> None:
    options = {"bound": 0.1} if name == "centered_clipping" else {}  # shorter than an update
    whole, first, anew = (Aggregator(name, seed=3, **options) for _ in range(3))
    state = dict(LINEAR)
    for number in range(4):
        clients = [moved(state, 10 * number + i) for i in range(5)]
        ids = [(i + number) % 6 for i in range(5)]
        if number == 2:
            torch.save(first.state_dict(), tmp_path / "saved.pt")
            first = Aggregator(name, seed=3, **options)
            first.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
        before, (one, kept) = state, whole(state, clients, ids=ids)
        two, _ = first(state, clients, ids=ids)
        assert all(torch.equal(one[key], two[key]) for key in one)
        state = one
    assert whole.round == 4 and kept.ids == tuple(ids)
    anew.round = 3
    fresh, _ = anew(before, clients, ids=ids)
    assert name == "crfl" or any(not torch.equal(one[key], fresh[key]) for key in one)  # it remembers for evaluation
    assert name != "crfl" or torch.equal(whole.memory[NOISELESS], first.memory[NOISELESS])


def test_clients_are_known_by_their_ids() -> None:
    """Client 7 and 8 push in one direction over rounds: whoever sits where, the same two lose their weight."""
    judge, ids = Aggregator("foolsgold"), [5, 6, 7, 8]
    for number in range(3):
        honest = [moved(LINEAR, 100 * number + i) for i in range(2)]
        clients = dict(zip(ids, [*honest, *[{k: v + 1 for k, v in LINEAR.items()}] * 2], strict=True))
        order = ids[number:] + ids[:number]
        _, found = judge(LINEAR, [clients[i] for i in order], ids=order)
        assert set(found.rejected) == {7, 8}
        assert judge.memory["defense/foolsgold/ids"].tolist() == ids


def without(key: str) -> State:
    return {k: v for k, v in LINEAR.items() if k != key}


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (lambda: aggregate("krum", LINEAR, [LINEAR, without("bias")]), r"client_states\[1\] .*missing: bias"),
    "unexpected": (lambda: aggregate("krum", LINEAR, [{**LINEAR, "x": torch.ones(1)}]), r"\[0\] .*unexpected: x"),
    "misshapen": (
        lambda: aggregate("krum", LINEAR, [{**LINEAR, "bias": torch.ones(2)}]),
        r"misshapen: bias \(2,\) instead of \(3,\)",
    ),
    "whole for float": (lambda: aggregate("krum", LINEAR, [{**LINEAR, "bias": torch.arange(3)}]), "misshapen: bias"),
    "no tensor": (
        lambda: aggregate("krum", LINEAR, [{**LINEAR, "bias": [0.0] * 3}]),  # type: ignore[dict-item]
        r"client_states\[0\]\['bias'\] is a list: must be a torch.Tensor",
    ),
    "no state_dict": (
        lambda: aggregate("krum", LINEAR, {0: LINEAR}),  # type: ignore[arg-type]
        r"client_states\[0\] is a int: must be a state_dict",
    ),
    "nobody": (lambda: aggregate("krum", LINEAR, []), "client_states is empty"),
    "nan": (
        lambda: aggregate("krum", {**LINEAR, "bias": torch.full((3,), torch.nan)}, [LINEAR]),
        r"^global_state\['bias'\] is not finite",
    ),
    "complex": (
        lambda: aggregate("krum", {"w": torch.ones(2, dtype=torch.complex64)}, [{}]),
        r"global_state\['w'\] is torch.complex64",
    ),
    "sparse": (lambda: aggregate("krum", {"w": torch.eye(2).to_sparse()}, [{}]), "torch.sparse_coo: must be dense"),
    "nothing": (
        lambda: aggregate("krum", {"n": torch.ones(1).long()}, [{"n": torch.ones(1).long()}]),
        "no float tensor",
    ),
    "tied": (
        lambda: aggregate("krum", {"a": (t := torch.ones(2)), "b": t}, [{"a": t, "b": t}]),
        r"\['a'\] and \['b'\] share their memory",
    ),
    "parameters": (lambda: aggregate("krum", LINEAR, [LINEAR], parameters=["w"]), r"parameters=\['w'\] are no float"),
    "one parameter": (
        lambda: aggregate("krum", LINEAR, [LINEAR], parameters="bias"),
        "parameters='bias' is no list of",
    ),
    "parameters themselves": (
        lambda: aggregate("krum", LINEAR, [LINEAR], parameters=LINEAR.values()),  # type: ignore[arg-type]
        r"is no list of keys: must be keys of the state_dict",
    ),
    "root not finite": (
        lambda: aggregate("fltrust", LINEAR, [LINEAR], root_state={**LINEAR, "bias": torch.full((3,), torch.nan)}),
        r"^root_state\['bias'\] is not finite",
    ),
    "samples": (lambda: aggregate("krum", LINEAR, [LINEAR], samples=[0]), r"samples=\[0\] is out of range"),
    "half samples": (lambda: aggregate("krum", LINEAR, [LINEAR], samples=[0.5]), "must be whole numbers"),  # type: ignore[list-item]
    "fewer samples": (lambda: aggregate("krum", LINEAR, [LINEAR] * 2, samples=[1]), "must be 2 whole numbers"),
    "no samples": (lambda: aggregate("flame_bnguard", LINEAR, [LINEAR]), "defense=flame_bnguard weighs clients by"),
    "inner samples": (
        lambda: aggregate(Bucketing(1, FedAvg("samples")), LINEAR, [LINEAR]),
        "defense=Bucketing weighs clients by",
    ),
    "ids": (lambda: aggregate("krum", LINEAR, [LINEAR] * 2, ids=[1, 1]), "names a client twice"),
    "root": (lambda: aggregate("fltrust", LINEAR, [LINEAR]), "give it as root_state"),
    "inner root": (lambda: aggregate("nnm", LINEAR, [LINEAR], rule="fltrust"), "give it as root_state"),
    "lab": (lambda: Aggregator("deepsight"), "defense=deepsight tries models on samples"),
    "few clients": (
        lambda: aggregate("flame_weights_only", LINEAR, [LINEAR] * 5, cluster={"min_cluster_size": 9}),
        "must be at most 5",
    ),
    "options of an object": (lambda: Aggregator(named_defense("krum", {}), noise=0.0), "noise: options go with a"),
    "no defense": (lambda: Aggregator(None), "defense=None is no defense"),  # type: ignore[arg-type]
    "no saved state": (lambda: Aggregator("afa").load_state_dict({}), "has no 'round'"),
}


@pytest.mark.parametrize("call, sentence", WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_said(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_another_model_does_not_meet_the_memory_of_the_first() -> None:
    judge = Aggregator("foolsgold")
    judge(LINEAR, federation(LINEAR))
    other = {"weight": torch.eye(4), "bias": torch.zeros(4)}
    with pytest.raises(ValueError, match="other keys or shapes than in the rounds before"):
        judge(other, federation(other))
