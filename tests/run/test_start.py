"""Starts from a file: what fits is taken to the bit, what does not is named, and nothing broken starts a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flame.geometry.layout import StateLayout
from flame.round.checkpoint import RunFolderError, write_checkpoint
from flame.round.types import ServerState, digest
from flame.run.build import ConfigError, build, initial_model
from flame.run.folder import CHECKPOINTS
from flame.run.start import File, Scratch, Trained
from flame.run.trackers.files import CONFIG
from flame.run.weights import MODEL, export, facts_of

Tiny = Callable[..., DictConfig]


def net(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, classes))


def trained(seed: int = 7) -> dict[str, Tensor]:
    """A state_dict that no initialisation gives, counters included."""
    stream = torch.Generator().manual_seed(seed)
    state = net().state_dict()
    return {
        key: torch.rand(value.shape, generator=stream) if value.is_floating_point() else torch.tensor(41)
        for key, value in state.items()
    }


def load(path: Path, model: nn.Module, strict: bool = True, dataset: dict[str, Any] | None = None) -> dict[str, Tensor]:
    File(str(path), strict).load(model, dataset or {})
    return model.state_dict()


def widened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float64, as some save it; counters stay whole."""
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def written(folder: Path, content: object, name: str = "weights.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def test_plain_torch_files_of_every_shape_start_a_run(tmp_path: Path) -> None:
    state = trained()
    save_file(state, tmp_path / "a.safetensors")
    parallel = {f"module.{key}": value for key, value in state.items()}
    files = [
        tmp_path / "a.safetensors",
        written(tmp_path, state, "b.pt"),
        written(tmp_path, {"state_dict": parallel, "epoch": 200, "lr": 0.1}, "c.pth"),
        written(tmp_path, widened(state), "d.pt.tar"),
        written(tmp_path, {"model_state": state, "metrics": {"acc": 0.5}, "server_round": 1000}, "e.pth"),  # BackFed's
    ]
    for path in files:
        assert same(load(path, net()), state), path
        assert load(path, net())["1.num_batches_tracked"].dtype == torch.int64


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, trained())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(load(Path("~/weights.pt"), net()), trained())


def test_a_misfit_lists_missing_unexpected_and_misshapen(tmp_path: Path) -> None:
    state = trained()
    state["extra.weight"] = state.pop("0.bias")
    state["3.weight"] = torch.zeros(62, 4 * 36)
    state["1.num_batches_tracked"] = torch.tensor(1.5)
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"strict=false keeps the initialisation") as refused:
        load(written(tmp_path, state), model)
    said = str(refused.value)
    assert "missing: 0.bias;" in said and "unexpected: extra.weight;" in said
    assert (
        "misshapen: 1.num_batches_tracked () instead of () torch.int64, 3.weight (62, 144) instead of (10, 144)" in said
    )
    assert same(model.state_dict(), before), "a refused start must leave the model alone"


def test_a_new_head_keeps_its_initialisation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = net(classes=3)
    head = model.state_dict()["3.weight"].clone()
    with caplog.at_level(logging.WARNING):
        after = load(written(tmp_path, trained()), model, strict=False)
    assert torch.equal(after["3.weight"], head) and torch.equal(after["0.weight"], trained()["0.weight"])
    assert "3.weight, 3.bias keep their initialisation" in caplog.text


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float, strict: bool) -> None:
    state = widened(trained())
    state["1.running_var"][2] = value
    with pytest.raises(ValueError, match=r"is not finite in 1\.running_var"):
        load(written(tmp_path, state), net(), strict)


