"""State layout: nothing is lost, blocks stand where scopes are slices, the last trainable layer is the head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flame.geometry.layout import BLOCKS, SCOPES, StateLayout, scope_blocks
from models.cnn import CNN
from models.resnet8 import ResNet8
from models.resnet18 import ResNet18
from models.vgg19_bn import VGG19BN

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: ResNet8(1, 10, "batch"),
    "resnet8-group": lambda: ResNet8(1, 10, "group"),
    "resnet8-none": lambda: ResNet8(1, 10, "none"),
    "resnet18_light": lambda: ResNet18(3, 10, (32, 64, 128, 256), "batch"),
    "vgg19_bn": lambda: VGG19BN(3, 10, 32, 0.0),
    "cnn": lambda: CNN(1, 10, 28, 0.0),
}
HEADS = {"vgg19_bn": "classifier.4", "cnn": "fc2"}  # of the others: fc


def scrambled(model: nn.Module) -> dict[str, Tensor]:
    """A state_dict with a different value in every element."""
    state, start = {}, 0
    for key, value in model.state_dict().items():
        values = torch.arange(start, start + value.numel())
        state[key], start = values.view(value.shape).to(value.dtype), start + value.numel()
    return state


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str) -> None:
    model = MODELS[name]()
    layout, state = StateLayout.of(model), scrambled(model)
    rows, counters = layout.zeros(2)
    layout.flatten(state, rows[1], counters[1])
    back = layout.unflatten(rows[1], counters[1])
    assert list(back) == list(state)
    for key, value in state.items():
        assert back[key].dtype == value.dtype
        assert torch.equal(back[key], value)
    assert not rows[0].any() and not counters[0].any()  # the neighbour's row is untouched


def test_a_float_counter_is_a_counter() -> None:
    """In a live model, too; nothing that int64 does not hold becomes a plausible count."""
    model = nn.BatchNorm1d(2)
    model.num_batches_tracked = torch.tensor(2.75)  # type: ignore[assignment]
    layout = StateLayout.of(model)
    assert [e.key for e in layout.counters] == ["num_batches_tracked"] and layout.size == 8
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(model.state_dict(), row, counters)
    assert counters.tolist() == [2]
    layout.load(model.state_dict(), row, counters + 3)
    assert model.num_batches_tracked.item() == 5.0
    for odd in (float("nan"), float("inf"), -float("inf"), 1e30):
        layout.flatten({**model.state_dict(), "num_batches_tracked": torch.tensor(odd)}, row, counters)
        assert counters.item() > 2**60
    with pytest.raises(ValueError, match="num_batches_tracked"):
        StateLayout.from_state(model.state_dict(), ["weight", "num_batches_tracked"])


@pytest.mark.parametrize("name", MODELS)
def test_blocks_cover_the_row_in_order(name: str) -> None:
    model = MODELS[name]()
    layout = StateLayout.of(model)
    assert list(layout.spans) == [b for b in BLOCKS if b in layout.spans]
    edges = [0, *(span.stop for span in layout.spans.values())]
    assert [span.start for span in layout.spans.values()] == edges[:-1]
    assert edges[-1] == layout.size == layout.span("all_state").stop
    floats = [v for v in model.state_dict().values() if v.is_floating_point()]
    assert layout.size == sum(v.numel() for v in floats)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_hold_what_they_say(name: str) -> None:
    model = MODELS[name]()
    layout = StateLayout.of(model)
    batchnorms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    channels = sum(m.num_features for m in batchnorms)
    assert layout.span("weights_only") == slice(0, sum(p.numel() for p in model.parameters()))
    assert layout.trainable == layout.span("weights_only").stop
    assert layout.counter_size == len(batchnorms)
    for block in ("running_mean", "running_var"):
        span = layout.spans.get(block, slice(0, 0))
        assert span.stop - span.start == channels
    head = model.get_submodule(HEADS.get(name, "fc"))
    span = layout.span("head")
    assert span == layout.spans["head"]
    assert span.stop - span.start == sum(p.numel() for p in head.parameters())


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_is_a_slice_without_holes(scope: str) -> None:
    layout = StateLayout.of(MODELS["resnet8"]())
    inside = torch.zeros(layout.size, dtype=torch.bool)
    for e in layout.entries:
        inside[e.start : e.stop] = e.block in scope_blocks(scope)
    span = layout.span(scope)
    assert inside[span].all() and int(inside.sum()) == span.stop - span.start


def test_without_statistics_all_scopes_of_floats_agree() -> None:
    layout = StateLayout.of(MODELS["cnn"]())
    assert layout.span("all_state") == layout.span("weights_only") == slice(0, layout.size)
    assert layout.counter_size == 0


def test_unflatten_gives_views_and_load_copies() -> None:
    model = ResNet8(1, 10, "batch").to(memory_format=torch.channels_last)
    layout = StateLayout.of(model)
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(scrambled(model), row, counters)
    layout.load(live := model.state_dict(), row, counters)
    assert torch.equal(live["conv1.weight"], layout.unflatten(row, counters)["conv1.weight"])
    assert live["layer1.0.conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    row.zero_()
    assert live["conv1.weight"].any()
    layout.unflatten(row, counters)["fc.bias"].fill_(3)
    assert row[layout.span("head")].sum() == 30


def test_a_state_of_an_unknown_architecture() -> None:
    """Only names and tensors, as a client might send them: odd buffers, a frozen layer, a scale at the top."""
    state = {
        "scale": torch.tensor(2.0),
        "embed.weight": torch.rand(5, 3),
        "norm.running_var": torch.rand(3),
        "norm.running_mean": torch.rand(3),
        "norm.num_batches_tracked": torch.tensor(9),
        "positions": torch.rand(2, 2),
        "mask": torch.tensor([True, False]),
        "out.bias": torch.rand(4),
        "out.weight": torch.rand(4, 3),
        "frozen.weight": torch.rand(1),
    }
    layout = StateLayout.from_state(state, ["out.weight", "scale", "embed.weight", "out.bias"])
    assert [e.key for e in layout.entries] == [
        *("scale", "embed.weight"),
        *("out.bias", "out.weight"),
        "norm.running_mean",
        "norm.running_var",
        *("positions", "frozen.weight"),
    ]
    assert layout.spans == {
        "trunk": slice(0, 16),
        "head": slice(16, 32),
        "running_mean": slice(32, 35),
        "running_var": slice(35, 38),
        "buffers": slice(38, 43),
    }
    assert [e.key for e in layout.counters] == ["norm.num_batches_tracked", "mask"]
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(state, row, counters)
    assert counters.tolist() == [9, 1, 0]
    back = layout.unflatten(row, counters)
    assert list(back) == list(state)
    assert all(torch.equal(back[k].to(v.dtype), v) for k, v in state.items())


class Tied(nn.Module):
    """Two names for one matrix, one norm in two places, and a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm1d(3)
        self.there, self.back = nn.Linear(3, 3), nn.Linear(3, 3)
        self.back.weight, self.again = self.there.weight, self.norm
        self.out = nn.Linear(3, 2)


