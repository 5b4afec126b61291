"""The Flower strategy on Flower's own objects, and (slow) in its simulation; needs `pip install 'flwr[simulation]'`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

flwr = pytest.importorskip("flwr.serverapp.strategy", reason="no Flower: pip install 'flwr[simulation]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays  # noqa: E402
from flwr.server.strategy import FedAvg as FitFedAvg  # noqa: E402
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian  # noqa: E402

from flame import aggregate  # noqa: E402
from flame.federation import Round  # noqa: E402
from flame.flower import RobustStrategy  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples/flower_app.py"
NODES = [2**64 - 9, 11, 5, 2**63 + 3, 7]  # 64 bits; Flower draws them

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def as_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer messages name the process that writes them."""
    if importlib.util.find_spec("flwr.supercore.task_identity"):
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
        for name in ("_task_id", "_run_id", "_node_id"):
            monkeypatch.setattr(identity, name, 1)


class Grid:
    """As much of Flower's as choosing clients takes."""

    def get_node_ids(self) -> Iterable[int]:
        return NODES


def reply(to: Message, state: Any, **metrics: Any) -> Message:
    content = RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 10, **metrics})})
    return Message(content, reply_to=to)


def a_round(strategy: Any, start: Any, states: dict[int, Any], **metrics: Any) -> tuple[Any, Any]:
    """Round 1: what Flower's `start` does of it. `states` by node."""
    messages = list(strategy.configure_train(1, ArrayRecord(start), ConfigRecord(), Grid()))
    replies = [
        reply(m, states[m.metadata.dst_node_id], **metrics) for m in messages if m.metadata.dst_node_id in states
    ]
    return strategy.aggregate_train(1, replies)


@pytest.fixture
def played(history: list[Round]) -> tuple[Round, State, list[State]]:
    """A round of the engine: what it had, the global state_dict and the local ones."""
    record = history[-1]
    layout, sent = record.updates.layout, record.updates
    clients = [dict(layout.unflatten(*pair)) for pair in zip(sent.models, sent.counters, strict=True)]
    return record, dict(layout.unflatten(sent.base, sent.base_counters)), clients


def by_node(values: list[Any]) -> dict[int, Any]:
    return dict(zip(sorted(NODES), values, strict=True))


def test_accepts_whom_the_engine_accepts(played: tuple[Round, State, list[State]]) -> None:
    record, start, clients = played
    strategy = RobustStrategy(defense="flame_weights_only", inner=FedAvg(), noise=0.0)
    arrays, metrics = a_round(strategy, start, by_node(clients), loss=1.0)
    wanted, found = aggregate("flame_weights_only", start, clients, noise=0.0)
    new = arrays.to_torch_state_dict()
    assert {k: (v.dtype, v.shape) for k, v in new.items()} == {k: (v.dtype, v.shape) for k, v in start.items()}
    assert all(torch.equal(new[key], wanted[key]) for key in wanted)
    outcome = strategy.outcomes[1]
    assert outcome.mask.tolist() == found.mask.tolist() == record.verdict.accepted.tolist()
    assert outcome.accepted == tuple(n for n, kept in by_node(found.mask.tolist()).items() if kept)
    assert metrics["filter/accepted"] == 3 and metrics["loss"] == 1 and metrics["filter/clients"] == 5


def test_arrays_without_names_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    lists = by_node([[value.numpy() for value in state.values()] for state in STATES.values()])
    for options in ({}, {"keys": ["w", "b"]}, {"parameters": ["0", "1"]}):
        arrays, _ = a_round(RobustStrategy("median", FedAvg(), **options), lists[5], lists)
        assert arrays["0"].numpy().tolist() == [3, 3]
    assert caplog.text.count("arrays have no names") == 1