class Stranger:
    """Anything but a tensor."""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Stranger(), r"Stranger\), which could run code and are never opened: save model\.state_dict\(\)$"),
        (b"no pickle", r"cannot be read \(damaged, or no file of torch's\): must be what torch\.save"),
        (b"PK\x03\x04", r"cannot be read \(RuntimeError: PytorchStreamReader failed .*\): must be what torch\.save"),
        (torch.zeros(3), "is no state_dict"),
        ({"lr": 0.1}, r"is no state_dict \(\['lr'\]\)"),
        ({}, r"is no state_dict \(empty\)"),
        ({"other": torch.zeros(2)}, "nothing in common"),
    ],
)
def test_what_is_no_state_dict_is_refused_in_words(tmp_path: Path, content: object, reason: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=reason) as refused:
        load(path, net(), strict=False)
    assert str(refused.value).isprintable() and "weights_only" not in str(refused.value)


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"short")
    for path, reason in [
        (tmp_path / "none.pt", r"no such file or folder: name one, from /"),
        (tmp_path, "has no config.yaml with checkpoints"),
        (tmp_path / "a.safetensors", "not a whole safetensors file"),
    ]:
        with pytest.raises(ValueError, match=reason):
            load(path, net())
    with pytest.raises(ValueError, match=r"start\.path=null"):
        File(None, True)
    with pytest.raises(ValueError, match=r"start\.rounds=0 is out of range"):
        Trained(0)
    assert Scratch().rounds == 0


def run_folder(folder: Path, cfg: DictConfig, *states: ServerState) -> Path:
    """What a run leaves of itself, as far as its model goes; the newest checkpoint."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return [write_checkpoint(folder / CHECKPOINTS, state, "i") for state in states][-1]


def first(cfg: DictConfig) -> ServerState:
    """What a run with this config starts from, without the rest of it."""
    model = initial_model(cfg)
    return ServerState.of(StateLayout.of(model), model)


def after(cfg: DictConfig, rounds: int) -> ServerState:
    state = first(cfg)
    return ServerState(torch.rand_like(state.row), state.counters + rounds, rounds)


def test_a_run_folder_gives_its_newest_model_or_its_export(tiny: Tiny, tmp_path: Path) -> None:
    cfg = tiny("model=cnn")
    state = after(cfg, 2)
    newest = run_folder(tmp_path, cfg, first(cfg), state)
    begin = lambda *words: first(tiny("model=cnn", "start=file", f"start.path={tmp_path}", *words))  # noqa: E731
    assert digest(begin()) == digest(state) and begin().round == 0
    assert digest(build(tiny("model=cnn", "start=file", f"start.path={tmp_path}")).initial) == digest(state)
    with pytest.raises(ConfigError, match="does not fit the model"):
        build(tiny("start=file", f"start.path={tmp_path}"))
    for _ in range(2):  # from its checkpoint, then from its export
        with pytest.raises(ValueError, match="was trained on other data: dataset mean"):
            begin("dataset.mean=[0.5]")
        assert digest(begin("dataset.mean=[0.5]", "start.strict=false")) == digest(state)
        export(tmp_path)
    write_checkpoint(tmp_path / CHECKPOINTS, first(cfg), "i")  # which leaves no other
    assert digest(begin()) == digest(state)
    with pytest.raises(ValueError, match="is a checkpoint"):
        load(newest.with_name("round_000000.safetensors"), net())


def test_the_newest_of_a_million_rounds_is_that_of_the_largest_number(tiny: Tiny, tmp_path: Path) -> None:
    cfg = tiny("model=cnn")
    states = [after(cfg, rounds) for rounds in (999_999, 1_000_000)]
    run_folder(tmp_path, cfg, *states)
    assert digest(first(tiny("model=cnn", "start=file", f"start.path={tmp_path}"))) == digest(states[1])


def test_the_export_loads_in_plain_torch(tiny: Tiny, tmp_path: Path) -> None:
    cfg = tiny()
    state = after(cfg, 2)
    run_folder(tmp_path, cfg, state)
    export(tmp_path)
    model = initial_model(tiny("seed=5"))
    model.load_state_dict(load_file(tmp_path / MODEL))
    assert digest(ServerState.of(StateLayout.of(model), model)) == digest(state)
    assert digest(state) in (tmp_path / MODEL).read_bytes()[:1000].decode(errors="replace")
    assert facts_of({"root": "/home/me", "download": True, "mean": (0.5,)}) == {"mean": [0.5]}


def test_an_export_needs_a_run(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no config\.yaml with checkpoints"):
        export(tmp_path)
    run_folder(tmp_path, tiny("model=cnn"), after(tiny(), 1))
    with pytest.raises(RunFolderError, match=r"is not of the model in config\.yaml"):
        export(tmp_path)
