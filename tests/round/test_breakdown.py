"""What a test set hides: counts by hand, sums that are the accuracies, single clients against a direct loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from torch import Generator, Tensor, nn

from flame.data.samples import Samples, Shards
from flame.engine.sequential import Sequential
from flame.federation import Round, rounds
from flame.partition.examined import examined
from flame.partition.figure import label_histogram, label_skew
from flame.round.breakdown import class_rows, client_accuracies, source_accuracy
from flame.round.evaluate import Evaluation, evaluate, slices, total
from flame.round.smoothing import vote
from flame.run.build import Parts, build

COUNTED = {(0, 0, 0): 3, (0, 0, 2): 1, (2, 2, 2): 4, (2, 2, 0): 4}  # (true, wanted, answered) -> images
TRIGGERED = {(0, 1, 1): 3, (0, 1, 0): 1, (2, 1, 1): 2, (2, 1, 2): 6}


class Pixels(nn.Module):
    """Three classes; the logits are the first three pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


def shown(answers: list[int]) -> Tensor:
    """Images that `Pixels` answers with these classes, [N, 1, 2, 2] uint8."""
    x = torch.zeros(len(answers), 4, dtype=torch.uint8)
    x[torch.arange(len(answers)), torch.tensor(answers)] = 200
    return x.view(-1, 1, 2, 2)


def test_answers_are_counted_by_hand() -> None:
    data = Samples(shown([0, 1, 2, 1, 1]), torch.tensor([1, 1, 1, 1, 0]))
    truth = torch.tensor([0, 0, 2, 2, 0])
    wanted = {(0, 1, 0): 1, (0, 1, 1): 1, (2, 1, 2): 1, (2, 1, 1): 1, (0, 0, 1): 1}
    found = evaluate(Pixels(), data, lambda x: x.float(), truth)
    assert found.answers == wanted and found.correct == 2
    voted = vote([Pixels(), Pixels()], data, lambda x: x.float(), 0.001, truth)
    assert voted.answers == wanted and voted.correct == 2


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=30), st.integers(1, 29))
def test_slices_add_up_and_nothing_else_changes(triples: list[tuple[int, int, int]], cut: int) -> None:
    truth, wanted, answered = (list(column) for column in zip(*triples, strict=True))
    data, classes = Samples(shown(answered), torch.tensor(wanted)), torch.tensor(truth)
    parts = [part for part in (slice(0, cut), slice(cut, None)) if len(data[part])]
    found = total(evaluate(Pixels(), data[part], lambda x: x.float(), classes[part]) for part in parts)
    assert found.answers == {triple: triples.count(triple) for triple in triples}
    plain = total(evaluate(Pixels(), data[part], lambda x: x.float()) for part in parts)
    assert plain.answers is None and (plain.correct, plain.loss, plain.count) == (
        *(found.correct, found.loss, found.count),
    )
    rows = class_rows({"clean": found}, 3)
    assert sum(row["correct"] for row in rows) == found.correct and sum(row["images"] for row in rows) == found.count
    for row in rows:
        assert sum(row[f"answered_{k}"] for k in range(3)) == row["images"] == truth.count(row["class"])


def test_rows_by_hand() -> None:
    rows = class_rows({"clean": Evaluation(7, 1.0, 12, answers=COUNTED), "backdoor": Evaluation(0, 1.0, 4)}, 3)
    assert rows == [
        {"set": "clean", "class": 0, "images": 4, "correct": 3, "accuracy": "0.75"}
        | {"answered_0": 3, "answered_1": 0, "answered_2": 1},
        {"set": "clean", "class": 2, "images": 8, "correct": 4, "accuracy": "0.5"}
        | {"answered_0": 4, "answered_1": 0, "answered_2": 4},
    ]
    triggered = class_rows({"backdoor": Evaluation(5, 1.0, 12, answers=TRIGGERED)}, 3)
    assert [(row["class"], row["accuracy"], row["answered_1"]) for row in triggered] == [(0, "0.75", 3), (2, "0.25", 2)]


def test_what_a_backdoor_costs_its_source_class() -> None:
    clean = Evaluation(7, 1.0, 12, answers=COUNTED)
    from_two = Evaluation(2, 1.0, 8, answers={key: n for key, n in TRIGGERED.items() if key[0] == 2})
    assert source_accuracy({"clean": clean, "backdoor": from_two}) == {"eval/source_ma": 0.5}
    all_to_one = Evaluation(5, 1.0, 12, answers=TRIGGERED)
    for others in ({"clean": clean, "backdoor": all_to_one}, {"clean": clean}, {}, {"backdoor": from_two}):
        assert source_accuracy(others) == {}


