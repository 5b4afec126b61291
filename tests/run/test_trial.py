"""What is said of a model before a run: the layer that fails, why, and what helps; and keys that **kwargs take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from test_repeatable import played, restless
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

from flame.engine.base import WorkerError
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.federation import rounds
from flame.round.seeding import addressed
from flame.run.build import ConfigError, build, make
from flame.run.fit import check_repeatable
from flame.run.recording import Recorder, read_round
from flame.run.signature import check_signature, parameters_of
from flame.run.trial import check_samples, entered

Compose = Callable[..., DictConfig]


def flat(*layers: nn.Module, size: int, outputs: int = 4) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, outputs))


class Answer(nn.Module):
    """Gives what a function makes of logits."""

    def __init__(self, function: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(64, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fc(x.flatten(1)), self.training)


class Holder:
    """Holds what nobody can copy."""

    def __init__(self) -> None:
        self.lock = Lock()

    def __call__(self, y: Tensor, training: bool) -> Tensor:
        return y


class Pair(nn.Linear):
    """Wants more than images."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


def to_a_pixel(norm: nn.Module) -> nn.Module:
    return flat(nn.Sequential(nn.Conv2d(1, 6, 8), norm), size=6)


REFUSED: dict[str, tuple[nn.Module, int, str]] = {  # model, smallest batch, what is said
    "one value": (
        to_a_pixel(nn.BatchNorm2d(6)),
        1,
        r"model cannot train on a batch of 1 image\(s\) of toys: layer 0\.1 \(BatchNorm2d\): Expected more than 1 value"
        r" .*client.batch_size >= 2.*root_samples >= 2",
    ),
    "instance": (
        to_a_pixel(nn.InstanceNorm2d(6)),
        2,
        r"\(1, 8, 8\): layer 0\.1 \(InstanceNorm2d\): .*The image has shrunk",
    ),
    "pooling": (flat(nn.MaxPool2d(9), size=1), 2, r"\(1, 8, 8\): layer 0 \(MaxPool2d\): .*shrunk too far.*stem=small"),
    "kernel": (flat(nn.Conv2d(1, 2, 9), size=2), 2, r"layer 0 \(Conv2d\): .*shrunk too far there: take larger images"),
    "channels": (flat(nn.Conv2d(3, 2, 8), size=2), 2, r"layer 0 \(Conv2d\): .*must be \$\{dataset.channels\}, here 1$"),
    "inputs": (flat(size=65), 2, r"layer 1 \(Linear\): .*must follow dataset.channels and image_size"),
    "double": (flat(size=64).double(), 2, r"layer 1 \(Linear\): .*[Ii]mages are float32"),
    "two inputs": (Pair(8, 4), 2, r"the model's own forward: .*Forward must take a batch of images and nothing else"),
    "tuple": (Answer(lambda y, training: (y, y)), 2, r"model gives a tuple for images of toys: must be a tensor"),
    "tuple in training": (
        Answer(lambda y, training: [y] if training else y),
        2,
        r"a list for images of toys in training",
    ),
    "classes": (
        flat(size=64, outputs=3),
        2,
        r"model gives \(2, 3\) for 2 images of toys: must be \(2, 4\);.*num_classes: \$\{dataset",
    ),
    "NaN": (
        Answer(lambda y, training: y * 0 / 0),
        2,
        r"model=Answer: 8 of 8 logits are NaN for 2 images of toys: must be finite\. Look .* division by 0",
    ),
    "infinite in training": (
        Answer(lambda y, training: torch.where(torch.arange(4) < int(training), torch.inf, y)),
        2,
        r"model=Answer: 2 of 8 logits are NaN or infinite for 2 images of toys in training: must be finite",
    ),
    "no copy": (Answer(Holder()), 2, r"model=Answer cannot be copied .*lock.*no open file, lock or connection"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_layer_that_fails_is_named(case: str) -> None:
    model, smallest, said = REFUSED[case]
    with pytest.raises(ValueError, match=said):
        check_samples(model, torch.ones(2, 1, 8, 8), (4,), smallest, "toys")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_model_that_fits_is_left_as_it_was() -> None:
    model = to_a_pixel(nn.BatchNorm2d(6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_samples(model, torch.ones(2, 1, 8, 8), (4,), 2, "toys")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_layers_are_entered_and_left() -> None:
    model, seen = flat(nn.Sequential(nn.Conv2d(1, 2, 8), nn.ReLU()), size=2), list[list[str]]()
    with entered(model) as layers:
        model[0][1].register_forward_hook(lambda *_: seen.append(list(layers)))
        model(torch.ones(2, 1, 8, 8))
    assert seen == [["0 (Sequential)"]] and layers == []


# what a `_target_` of one's own may be


def with_rest(num_classes: int, **rest: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(rest["inputs"], num_classes))


def nothing() -> None:
    """No model."""


def strict(num_classes: int, **rest: Any) -> nn.Module:
    return nn.Linear(num_classes, num_classes, **rest)


class Unresolved(nn.Linear):
    """Its hint is known to a type checker only."""

    def __init__(self, num_classes: NoSuchType, *args: Any, **kwargs: Any) -> None:  # type: ignore[name-defined] # noqa: F821
        super().__init__(64, num_classes)


class Lambda(nn.Module):
    """Keeps a function without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(64, 10), lambda x: x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(x.flatten(1)))


def node(target: str, **keys: Any) -> DictConfig:
    return OmegaConf.create({"model": {"_target_": target, "num_classes": 3, **keys}})


def test_a_target_with_kwargs_gets_every_key() -> None:
    model = make(node("test_trial.with_rest", inputs=7), "model")
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 7), (3,)]
    assert make(node("test_trial.Unresolved", anything=[1]), "model").out_features == 3
    assert make(node("torchvision.models.mobilenet_v3_small"), "model").classifier[3].out_features == 3
    assert parameters_of(node("test_trial.with_rest").model) == {"num_classes"}
    with pytest.raises(ValueError, match=r"model.num_classes is missing: test_trial.with_rest needs it"):
        check_signature("model", OmegaConf.create({"_target_": "test_trial.with_rest"}))


def test_a_key_that_nobody_takes_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^model.widht is taken by nothing that test_trial.strict makes .*models.md"):
        make(node("test_trial.strict", widht=3), "model")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("test_trial.nothing", r"model._target_=test_trial.nothing gave a NoneType: must be a torch.nn.Module"),
        ("torch.nn.Flatten", r"model=Flatten has no parameters"),
    ],
)
def test_what_is_no_model_is_refused(tiny: Compose, target: str, said: str) -> None:
    cfg = tiny().copy()
    cfg.model = OmegaConf.create({"_target_": target})
    with pytest.raises(ConfigError, match=said):
        build(cfg)


def test_what_cannot_be_sent_to_a_worker_is_said(tiny: Compose) -> None:
    cfg = tiny("rounds=1").copy()
    cfg.model = OmegaConf.create({"_target_": "test_trial.Lambda"})
    parts = build(cfg)
    played(parts, Sequential(parts.task), until=1)
    with pytest.raises(WorkerError, match=r"cannot be sent to a worker .*no lambda.* or take engine=sequential"):
        played(parts, Pool(parts.task, workers=1), until=1)


def mobilenet(size: str) -> nn.Module | None:
    """Two blocks of MobileNetV3, all kinds of layers among them; None: the whole of it, as the config has it."""
    if size == "whole":
        return None
    kinds = [
        InvertedResidualConfig(8, 3, 16, 8, True, "RE", 1, 1, 1),
        InvertedResidualConfig(8, 3, 24, 8, True, "HS", 2, 1, 1),
    ]
    with addressed(0, "model of a test"):
        model = MobileNetV3(kinds, last_channel=16, num_classes=10)
        model.features[0][0] = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
    return model


@pytest.mark.parametrize("size", ["two blocks", pytest.param("whole", marks=pytest.mark.slow)])
def test_mobilenet_with_adam_and_augmentation_is_the_same_in_both_engines(tiny: Compose, size: str) -> None:
    """BatchNorm, hard-swish in place, dropout, squeeze and excitation, on 8 x 8 pixels."""
    small = ("clients=4", "clients_per_round=2", "poisoned_model_rate=0.5", "train_samples=24", "client.epochs=1")
    chosen = ("model=torchvision",) if size == "whole" else ()
    cfg = tiny(*chosen, "client=adam", "augment=crop_flip", "defense=fedavg", *small)
    parts = restless(cfg, model) if (model := mobilenet(size)) else build(cfg)
    check_repeatable(parts.task, parts.initial)
    assert played(parts, Sequential(parts.task), until=1) == played(parts, Pool(parts.task, workers=1), until=1)


class Once(nn.Module):
    """One matrix that two layers use, under one name; and a factor without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.first = nn.Linear(64, 64)
        self.second = self.bias_alone()
        self.out = nn.Linear(64, 10)

    def bias_alone(self) -> nn.Module:
        layer = nn.Linear(1, 64)
        del layer.weight
        return layer

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1)).relu() * self.factor
        return self.out(F.linear(hidden, self.first.weight, self.second.bias).relu())


class Twice(Once):
    """The same with the matrix under two names."""

    def bias_alone(self) -> nn.Module:
        layer = nn.Linear(64, 64)
        layer.weight = self.first.weight
        return layer


def test_tied_weights_train_filter_and_are_recorded_as_one(tiny: Compose, tmp_path: Path) -> None:
    """To the bits of a model that has them under one name: clipping and noise reach them."""
    cfg = tiny("defense=flame_weights_only", "defense.noise.factor=0.01", "record.rounds=[0]")
    with addressed(0, "model of a test"):
        once = Once()
    twice = Twice()
    twice.load_state_dict(once.state_dict() | {"second.weight": once.first.weight})
    one, other = restless(cfg, once), restless(cfg, twice)
    assert one.initial.row.shape == other.initial.row.shape
    assert played(one, Sequential(one.task)) == played(other, Sequential(other.task))
    with closing(Sequential(other.task)) as engine:
        (record,) = rounds(other.federation(engine), other.initial, 1)
    Recorder(tmp_path, [0], 0, 0).log(record)
    back = read_round(next(tmp_path.rglob("*.safetensors"))).updates
    assert torch.equal(back.rows, (record.updates.models - record.updates.base))
    assert [e.key for e in back.layout.entries] == [e.key for e in record.updates.layout.entries]


class InPlace(nn.Module):
    """Changes what its own gradient needs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.flatten(1)).sigmoid()
        return y.mul_(2)


def test_a_step_that_fails_is_said(tiny: Compose) -> None:
    cfg = tiny().copy()
    cfg.model = OmegaConf.create({"_target_": "test_trial.InPlace"})
    with pytest.raises(ConfigError, match=r"model=InPlace fails in a step of training: .*inplace operation.*in place"):
        build(cfg)
