"""Models of tokens: sizes by hand, what they answer, that none looks ahead, and that all learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_models import seeded
from texts import texts
from torch import Tensor, nn

from flame.geometry.layout import StateLayout
from flame.round.seeding import addressed
from models.gru import GRU
from models.lstm import LSTM
from models.text_cnn import TextCNN, token_norm

LAYERS = {"embedding": 6, "hidden": 16, "layers": 2, "tied": False, "dropout": 0.0, "answers": "every"}
WIDE = {"width": 16, "kernel": 3, "layers": 2, "answers": "every"}


def lstm(tokens: int = 12, classes: int = 12, **changed: Any) -> nn.Module:
    return LSTM(tokens, classes, **{**LAYERS, **changed})


def gru(tokens: int = 12, classes: int = 12, **changed: Any) -> nn.Module:
    return GRU(tokens, classes, **{**LAYERS, **changed})


def text_cnn(tokens: int = 12, classes: int = 12, norm: str = "batch", **changed: Any) -> nn.Module:
    return TextCNN(tokens, classes, norm=norm, **{**WIDE, **changed})


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lstm": lstm,
    "lstm-tied": lambda **changed: lstm(**{"embedding": 16, "tied": True, **changed}),
    "gru": gru,
    "text_cnn": text_cnn,
    "text_cnn-group": lambda **changed: text_cnn(norm="group", **changed),
    "text_cnn-none": lambda **changed: text_cnn(norm="none", **changed),
}


def tokens(*shape: int, below: int = 12) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(1))


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_by_hand() -> None:
    """LSTM: four gates with two biases; GRU: three. The published sizes are those of conf/model."""
    own = {"embedding": 8, "hidden": 256, "layers": 2, "tied": False, "dropout": 0.0, "answers": "every"}
    first, second = 4 * 256 * (8 + 256 + 2), 4 * 256 * (256 + 256 + 2)
    assert size(LSTM(80, 80, **own)) == 80 * 8 + first + second + 257 * 80 == 819_920
    reddit = {"embedding": 200, "hidden": 200, "layers": 2, "tied": True, "dropout": 0.2, "answers": "every"}
    with torch.device("meta"):
        assert size(LSTM(50_000, 50_000, **reddit)) == 50_000 * 201 + 2 * 4 * 200 * 402 == 10_693_200
    assert size(gru()) == 12 * 6 + 3 * 16 * (6 + 16 + 2) + 3 * 16 * (16 + 16 + 2) + 17 * 12
    assert size(text_cnn()) == 12 * 16 + 2 * (3 * 16 * 16 + 2 * 16) + 17 * 12
    assert size(text_cnn(norm="group")) == size(text_cnn()) == size(text_cnn(norm="none")) + 2 * 16


@pytest.mark.parametrize("name", MODELS)
def test_no_answer_knows_a_later_token(name: str) -> None:
    """And each knows its own token; the reach of text_cnn is 1 + 2 (2^2 - 1) = 7 tokens."""
    model, x = seeded(MODELS[name]).eval(), tokens(3, 10)
    later = x.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 12
    with torch.inference_mode():
        before, after = model(x), model(later)
        assert before.shape == (3, 12, 10)
        assert torch.equal(before[:, :, :5], after[:, :, :5])
        assert bool(((before - after)[:, :, 5].abs() > 1e-4).any(1).all())
        earlier = x.clone()
        earlier[:, 0] = (earlier[:, 0] + 1) % 12
        moved = (model(earlier) - before).abs().amax((0, 1)) > 0
    assert moved.tolist() == ([True] * 7 + [False] * 3 if "cnn" in name else [True] * 10)


@pytest.mark.parametrize("name", MODELS)
def test_last_is_the_last_of_every(name: str) -> None:
    """One set of weights, both answers."""
    every, last, x = seeded(MODELS[name]).eval(), seeded(lambda: MODELS[name](answers="last")).eval(), tokens(3, 5)
    torch.testing.assert_close(last(x), every(x)[:, :, -1])


@pytest.mark.parametrize("name", MODELS)
def test_the_output_layer_is_the_decoder(name: str) -> None:
    """Its weights, too, where they are the embedding's as well; a row holds them once."""
    model = MODELS[name]()
    layout = StateLayout.of(model)
    assert layout.output_layer == "decoder"
    assert [e.key for e in layout.entries if e.block == "head"] == ["decoder.weight", "decoder.bias"]
    assert layout.trainable == size(model)
    assert layout.tied == ((("encoder.weight", "decoder.weight"),) if "tied" in name else ())
    assert (layout.size > layout.trainable) == (name == "text_cnn")