def test_the_mean_client_and_the_worst_tenth_by_hand() -> None:
    """Of eleven clients the worst tenth is two; a client of one image counts as one of ten."""
    found = {f"client {i}": Evaluation(i, 1.0, 10) for i in range(10)} | {"client 10": Evaluation(1, 1.0, 1)}
    metrics = client_accuracies(found, {"benign": range(11), "skewed": [3, 9]})
    assert metrics == {
        "eval/benign_clients_ma": pytest.approx(5.5 / 11),
        "eval/benign_clients_worst": pytest.approx(0.05),
        "eval/skewed_clients_ma": pytest.approx(0.6),
        "eval/skewed_clients_worst": pytest.approx(0.3),
    }
    assert client_accuracies({}, {"benign": [1]}) == {}  # a round that is not evaluated


def test_who_is_examined() -> None:
    """Six clients of four images and two classes, skews 0, 1/2, 0, 1/2, 1/4, 1/4; the last shard is the server's."""
    y = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1])
    shards = Shards.cut(torch.arange(28), torch.full((7,), 4))
    honest = torch.tensor([True, True, True, False, True, True])
    groups = examined(y, shards, honest, 2, Generator().manual_seed(0))
    assert groups["skewed"] == [1, 4]  # client 3 is the attacker's; of equals, the first
    assert 3 not in groups["benign"] and groups["benign"] == sorted(set(groups["benign"]))
    drawn = {tuple(examined(y, shards, honest, 2, Generator().manual_seed(i))["benign"]) for i in range(99)}
    assert len(drawn) == 10  # every pair of five
    assert examined(y, shards, honest, 0, Generator()) == {}
    with pytest.raises(ValueError, match=r"evaluate.clients=6 is out of range: must be in \[0, 5\]"):
        examined(y, shards, honest, 6, Generator())


@pytest.fixture(scope="module")
def parts(tiny: Callable[..., DictConfig]) -> Parts:
    wanted = ("evaluate.per_class=true", "evaluate.clients=3", "partition=dirichlet", "partition.min_size=2")
    return build(tiny(*wanted, "attack.source_class=3", "evaluate_every=2"))


@pytest.fixture(scope="module")
def records(parts: Parts) -> list[Round]:
    with closing(Sequential(parts.task)) as engine:
        return list(rounds(parts.federation(engine), parts.initial, 2))


def test_a_round_against_a_direct_loop(parts: Parts, records: list[Round]) -> None:
    record, task = records[1], parts.task
    model = task.layout.unflatten(record.after.row, record.after.counters)
    task.model.load_state_dict(model)
    task.model.to(memory_format=torch.channels_last)
    for short, name in (("ma", "clean"), ("ba", "backdoor")):
        rows = [row for row in record.classes if row["set"] == name]
        images, right = (sum(row[key] for row in rows) for key in ("images", "correct"))
        assert images == len(task.eval_sets[name]) and right / images == record.metrics[f"eval/{short}"]
    assert [row["class"] for row in record.classes if row["set"] == "backdoor"] == [3]
    source = parts.dataset.test[parts.dataset.test.y == 3]
    direct = total(evaluate(task.model, source[part], task.normalise) for part in slices(len(source)))
    assert record.metrics["eval/source_ma"] == direct.accuracy
    bad = set(parts.population.compromised().nonzero().flatten().tolist())
    skew = label_skew(label_histogram(task.train.y, task.shards, 10)[:10])
    honest = sorted(set(range(10)) - bad, key=lambda client: -float(skew[client]))
    assert parts.exams.groups["skewed"] == sorted(honest[:3]) and not bad & set(parts.exams.groups["benign"])
    for group, clients in parts.exams.groups.items():
        held = [task.train[task.shards[client]] for client in clients]
        shares = sorted(evaluate(task.model, images, task.normalise).accuracy for images in held)
        assert record.metrics[f"eval/{group}_clients_ma"] == pytest.approx(sum(shares) / 3)
        assert record.metrics[f"eval/{group}_clients_worst"] == shares[0]


def test_only_evaluated_rounds_and_only_on_request(records: list[Round], history: list[Round]) -> None:
    assert not records[0].classes and not [key for key in records[0].metrics if key.startswith("eval/")]
    assert all(not record.classes for record in history)
    keys = {key for record in history for key in record.metrics if key.startswith("eval/")}
    assert keys == {"eval/ma", "eval/ba", "eval/ma_loss", "eval/ba_loss"}