def test_arrays_without_names_get_those_that_the_app_gives(played: tuple[Round, State, list[State]]) -> None:
    _, start, clients = played
    lists = [[value.numpy() for value in state.values()] for state in (start, *clients)]
    strategy = RobustStrategy(defense="flame_weights_only", inner=FedAvg(), keys=start, noise=1.0)
    arrays, _ = a_round(strategy, lists[0], by_node(lists[1:]))
    wanted, _ = aggregate("flame_weights_only", start, clients, noise=1.0, round=0)
    assert list(arrays) == [str(i) for i in range(len(start))]
    assert all(
        torch.equal(torch.from_numpy(a.numpy()), v) for a, v in zip(arrays.values(), wanted.values(), strict=True)
    )


class Client:
    def __init__(self, cid: str) -> None:
        self.cid = cid


class Manager:
    def num_available(self) -> int:
        return 5

    def sample(self, num_clients: int, min_num_clients: int) -> list[Client]:
        return [Client(str(node)) for node in NODES]


def test_lists_of_numpy_arrays_in_the_older_interface(played: tuple[Round, State, list[State]]) -> None:
    _, start, clients = played
    inner = FitFedAvg(initial_parameters=ndarrays_to_parameters([v.numpy() for v in start.values()]))
    strategy = RobustStrategy(defense="flame_weights_only", inner=inner, keys=start, noise=0.0)
    begun = strategy.initialize_parameters(Manager())
    asked = strategy.configure_fit(1, begun, Manager())
    sent = by_node([ndarrays_to_parameters([v.numpy() for v in state.values()]) for state in clients])
    results = [(c, FitRes(Status(Code.OK, ""), sent[int(c.cid)], 10, {"loss": 1.0})) for c, _ in asked]
    parameters, metrics = strategy.aggregate_fit(1, results, [])
    wanted, found = aggregate("flame_weights_only", start, clients, noise=0.0)
    for array, value in zip(parameters_to_ndarrays(parameters), wanted.values(), strict=True):
        assert torch.equal(torch.from_numpy(array), value)
    assert metrics["filter/accepted"] == len(found.accepted) and strategy.evaluate(1, parameters) is None
    assert strategy.aggregate_fit(2, [], [ValueError()])[0] is None


def test_clients_are_told_apart_by_whole_names_and_ties_by_their_order() -> None:
    """Names that begin alike; two and two have other metrics: whoever answers first, the same two are left out."""
    named = {f"client_{i:02}": ndarrays_to_parameters([torch.full((2,), float(i)).numpy()]) for i in range(4)}
    results = [
        (Client(cid), FitRes(Status(Code.OK, ""), sent, 1, {"loss": 1.0} if cid < "client_02" else {}))
        for cid, sent in named.items()
    ]
    found = []
    for arrived in (results, results[::-1]):
        strategy = RobustStrategy("median", FitFedAvg(), keys=["w"])
        strategy.configure_fit(1, named["client_00"], Manager())
        parameters, _ = strategy.aggregate_fit(1, arrived, [])
        found.append((parameters_to_ndarrays(parameters)[0].tolist(), strategy.outcomes[1].ids))
    assert found[0] == found[1] and len({*found[0][1]}) == 2
    strategy.aggregate_fit(2, [*results, results[0]], [])
    assert strategy.outcomes[2].ids == found[0][1]


def linear(value: float) -> State:
    return {"w": torch.full((2,), float(value)), "b": torch.zeros(())}


STATES = by_node([linear(i) for i in (1, 2, 3, 4, 5)])


def test_a_server_optimiser_takes_its_step_from_the_defended_model() -> None:
    """Median 3 of 1 ... 5 from 0; FedAvgM with rate 0.5 goes half of the way."""
    arrays, _ = a_round(RobustStrategy("median", FedAvgM(server_learning_rate=0.5)), linear(0), STATES)
    assert arrays["w"].numpy().tolist() == [1.5, 1.5]
    assert a_round(RobustStrategy("median", FedMedian()), linear(0), STATES)[0]["w"].numpy().tolist() == [3, 3]


