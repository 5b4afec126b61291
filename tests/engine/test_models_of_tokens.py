"""Models of tokens in every engine, to the bit; and what both FLAME vectors are of what they send."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from texts import TEXT
from torch import Tensor

from flame.defenses.base import defend
from flame.defenses.deepsight import neups
from flame.engine.base import Engine, WorkerError
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.engine.sharing import emptied, filled
from flame.engine.stacked import Stacked
from flame.federation import Round, play
from flame.round.seeding import generator
from flame.round.types import Cohort, digest
from flame.run.build import Parts, build, make
from flame.run.recording import Recorder, read_round
from models.lstm import LSTM

Compose = Callable[..., DictConfig]
SMALL = (*TEXT, "attack=none", "train_samples=null", "client.batch_size=6")
LSTM_ = ("model=lstm", "model.embedding=8", "model.hidden=8")
CNN = ("model=text_cnn", "model.width=16", "model.layers=2")
EVERYBODY = Cohort(torch.arange(4), torch.zeros(4, dtype=torch.bool))


@pytest.fixture
def parts(tiny: Compose) -> Callable[..., Parts]:
    """Ten clients with twelve texts each, two steps an epoch."""
    return lambda *overrides: build(tiny(*SMALL, *overrides))


def played(parts: Parts, engine: Engine) -> Round:
    with closing(engine):
        return play(parts.federation(engine), parts.initial)


@pytest.mark.parametrize(
    "model",
    [
        (*LSTM_, "model.tied=true", "model.dropout=0.3"),
        ("model=gru", "model.hidden=8", "model.layers=3", "dataset.labels=last", "model.answers=last"),
        CNN,
    ],
    ids=["lstm", "gru", "text_cnn"],
)
def test_a_pool_sends_the_bits_of_one_process_every_time(parts: Callable[..., Parts], model: tuple[str, ...]) -> None:
    """LSTM and GRU hold their weights in a list beside their names: training in a copy must move both."""
    made = parts(*model)
    first, again, pooled = (
        played(made, engine) for engine in (Sequential(made.task), Sequential(made.task), Pool(made.task, workers=2))
    )
    for other in (again, pooled):
        assert torch.equal(first.updates.rows, other.updates.rows) and digest(first.after) == digest(other.after)
        assert first.metrics["eval/ma_loss"] == other.metrics["eval/ma_loss"]
    assert bool((first.updates.rows.norm(dim=1) > 0).all())


def test_a_copy_s_flat_weights_are_its_parameters() -> None:
    """On their way to a worker, too, where they are views of one buffer."""
    model = LSTM(12, 12, 8, 8, 2, True, 0.0, "every")
    hollow, flats = emptied(model)
    twin = pickle.loads(pickle.dumps(filled(hollow, flats)))
    for each in (filled(hollow, flats), twin):
        assert isinstance(each, LSTM)
        assert all(w is p for w, p in zip(each.rnn._flat_weights, each.rnn.parameters(), strict=True))
        assert each.encoder.weight is each.decoder.weight
    x = torch.tensor([[1, 2, 3]])
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert not twin(x).any()


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_stack_of_text_cnns_sends_what_each_would(parts: Callable[..., Parts], norm: str) -> None:
    made = parts(*CNN, f"model.norm={norm}", "client.max_steps=2")
    (wanted, _), (found, _) = (e.train(made.initial, EVERYBODY) for e in (Sequential(made.task), Stacked(made.task, 4)))
    assert 0 < float(off(wanted.rows, found.rows)) < 1e-5  # measured: 3e-7
    assert torch.equal(wanted.counters, found.counters)


@pytest.mark.parametrize("model", ["lstm", "gru"])
def test_what_vmap_has_no_rule_for_is_not_stacked(parts: Callable[..., Parts], model: str) -> None:
    said = rf"engine=stacked cannot train model={model.upper()}, .*vmap cannot batch \(LSTM, GRU\): take engine=pool"
    with pytest.raises(WorkerError, match=said):
        Stacked(parts(f"model={model}").task, 4)


@pytest.mark.parametrize("model", [LSTM_, ("model=gru",), CNN], ids=["lstm", "gru", "text_cnn"])
def test_bf16_is_near_float32(parts: Callable[..., Parts], model: tuple[str, ...]) -> None:
    exact, rough = parts(*model, "client.max_steps=2"), parts(*model, "client.max_steps=2", "precision=bf16")
    (wanted, _), (found, _) = (Sequential(made.task).train(made.initial, EVERYBODY) for made in (exact, rough))
    assert 1e-4 < float(off(wanted.rows, found.rows)) < 0.1 and found.rows.dtype == torch.float32


def off(wanted: Tensor, found: Tensor) -> Tensor:
    """[], how far apart rows are at most, of their length."""
    return ((wanted - found).norm(dim=1) / wanted.norm(dim=1)).max()


@pytest.mark.parametrize(("model", "one"), [(LSTM_, True), (CNN, False), ((*CNN, "model.norm=group"), True)], ids=str)
def test_both_vectors_are_one_without_statistics(
    parts: Callable[..., Parts], tiny: Compose, model: tuple[str, ...], one: bool
) -> None:
    """To the bit, on a real round: distances, and so decision, clipping, noise and the next model."""
    made = parts(*model)
    record = played(made, Sequential(made.task))
    layout, updates = record.updates.layout, record.updates
    assert (layout.span("weights_only") == layout.span("all_state")) == one
    near, far = (updates.geometry.cosine_distances(scope) for scope in ("weights_only", "all_state"))
    assert torch.equal(near, far) == one and float(near.max()) > 0
    verdicts = [
        defend(make(tiny(f"defense=flame_{scope}"), "defense"), record.before, updates, generator(0, "defense"))
        for scope in ("weights_only", "all_state")
    ]
    assert torch.equal(verdicts[0].state.row, verdicts[1].state.row) or not one


def test_a_tied_output_layer_is_what_defenses_look_at(parts: Callable[..., Parts], tmp_path: Path) -> None:
    """A matrix of 12 classes and its bias, in a recorded round as well."""
    made = parts(*LSTM_, "model.tied=true")
    record = played(made, Sequential(made.task))
    Recorder(tmp_path, [0], 0, 0).log(record)
    back = read_round(next(tmp_path.rglob("*.safetensors"))).updates
    assert [e.key for e in back.layout.entries if e.block == "head"] == ["decoder.weight", "decoder.bias"]
    assert neups(back).shape == (5, 12) and torch.equal(neups(back), neups(record.updates))
    layers = 2 * 4 * 8 * (8 + 8 + 2)
    assert made.task.layout.spans["head"] == slice(layers, layers + (8 + 1) * 12)
