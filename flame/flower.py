"""Any of our defenses in anyone's Flower app: a strategy around the one that the app has.

    strategy = flame.flower.RobustStrategy(defense="flame_weights_only", inner=FedAvg(fraction_train=0.5))

The inner strategy chooses clients, writes messages and evaluates as ever. In `aggregate_train` (`aggregate_fit`) it
gets one reply in the place of all: the model that the defense has made. FedAvg hands it on to the bit; FedAvgM or
FedAdam take their step from it. Metrics are those of accepted clients.

Both of Flower's interfaces will do, whichever `inner` is of: messages (`flwr.serverapp.strategy`), whose ArrayRecords
have a state_dict's names or numbers only, and lists of numpy arrays (`flwr.server.strategy`). Where arrays have no
names, `keys=model.state_dict()` gives them; without, all floats count as parameters, BatchNorm's statistics, too.

A reply is left out, with a warning, if it cannot be read, does not fit the global model, has no number of examples or
other metrics than most (FedAvg gives up the run), or is not its node's first (FedAvg counts it). Clients are taken in
the order of their node ids, not of arrival. Tried with flwr 1.42.0 (and ray 2.55.1) and 1.30.0.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

try:
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.common import FitRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import Strategy as FitStrategy
    from flwr.serverapp.strategy import Strategy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("flame.flower needs the extra `flower`: pip install 'flwr>=1.30'") from error

from flame.defenses.base import Defense
from flame.library import Aggregator, Outcome, hashed
from flame.round.plain import State, as_tensors, check_fit, listed

log = logging.getLogger(f"flwr.{__name__}")  # below Flower's own, so that it speaks where Flower does

EXAMPLES = "num-examples"  # Flower's name, unless the inner strategy has another


@dataclass(frozen=True)
class Reply:
    """What one client sent."""

    node: int
    state: State
    samples: int
    form: tuple[object, ...]  # of its metrics: names and lengths
    source: Any  # as Flower has it


class RobustStrategy(Strategy, FitStrategy):
    """The `inner` strategy behind a defense: a name from conf/defense with options for its keys, or a callable."""

    def __init__(
        self,
        defense: str | Defense,
        inner: Strategy | FitStrategy,
        *,
        keys: Iterable[str] | None = None,
        root: Callable[[State], State] | None = None,
        **options: Any,
    ) -> None:
        """`keys` names arrays that come without names; `root` trains a global state_dict on the server's own data.

        `options` are those of `flame.Aggregator`: seed, parameters, and the defense's own.
        """
        if not isinstance(inner, (Strategy, FitStrategy)):
            raise TypeError(f"inner={inner!r} is no Flower strategy: must be one, such as FedAvg()")
        self.inner, self.root = inner, root
        self.keys = listed("keys", keys)
        self.aggregator = Aggregator(defense, **options)
        self.outcomes: dict[int, Outcome] = {}  # of each round, from 1; ids are node ids
        self._global: State = {}
        self._names: list[str] = []  # of its arrays, as messages have them
        if getattr(self.aggregator.defense, "root_samples", 0) and root is None:
            raise ValueError(
                f"defense={self.aggregator.name} compares clients with a model that the server trains on data of its"
                " own: give root, a function from the global state_dict to that model's"
            )

    def summary(self) -> None:
        """Log what Flower logs before a run."""
        log.info("\t├──> Defense: %s", self.aggregator.name)
        self.inner.summary()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Iterable[Message]:
        """As the inner strategy; the global model is noted."""
        self._note(arrays.to_numpy_ndarrays(), [*arrays])
        messages: Iterable[Message] = self.inner.configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's answer to the defended model, and the metrics of accepted clients with the defense's."""
        weight = getattr(self.inner, "weighted_by_key", EXAMPLES)
        sent = self._usable(replies, lambda message: self._of_message(message, weight))
        if not sent:
            nothing: tuple[ArrayRecord | None, MetricRecord | None] = self.inner.aggregate_train(server_round, [])
            return nothing
        state, outcome, chosen = self._defended(server_round, sent)
        arrays, metrics = self.inner.aggregate_train(server_round, [self._with_arrays(chosen[0].source, state)])
        if (mean := getattr(self.inner, "train_metrics_aggr_fn", None)) is not None:
            metrics = mean([reply.source.content for reply in chosen], weight)
        if arrays is not None:
            arrays = self._record(self._as_before(arrays.to_numpy_ndarrays()))
        return arrays, MetricRecord({**(metrics or {}), **_told(outcome)})

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> list[Any]:
        """As the inner strategy; the global model is noted."""
        arrays = parameters_to_ndarrays(parameters)
        self._note(arrays, numbers(len(arrays)))
        instructions: list[Any] = self.inner.configure_fit(server_round, parameters, client_manager)
        return instructions

    def aggregate_fit(
        self, server_round: int, results: Sequence[tuple[Any, FitRes]], failures: Sequence[Any]
    ) -> tuple[Parameters | None, dict[str, Any]]:
        """The same for lists of arrays."""
        sent = self._usable(results, self._of_result)
        if not sent:
            nothing: tuple[Parameters | None, dict[str, Any]] = self.inner.aggregate_fit(server_round, [], failures)
            return nothing
        state, outcome, chosen = self._defended(server_round, sent)
        client, result = chosen[0].source
        made = replace(result, parameters=ndarrays_to_parameters([value.numpy() for value in state.values()]))
        parameters, metrics = self.inner.aggregate_fit(server_round, [(client, made)], failures)
        if (mean := getattr(self.inner, "fit_metrics_aggregation_fn", None)) is not None:
            metrics = mean([(reply.samples, reply.source[1].metrics) for reply in chosen])
        if parameters is not None:
            parameters = ndarrays_to_parameters(self._as_before(parameters_to_ndarrays(parameters)))
        return parameters, {**metrics, **_told(outcome)}

    def configure_evaluate(self, *arguments: Any, **named: Any) -> Any:
        """As the inner strategy, of whichever interface."""
        return self.inner.configure_evaluate(*arguments, **named)

    def aggregate_evaluate(self, *arguments: Any, **named: Any) -> Any:
        """As the inner strategy, of whichever interface."""
        return self.inner.aggregate_evaluate(*arguments, **named)

    def initialize_parameters(self, client_manager: Any) -> Parameters | None:
        """As the inner strategy."""
        return self.inner.initialize_parameters(client_manager)

    def evaluate(self, server_round: int, parameters: Parameters) -> Any:
        """As the inner strategy."""
        return self.inner.evaluate(server_round, parameters)

    def _note(self, arrays: Sequence[np.ndarray], names: list[str]) -> None:
        """The global model of a round."""
        if not self._names and names == numbers(len(names)) and not (self.keys or self.aggregator.parameters):
            log.warning("arrays have no names, so all floats count as parameters: keys=model.state_dict() names them")
        self._names, self._global = names, self._named(as_tensors("the global model", lambda: arrays), names)

    def _defended(self, server_round: int, sent: Sequence[Reply]) -> tuple[State, Outcome, Sequence[Reply]]:
        """The defended model, the outcome, and whom of the senders to ask for metrics: all if nobody is accepted."""
        root = None if self.root is None else self.root(dict(self._global))
        self.aggregator.round = server_round - 1
        states, samples = [reply.state for reply in sent], [reply.samples for reply in sent]
        ids = [reply.node % 2**63 for reply in sent]  # node ids have 64 bits, a tensor's numbers a sign
        state, outcome = self.aggregator(self._global, states, samples, ids=ids, root_state=root)
        outcome = replace(outcome, ids=tuple(reply.node for reply in sent))
        self.outcomes[server_round] = outcome
        log.info("%s: accepted %d of %d clients", self.aggregator.name, len(outcome.accepted), len(sent))
        chosen = [reply for reply, kept in zip(sent, outcome.mask.tolist(), strict=True) if kept]
        return state, outcome, chosen or sent

    def _usable(self, replies: Iterable[Any], read: Callable[[Any], Reply]) -> list[Reply]:
        """What can be read and fits, by node; the rest is named in the log."""
        first = dict[int, Reply]()
        for source in replies:
            try:
                reply = read(source)
                if first.setdefault(reply.node, reply) is not reply:
                    raise ValueError(f"node {reply.node} has replied already in this round")
            except (TypeError, ValueError) as error:
                log.warning("a reply is left out: %s", error)
        found = [first[node] for node in sorted(first)]  # of two forms that as many have, the first in this order
        usual = Counter(reply.form for reply in found).most_common(1)
        for reply in found:
            if reply.form != usual[0][0]:
                log.warning("a reply is left out: node %d has other metrics than most, %s", reply.node, reply.form)
        return [reply for reply in found if reply.form == usual[0][0]]

    def _of_message(self, message: Message, weight: str) -> Reply:
        node = message.metadata.src_node_id
        if message.has_error():
            raise ValueError(f"node {node} had an error: {message.error.reason}")
        arrays, metrics = (list(r.values()) for r in (message.content.array_records, message.content.metric_records))
        if len(arrays) != 1 or len(metrics) != 1:
            told = f"{len(arrays)} ArrayRecords and {len(metrics)} MetricRecords"
            raise ValueError(f"node {node} sent {told}: must be one of each")
        form = tuple(sorted((key, len(v) if isinstance(v, list) else 0) for key, v in metrics[0].items()))
        state = self._named(as_tensors(f"what node {node} sent", arrays[0].to_numpy_ndarrays), [*arrays[0]])
        return self._reply(node, state, metrics[0].get(weight), form, message)

    def _of_result(self, result: tuple[Any, FitRes]) -> Reply:
        client, fitted = result
        node = int(client.cid) if client.cid.isdecimal() else hashed(client.cid.encode())
        tensors = as_tensors(f"what node {node} sent", lambda: parameters_to_ndarrays(fitted.parameters))
        state = self._named(tensors, numbers(len(tensors)))
        return self._reply(node, state, fitted.num_examples, tuple(sorted(fitted.metrics)), result)

    def _reply(self, node: int, state: State, samples: Any, form: tuple[object, ...], source: Any) -> Reply:
        check_fit(f"what node {node} sent", self._global, state)
        if not isinstance(samples, (int, float)) or not 1 <= samples < 2**53:
            raise ValueError(f"node {node} trained on {samples} examples: must be a number >= 1")
        return Reply(node, state, int(samples), form, source)

    def _named(self, tensors: Sequence[Tensor], names: Sequence[str]) -> State:
        """Tensors as a state_dict; where names are numbers, which say nothing, by `keys` or as the global model's."""
        if [*names] == numbers(len(names)):
            names = self.keys or [*self._global] or names
        if len(names) != len(tensors):
            raise ValueError(f"{len(tensors)} arrays came, where {len(names)} have a name (keys)")
        return dict(zip(names, tensors, strict=True))

    def _as_before(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the dtypes of the global model: an average makes whole numbers floats."""
        return [np.asarray(a, v.numpy().dtype) for a, v in zip(arrays, self._global.values(), strict=True)]

    def _record(self, arrays: Iterable[np.ndarray]) -> ArrayRecord:
        return ArrayRecord({name: Array(array) for name, array in zip(self._names, arrays, strict=True)})

    def _with_arrays(self, message: Message, state: State) -> Message:
        """The message with another model in it."""
        (place,) = message.content.array_records
        made = copy.copy(message)
        made.content = RecordDict({**message.content, place: self._record(value.numpy() for value in state.values())})
        return made


def numbers(n: int) -> list[str]:
    """The names that Flower gives to arrays without names."""
    return [str(i) for i in range(n)]


def _told(outcome: Outcome) -> Mapping[str, float]:
    """What the log and the result show of a round, beside the clients' metrics."""
    return {"filter/clients": len(outcome.ids), "filter/accepted": len(outcome.accepted), **outcome.info}