def test_metrics_are_of_accepted_clients() -> None:
    strategy = RobustStrategy("krum", FedAvg(), keep=1, malicious_share=0.2)
    messages = list(strategy.configure_train(1, ArrayRecord(linear(0)), ConfigRecord(), Grid()))
    losses = {m.metadata.dst_node_id: float(i) for i, m in enumerate(messages)}
    sent = [reply(m, STATES[node], loss=loss) for m, (node, loss) in zip(messages, losses.items(), strict=True)]
    _, metrics = strategy.aggregate_train(1, sent)
    (accepted,) = strategy.outcomes[1].accepted
    assert metrics["loss"] == losses[accepted]


def test_replies_that_do_not_fit_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    strategy = RobustStrategy("fedavg", FedAvg())
    messages = list(strategy.configure_train(1, ArrayRecord(linear(0)), ConfigRecord(), Grid()))
    broken, whole = reply(messages[0], linear(1)), ArrayRecord(linear(1))
    broken.content["arrays"]["w"] = Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY nonsense")
    replies = [
        broken,
        reply(messages[1], {"w": torch.ones(3), "b": torch.zeros(())}),
        reply(messages[2], linear(5)),
        Message(Error(0, "no memory"), reply_to=messages[3]),
        reply(messages[4], linear(7)),
        reply(messages[0], linear(1), extra=1.0),
        Message(RecordDict({"arrays": whole, "metrics": MetricRecord({"n": 1})}), reply_to=messages[1]),
        reply(messages[1], linear(1), **{"num-examples": float("nan")}),
        Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=messages[1]),
    ]
    with caplog.at_level("WARNING"):
        arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays["w"].numpy().tolist() == [6, 6] and caplog.text.count("left out") == 7
    assert "misshapen: w (3,) instead of (2,)" in caplog.text and "no memory" in caplog.text
    assert strategy.aggregate_train(2, []) == (None, None)


HEADERS = (  # of arrays: numpy meets them with a TokenError, an IndentationError, an IndexError, an OverflowError, ...
    "{'descr': (",
    "  1\n 2",
    "{'descr': (), 'fortran_order': False, 'shape': (2,)}",
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},)}}",
    "-" * 9000 + "1",
    "{'descr': '|S4', 'fortran_order': False, 'shape': (2,)}",
)


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_bytes_that_are_no_arrays_end_no_round(header: str, caplog: pytest.LogCaptureFixture) -> None:
    """Through both interfaces; the other client's model is the next one."""
    sent = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
    strategy = RobustStrategy("fedavg", FedAvg())
    first, second, *_ = strategy.configure_train(1, ArrayRecord(linear(0)), ConfigRecord(), Grid())
    broken = reply(first, linear(1))
    broken.content["arrays"]["w"] = Array("float32", (2,), "numpy.ndarray", sent)
    arrays, _ = strategy.aggregate_train(1, [broken, reply(second, linear(5))])
    assert arrays["w"].numpy().tolist() == [5, 5]
    whole = ndarrays_to_parameters([torch.full((2,), 5.0).numpy()])
    strategy = RobustStrategy("fedavg", FitFedAvg(), keys=["w"])
    strategy.configure_fit(1, whole, Manager())
    pairs = ("1", whole), ("2", Parameters([sent], ""))
    results = [(Client(cid), FitRes(Status(Code.OK, ""), given, 1, {})) for cid, given in pairs]
    parameters, _ = strategy.aggregate_fit(1, results, [])
    assert parameters_to_ndarrays(parameters)[0].tolist() == [5, 5]
    for node in (first.metadata.dst_node_id, 2):
        assert f"a reply is left out: what node {node} sent cannot be read (" in caplog.text
    assert max(map(len, caplog.messages)) < 400


