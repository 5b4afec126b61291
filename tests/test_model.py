"""`python -m flame.model`: blocks and shares by hand, and what the command prints and refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from texts import TEXT
from torch import nn

from flame.geometry.layout import StateLayout
from flame.model import blocks, facts, main, tensors, try_out
from flame.round.types import ServerState
from flame.run.compose import ConfigError, check_kind


def net() -> nn.Module:
    """6 numbers of value 2 and a norm of two channels: weight 1, bias 0, mean 0, variance 1, one counter."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    nn.init.constant_(model[1].weight, 2.0)
    nn.init.constant_(model[1].bias, -2.0)
    return model


def test_blocks_by_hand() -> None:
    """15 numbers: 4 + 6 + 2 + 2 + 1; squared norm 2 + 24 + 0 + 2 = 28."""
    layout = StateLayout.of(net())
    found = {part.name: part for part in blocks(layout, ServerState.of(layout, net()))}
    assert {name: len(part.values) for name, part in found.items()} == {
        **{"trunk": 4, "head": 6, "running_mean": 2, "running_var": 2, "counters": 1}
    }
    assert [part.shape for part in found.values()] == [(2,), (2,), (1,), (1,), (1,)]
    assert found["head"].share == pytest.approx(6 / 15) and found["head"].energy == pytest.approx(24 / 28)
    assert found["running_var"].energy == pytest.approx(2 / 28) and found["counters"].energy == 0
    assert sum(part.share for part in found.values()) == pytest.approx(1)
    every = tensors(layout, ServerState.of(layout, net()))
    assert [part.name for part in every][:3] == ["0.weight", "0.bias", "1.weight"]
    assert sum(part.energy for part in every) == pytest.approx(1)
    assert float(found["head"].values.mean()) == pytest.approx(2 * (4 - 2) / 6)


def test_facts_by_hand() -> None:
    assert list(facts(StateLayout.of(net()))) == [
        "weights_only: d = 10 numbers; all_state: d + b = 14; counters: 1.",
        "An update takes 0.0 MB.",
    ]
    tied = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 500))
    tied[1].weight = tied[0].weight
    assert list(facts(StateLayout.of(tied))) == [
        "weights_only: d = 251,000 numbers; all_state: d + b = 251,000; counters: 0.",
        "There is nothing but parameters: weights_only and all_state are one vector.",
        "An update takes 1.0 MB.",
        "0.weight is 1.weight (tied): it is in the row once.",  # the output layer's
    ]


def shown(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["flame.model", *words])
    main()


def test_the_command_prints_both_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A model of the user's own folder; no data are read."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/narrow.yaml").write_text(
        "_target_: models.vit_tiny.ViTTiny\nin_channels: 1\nnum_classes: ${dataset.classes}\n"
        "image_size: ${dataset.image_size}\npatch_size: 7\nwidth: 8\ndepth: 1\nheads: 2\n"
    )
    shown(monkeypatch, "--config-dir", str(tmp_path), "model=narrow", "dataset=mnist", "paths.data=/nowhere")
    said = capsys.readouterr().out
    assert "position" in said and "16 x 8" in said and "8 x 1 x 7 x 7" in said and "blocks.0.qkv.weight" in said
    assert "Tried on two images of 1 x 28 x 28: it answers, in training too." in said


def test_a_fact_of_ones_own_is_missed_like_any_other() -> None:
    with pytest.raises(ConfigError, match=r"m\.M is built from dataset\.ages, which d\.D .* it needs that fact"):
        check_kind(OmegaConf.create({"_target_": "m.M", "n": "${dataset.ages}"}), OmegaConf.create({"_target_": "d.D"}))


@pytest.mark.parametrize("answers", ["every", "last"])
def test_a_model_of_tokens_is_tried_on_tokens(
    answers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(monkeypatch, *TEXT, "model=lstm", "model.hidden=64", "model.tied=true", f"model.answers={answers}")
    said = capsys.readouterr().out
    assert "rnn.weight_hh_l1" in said and "256 x 64" in said and "weights_only and all_state are one vector" in said
    assert "encoder.weight is decoder.weight (tied): it is in the row once." in said
    assert "Tried on two texts of 9 tokens: it answers, in training too." in said


def test_rows_and_what_is_not_declared() -> None:
    assert try_out(nn.Linear(3, 2), {"features": 3, "classes": 2}, 0).startswith("Tried on two rows of 3 features: it")
    with pytest.raises(ValueError, match=r"samples of 4 features of noise, \(4,\)"):
        try_out(nn.Linear(3, 2), {"features": 4, "classes": 2}, 0)
    for given in ({"features": 3}, {"classes": 2, "channels": 1}, {"classes": 2, "tokens": 5, "length": None}):
        assert try_out(nn.Linear(3, 2), given, 0).startswith("Not tried: the data set's YAML does not declare")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=cnn", "dataset=digits", "model.in_channels=3"], r"layer conv1 \(Conv2d\): .*here 1"),
        (
            ["model=vit_tiny", "dataset=digits", "model.patch_size=3"],
            r"model.patch_size=3 is out of range: must divide",
        ),
        (
            ["model=lstm", "dataset=digits"],
            r"models\.lstm\.LSTM is built from dataset\.tokens, which .*digits does not have: it reads tokens, and"
            r" these data are images; take a model that reads these data",
        ),
        ([*TEXT, "model=cnn"], r"dataset\.channels, which texts\.texts .*: it reads images, and these data are tokens"),
        (["model=resnet9"], r"model=resnet9.*did you mean"),
        (["--config-dir", "/nowhere"], r"--config-dir=/nowhere"),
    ],
)
def test_what_is_wrong_is_a_sentence(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=said) as stopped:
        shown(monkeypatch, *words)
    assert isinstance(stopped.value.code, str)
