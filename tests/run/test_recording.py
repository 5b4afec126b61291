"""Recorded rounds, written by a run or by other code: read back, or refused in words when they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.recorded import Fields, foreign, recorded_round, written
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flame.run.recording import read_round, state_order
from models.cnn import CNN
from models.resnet8 import ResNet8
from models.resnet18 import ResNet18


def test_a_written_round_reads_back_bit_for_bit(tmp_path: Path) -> None:
    before, after = recorded_round(0, 10), read_round(written(tmp_path / "round.safetensors"))
    assert after.updates.layout == before.updates.layout
    assert (after.state.round, after.seed) == (12, 3)
    for name in ("base", "base_counters", "rows", "counters", "samples", "ids", "models"):
        assert torch.equal(getattr(after.updates, name), getattr(before.updates, name)), name


def test_a_foreign_file_is_the_same_round(tmp_path: Path) -> None:
    mine = read_round(written(tmp_path / "round.safetensors"))
    theirs = read_round(foreign(tmp_path / "foreign.safetensors"))
    assert theirs.updates.layout == mine.updates.layout
    assert torch.equal(theirs.updates.models, mine.updates.models)
    assert theirs.updates.ids.tolist() == list(range(40, 50))


MODELS = (ResNet8(1, 10, "batch"), ResNet18(3, 10, [4, 4, 4, 4], "batch"), CNN(1, 10, 8, 0.0), nn.GRU(4, 5))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_order_is_restored_from_the_names(model: nn.Module) -> None:
    keys = list(model.state_dict())
    assert state_order(sorted(keys), [name for name, _ in model.named_parameters()]) == keys


def drop(name: str) -> Callable[[dict[str, Tensor], Fields], None]:
    def edit(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors.pop(name, None)
        fields.pop(name, None)

    return edit


def put(name: str, value: object) -> Callable[[dict[str, Tensor], Fields], None]:
    def edit(tensors: dict[str, Tensor], fields: Fields) -> None:
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            fields[name] = value

    return edit


def both(name: str, value: Tensor) -> Callable[[dict[str, Tensor], Fields], None]:
    """The tensor of the global model and of all ten clients."""

    def edit(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors |= {f"global/{name}": value, f"clients/{name}": torch.stack([value] * 10)}

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop("clients/fc.bias"), r"the same keys.*missing: \['clients/fc.bias'\]"),
        (drop("global/fc.bias"), r"the same keys.*missing: \['global/fc.bias'\]"),
        (put("clients/fc.bias", torch.zeros(9, 10)), r"same n >= 1 clients.*9: 'clients/fc.bias'"),
        (put("clients/fc.bias", torch.zeros(10, 11)), r"clients/fc.bias is \(10, 11\), must be \(10, 10\)"),
        (put("clients/fc.bias", torch.zeros(10, 10, dtype=torch.float64)), "float64.*float32"),
        (put("global/fc.bias", torch.full((10,), torch.inf)), "global/fc.bias is not finite"),
        (both("mask", torch.full((3,), 1e300, dtype=torch.float64)), "global/mask is not finite in float32"),
        (both("mask", torch.ones(3, dtype=torch.complex64)), "global/mask is torch.complex64: must be"),
        (both("mask", torch.ones(3).to(torch.float8_e4m3fn)), "global/mask is torch.float8_e4m3fn: must be"),
        (drop("trainable"), "metadata trainable is missing: it must be a JSON list"),
        (put("trainable", []), "trainable is empty"),
        (put("trainable", ["fc.weight", "nowhere"]), "nowhere"),
        (put("trainable", ["bn1.num_batches_tracked"]), "not float tensors"),
        (put("samples", [3]), r"samples=\[3\] must be a JSON list of 10 int"),
        (put("samples", [0] * 10), "at least one training sample"),
        (put("samples", [10**30] * 10), "64 bits"),
        (put("client_ids", ["a"] * 10), r"client_ids=\['a'.* must be"),
        (put("round", "twelve"), "round='twelve'"),
        (put("keys", ["fc.weight"]), "keys differs"),
    ],
)
def test_what_does_not_fit_is_named(
    edit: Callable[[dict[str, Tensor], Fields], None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        read_round(foreign(tmp_path / "x", edit))


@pytest.mark.parametrize("name", ["trainable", "samples", "round"])
def test_metadata_that_is_no_json_is_named(name: str, tmp_path: Path) -> None:
    path = foreign(tmp_path / "x")
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(path), path, metadata=metadata | {name: "fc.weight,fc.bias"})
    with pytest.raises(ValueError, match=f"metadata {name}='fc.weight,fc.bias' is not JSON .*json.dumps"):
        read_round(path)