def test_a_node_has_one_reply_a_round(caplog: pytest.LogCaptureFixture) -> None:
    """The first that can be read; more of them have no vote on which metrics are usual, either."""
    strategy = RobustStrategy("fedavg", FedAvg())
    messages = list(strategy.configure_train(1, ArrayRecord(linear(0)), ConfigRecord(), Grid()))
    replies = [
        Message(Error(0, "no memory"), reply_to=messages[0]),
        reply(messages[0], linear(1)),
        reply(messages[1], linear(5)),
        *[reply(messages[2], linear(8), extra=1.0) for _ in range(3)],
        reply(messages[0], linear(9)),
    ]
    with caplog.at_level("WARNING"):
        arrays, _ = strategy.aggregate_train(1, replies)
    node, other = (m.metadata.dst_node_id for m in messages[:2])
    assert arrays["w"].numpy().tolist() == [3, 3] and {*strategy.outcomes[1].ids} == {node, other}
    assert f"node {node} has replied already" in caplog.text and caplog.text.count("left out") == 5


def test_a_hostile_client_does_not_break_the_round() -> None:
    states = {**STATES, NODES[0]: linear(torch.nan)}
    strategy = RobustStrategy("fedavg", FedAvg())
    arrays, metrics = a_round(strategy, linear(0), states)
    assert bool(torch.from_numpy(arrays["w"].numpy()).isfinite().all()) and metrics["guard/nonfinite"] == 1
    assert NODES[0] in strategy.outcomes[1].rejected


def test_what_is_wrong_is_said_before_the_run() -> None:
    with pytest.raises(TypeError, match="inner='FedAvg' is no Flower strategy"):
        RobustStrategy("krum", "FedAvg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give root, a function"):
        RobustStrategy("fltrust", FedAvg())
    with pytest.raises(ValueError, match="keys='w' is no list of keys"):
        RobustStrategy("krum", FedAvg(), keys="w")
    with pytest.raises(ValueError, match="tries models on samples"):
        RobustStrategy("deepsight", FedAvg())
    with pytest.raises(ValueError, match="2 arrays came, where 1 have a name"):
        arrays = ArrayRecord([value.numpy() for value in linear(0).values()])
        RobustStrategy("krum", FedAvg(), keys=["w"]).configure_train(1, arrays, ConfigRecord(), Grid())


def test_a_server_with_data_of_its_own() -> None:
    strategy = RobustStrategy("fltrust", FedAvg(), root=lambda state: linear(2))
    assert a_round(strategy, linear(0), STATES)[0]["w"].numpy().tolist() == pytest.approx([2, 2])


@pytest.mark.slow
def test_the_example_in_a_simulation() -> None:
    """Ten clients, one of them hostile, over Ray: it is rejected in every round, and verdicts are `aggregate`'s."""
    pytest.importorskip("ray")
    specification = importlib.util.spec_from_file_location("flower_app", EXAMPLE)
    assert specification is not None and specification.loader is not None
    app = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(app)
    strategies: list[Recording] = []

    class Recording(RobustStrategy):
        """Keeps what it was sent."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.rounds: list[tuple[State, dict[int, State]]] = []
            strategies.append(self)

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            kept = list(replies)
            sent = {m.metadata.src_node_id: dict(m.content["arrays"].to_torch_state_dict()) for m in kept}
            self.rounds.append((dict(self._global), dict(sorted(sent.items()))))
            return super().aggregate_train(server_round, kept)

    app.RobustStrategy = Recording
    resources = {"client_resources": {"num_cpus": 1}}
    app.run_simulation(app.server_app, app.client_app, num_supernodes=10, backend_config=resources)
    (strategy,) = strategies
    assert len(strategy.rounds) == 3
    for number, (start, sent) in enumerate(strategy.rounds):
        _, found = aggregate("flame_weights_only", start, [*sent.values()], round=number)
        assert len(sent) == 10 and found.mask.tolist() == strategy.outcomes[number + 1].mask.tolist()
        lengths = {node: float((state["0.weight"] - start["0.weight"]).norm()) for node, state in sent.items()}
        assert max(lengths, key=lambda node: lengths[node]) in strategy.outcomes[number + 1].rejected