def test_tied_weights_are_one_parameter() -> None:
    """A step moves both ends by the sum of both gradients."""
    model, x = seeded(MODELS["lstm-tied"]), tokens(2, 4)
    assert model.get_parameter("encoder.weight") is model.get_parameter("decoder.weight")
    untied = seeded(lambda: lstm(embedding=16))
    untied.load_state_dict(model.state_dict())
    for each in (model, untied):
        F.cross_entropy(each(x), (x + 1) % 12).backward()
    both = [untied.get_parameter(f"{end}.weight").grad for end in ("encoder", "decoder")]
    assert both[0] is not None and both[1] is not None
    torch.testing.assert_close(model.get_parameter("decoder.weight").grad, both[0] + both[1])


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_norm_is_of_each_token_s_numbers(norm: str) -> None:
    """BatchNorm over all tokens of a batch, GroupNorm within one; as torch has them on rows of tokens."""
    block = seeded(lambda: text_cnn(norm=norm)).get_submodule("blocks.0")
    x = torch.randn(4, 16, 1, 5, generator=torch.Generator().manual_seed(0))
    conv = block.get_submodule("conv")
    h = F.conv1d(F.pad(x.squeeze(2), (2, 0)), conv.weight.squeeze(2)).transpose(1, 2).flatten(0, 1)  # [20, 16]
    other = nn.BatchNorm1d(16) if norm == "batch" else nn.GroupNorm(2, 16)
    wanted = x.squeeze(2) + other(h).relu().unflatten(0, (4, 5)).transpose(1, 2)
    torch.testing.assert_close(block(x).squeeze(2), wanted, rtol=1e-4, atol=1e-5)
    assert [token_norm("group", width).num_groups for width in (1, 8, 12, 33, 64, 128)] == [1, 1, 1, 1, 8, 8]


@pytest.mark.parametrize("name", MODELS)
def test_memory_format_changes_nothing_but_rounding(name: str) -> None:
    model, x = seeded(MODELS[name]).eval(), tokens(2, 6)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model.to(memory_format=torch.channels_last)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_initialisation_is_a_function_of_the_seed(name: str) -> None:
    one, same, other = (seeded(MODELS[name], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["encoder.weight"], other["encoder.weight"])
    assert float(one["encoder.weight"].abs().max()) <= 0.1 and float(one["decoder.bias"].abs().max()) == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_learn_a_chain(name: str) -> None:
    """Nine of ten next tokens follow from the present one; chance is one of twelve."""
    data = texts(12, 12, 9, 320, 40, "every")
    model = seeded(MODELS[name])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for x, y in list(zip(data.train.x.split(32), data.train.y.split(32), strict=True)) * 8:
        loss = F.cross_entropy(model(x.long()), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        right = data.test.right(model.eval()(data.test.x.long())).sum()
    assert int(right) / data.test.asked > 0.75


@pytest.mark.parametrize("build", [lstm, gru])
def test_dropout_is_drawn_from_the_job_s_stream(build: Callable[..., nn.Module]) -> None:
    """Before, between and after the layers; nothing is drawn in evaluation, nor at 0."""
    model, x = seeded(lambda: build(dropout=0.5)), tokens(2, 4)
    answers = []
    for seed in (0, 0, 1):
        with addressed(seed, "model"):
            answers.append(model(x))
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    plain = seeded(build)
    assert torch.equal(model.eval()(x), plain(x)) and torch.equal(plain.train()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: lstm(tied=True), r"model\.tied=true .* model\.embedding=6 must be the width before the output, 16"),
        (
            lambda: gru(classes=3, embedding=16, tied=True),
            r"dataset\.tokens=12 must be dataset\.classes=3; else",
        ),
        (lambda: lstm(answers="first"), r"model\.answers=first is unknown: must be every .* or last"),
        (lambda: text_cnn(answers="first"), r"model\.answers=first is unknown"),
        (lambda: lstm(hidden=0), r"model\.hidden=0 is out of range: must be a whole number >= 1"),
        (lambda: text_cnn(kernel=0), r"model\.kernel=0 is out of range"),
        (lambda: gru(dropout=1.0), r"model\.dropout=1\.0 is out of range: must be in \[0, 1\)"),
        (lambda: text_cnn(norm="layer"), r"model\.norm=layer is not known"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()