def test_tied_weights_are_in_a_row_once() -> None:
    """scale 1, norm 3 + 3, there 9 + 3, back 3 (its bias), out 6 + 2; statistics 3 + 3; one counter."""
    model = Tied()
    layout = StateLayout.of(model)
    assert layout.trainable == 30 == sum(p.numel() for p in model.parameters())
    assert layout.size == 36 and layout.counter_size == 1
    again = [(f"again.{name}", f"norm.{name}") for name, _ in nn.BatchNorm1d(3).state_dict().items()]
    assert list(layout.tied) == [("back.weight", "there.weight"), *again]
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(model.state_dict(), row, counters)
    row += 1
    counters += 5
    layout.load(model.state_dict(), row, counters)
    assert float(model.scale.detach()) == 3.0 and int(model.again.num_batches_tracked) == 5
    state = layout.unflatten(row, counters)
    assert list(state) == list(model.state_dict())
    for key, name in layout.tied:
        assert state[key].data_ptr() == state[name].data_ptr() and torch.equal(model.state_dict()[key], state[name])


class Stateful(nn.Linear):
    """Keeps more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 0}


def with_buffer(values: Tensor) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("constant", values)
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
            r"parameter 1\.weight is torch\.float64: must be float32",
        ),
        (nn.Linear(2, 2).bfloat16(), r"parameter weight is torch\.bfloat16: .*call \.float\(\) on the model$"),
        (with_buffer(torch.ones(2).double()), r"buffer constant is torch\.float64: .* persistent=False"),
        (nn.Linear(2, 2, dtype=torch.complex64), r"parameter weight is torch\.complex64: .*torch\.view_as_real"),
        (with_buffer(torch.ones(2, dtype=torch.complex64)), r"buffer constant is torch\.complex64: must be float32"),
        (with_buffer(torch.ones(2, 2).to_sparse()), r"buffer constant is sparse .*\.to_dense\(\)"),
        (
            nn.LazyLinear(2),
            r"parameter weight has no shape before its first batch: give its layer the number of inputs",
        ),
        (nn.Flatten(), r"model=Flatten has no parameters"),
        (nn.BatchNorm2d(3, affine=False), r"model=BatchNorm2d has no parameters"),
        (Stateful(2, 2), r"_extra_state of its state_dict is a dict: must be a tensor"),
    ],
)
def test_what_a_row_cannot_hold_is_named_with_its_remedy(model: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StateLayout.of(model)
    StateLayout.of(with_buffer(torch.arange(3)))  # whole numbers are counters


def test_a_single_layer_is_all_head() -> None:
    layout = StateLayout.of(nn.Linear(3, 2))
    assert layout.spans == {"head": slice(0, 8)}
    assert layout.span("weights_only") == layout.span("all_state") == slice(0, 8)


def test_errors() -> None:
    state = {"a.weight": torch.rand(2), "a.steps": torch.tensor(1)}
    with pytest.raises(ValueError, match=r"trainable lists \['b.weight'\]"):
        StateLayout.from_state(state, ["a.weight", "b.weight"])
    with pytest.raises(ValueError, match=r"trainable lists \['a.steps'\]"):
        StateLayout.from_state(state, ["a.steps"])
    with pytest.raises(ValueError, match=r"b is torch\.complex64: must be a float tensor"):
        StateLayout.from_state({**state, "b": torch.ones(1, dtype=torch.complex64)}, ["a.weight"])
    with pytest.raises(ValueError, match="trainable is empty"):
        StateLayout.from_state(state, [])
    with pytest.raises(ValueError, match="scope='weights' is unknown: must be one of weights_only, all_state"):
        scope_blocks("weights")
