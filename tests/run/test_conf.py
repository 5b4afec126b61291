"""Every YAML under conf/ composes and builds; a default is stated once. A new part is tested the moment it exists."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attackers import WORDS
from hydra.utils import get_object
from labs import honest, laboratory
from omegaconf import DictConfig, OmegaConf
from oracles.rounds import net
from texts import TEXT

from attacks.base import Attack
from flame.data.samples import Dataset, Holders, Samples
from flame.data.vocabulary import Vocabulary, cut
from flame.federation import play
from flame.partition.deal import deal
from flame.round.seeding import generator
from flame.round.types import ServerState, Updates
from flame.run.build import make
from flame.run.config import RunConfig
from flame.run.fit import prepared
from flame.run.signature import check_signature

CONF = Path(__file__).parents[2] / "conf"
NO_PARTS = {"hydra", "experiment", "recipe"}
GROUPS = sorted({path.relative_to(CONF).parts[0] for path in CONF.glob("*/**/*.yaml")} - NO_PARTS)
PRIMARY = ["config", *(p.relative_to(CONF).with_suffix("").as_posix() for p in sorted(CONF.glob("recipe/*/*.yaml")))]
Compose = Callable[..., DictConfig]


def options(*groups: str) -> list[str]:
    """group=option of every YAML in these groups, a group inside a group (attack/trigger=square) included."""
    return [
        f"{path.parent.relative_to(CONF).as_posix()}={path.stem}"
        for group in groups
        for path in sorted((CONF / group).rglob("*.yaml"))
        if not path.stem.startswith("_")
    ]


def targets(key: str, node: Any) -> Iterator[tuple[str, DictConfig]]:
    """All nodes with a `_target_`, at any depth."""
    if OmegaConf.is_dict(node):
        if "_target_" in node:
            yield key, node
        for name in node:
            yield from targets(f"{key}.{name}", node[name])
    elif OmegaConf.is_list(node):
        for i, item in enumerate(node):
            yield from targets(f"{key}[{i}]", item)


def around(option: str) -> tuple[str, ...]:
    """The option with a data set that a model reads, and a model that reads a data set: of tokens, or else images."""
    group, _, name = option.partition("=")
    facts = (CONF / group / f"{name}.yaml").read_text()
    if group == "model":
        return (*(TEXT if "${dataset.tokens}" in facts else ("dataset=cifar10",)), option)
    return ("dataset=digits", option, *(["model=lstm"] if group == "dataset" and "\ntokens:" in facts else []))


@pytest.mark.parametrize("option", options(*GROUPS))
def test_composes_with_known_keys_only(compose: Compose, option: str) -> None:
    cfg = compose(*around(option))
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    group = option.partition("=")[0].partition("/")[0]
    if group != "paths":
        check_signature(group, cfg[group])


@pytest.mark.parametrize("option", options(*GROUPS))
def test_a_default_is_stated_once(compose: Compose, option: str) -> None:
    """A parameter that the YAML sets has no default in Python, but for keyword-only ones, which older runs lack."""
    group = option.partition("=")[0].partition("/")[0]
    for key, node in targets(group, compose(*around(option))[group]):
        parameters = inspect.signature(get_object(node._target_)).parameters
        usual = {n: p for n, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY}
        twice = [n for n in node if n in usual and usual[n].default is not inspect.Parameter.empty]
        assert not twice, f"{key}: {twice} have a default in the YAML and in {node._target_}"


@pytest.mark.parametrize("option", options("experiment"))
def test_experiments_compose(compose: Compose, option: str) -> None:
    cfg = compose(option)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for group in set(GROUPS) - {"paths"}:
        check_signature(group, cfg[group])


@pytest.mark.parametrize("name", PRIMARY)
def test_primary_configs_compose(compose: Compose, name: str) -> None:
    OmegaConf.to_container(compose(name=name), resolve=True, throw_on_missing=True)


def test_the_schema_is_the_config(compose: Compose) -> None:
    """No key of config.yaml without a type, no typed key without a value."""
    assert set(compose()) == {f.name for f in fields(RunConfig)}


def test_digits_are_built(compose: Compose) -> None:
    dataset = make(compose("dataset=digits"), "dataset")
    assert dataset.name == "digits" and len(dataset.train) == 1442


@pytest.mark.parametrize("option", options("model"))
def test_models_are_built(compose: Compose, option: str) -> None:
    """On images of 3 x 32 x 32, which fit them all, or on texts of 9 tokens."""
    cfg = compose(*around(option))
    model, shape = make(cfg, "model"), (2, 12, 9) if "tokens" in cfg.dataset else (2, 10)
    x = torch.zeros(2, 9, dtype=torch.int64) if "tokens" in cfg.dataset else torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        assert model.eval()(x).shape == shape


@pytest.mark.parametrize("option", options("partition"))
def test_partitions_deal(compose: Compose, option: str, tmp_path: Path) -> None:
    """Of data that know who holds what; lists of a file are written first."""
    (tmp_path / "lists.json").write_text(json.dumps([list(range(i, 6000, 20)) for i in range(20)]))
    path = [f"partition.path={tmp_path}/lists.json"] if option == "partition=file" else []
    at = torch.arange(6000)
    images = Samples(torch.zeros(6000, 1, 1, 1, dtype=torch.uint8), at % 10)
    dataset = Dataset("any", images, images, (0.5,), (0.5,), 10, Holders(at % 30, tuple(map(str, range(30)))))
    parts = deal(dataset, make(compose("dataset=digits", option, *path), "partition"), 20, 0, 0)
    assert len(parts) == 21 and not len(parts[20])  # the server's own
    assert all(len(parts[i]) > 0 and parts[i].dtype == torch.int64 for i in range(20))


@pytest.mark.parametrize("option", [option for option in options("attack") if option[7:] not in WORDS])
def test_attacks_are_built(compose: Compose, option: str) -> None:
    """Their hooks take images of 28 x 28; a backdoor's test set has the attacker's labels, none of them true."""
    attack = make(compose("dataset=digits", option), "attack")
    assert isinstance(attack, Attack)
    stream = generator(0, "test")
    x = torch.randint(0, 256, (50, 1, 28, 28), generator=stream, dtype=torch.uint8)
    images = Samples(x, torch.arange(50) % 10)
    before = x.clone()
    triggered = attack.backdoor_set(images)
    assert torch.equal(x, before)
    if triggered is not None:
        assert len(triggered) <= 50 and bool(((triggered.y >= 0) & (triggered.y < 10)).all())
        assert triggered.x.dtype == torch.uint8 and triggered.x.shape[1:] == x.shape[1:]


@pytest.mark.parametrize("name", WORDS)
def test_attacks_on_words_are_built(compose: Compose, name: str) -> None:
    """As above, on texts of 20 words, which are those that its YAML names."""
    attack = make(compose("dataset=digits", f"attack={name}"), "attack")
    inner = getattr(attack, "backdoor", attack)
    said = " ".join(getattr(inner, "sentences", ())) or f"{inner.word} {inner.finish}"
    vocabulary = Vocabulary(tuple(dict.fromkeys(cut(said, "word"))), "word")
    x = torch.randint(len(vocabulary), (50, 21), generator=generator(0, "test"))
    texts = Samples(x[:, :-1].to(torch.int16), x[:, 1:])
    data = Dataset("any", texts, texts, (), (), len(vocabulary), vocabulary=vocabulary)
    triggered = prepared(attack, data, generator(0, "prepare"))[0].backdoor_set(texts)
    assert triggered is not None and 0 < len(triggered) <= 50 and triggered.asked == len(triggered)
    assert triggered.x.dtype == torch.int16 and not bool((triggered.x[:, -1] == triggered.y[:, -1]).all())


QUICK = {  # of what takes long
    "defense=fedredefense": ["defense.first_iterations=1", "defense.steps=1"],
    "defense=indicator": ["defense.planting.epochs=1"],
}


@pytest.mark.parametrize("option", options("defense"))
def test_defenses_answer(compose: Compose, updates: Callable[..., tuple[ServerState, Updates]], option: str) -> None:
    """A round of seven: a finite state of the same size, and a weight for each."""
    defense = make(compose("dataset=digits", option, *QUICK.get(option, ())), "defense")
    state, sent = updates(seed=0, n=7)
    if getattr(defense, "root_samples", 0):
        sent = replace(sent, root=sent.rows.mean(0))
    sent = replace(sent, lab=laboratory(net(with_bn=True), (3, 6, 6), honest(7), classes=10))
    verdict = defense(state, sent, generator(0, "defense"))
    assert verdict.state.row.shape == state.row.shape and bool(verdict.state.row.isfinite().all())
    assert verdict.weights.shape == (7,) and bool((verdict.weights >= 0).all())


@pytest.mark.parametrize("option", [option for option in options("attack", "defense") if option[:7] != "attack="])
def test_a_round_is_played_and_evaluated(tiny: Compose, start: Callable, option: str) -> None:
    """What a part asks of the federation, it asks by attributes: a key of that name must not be taken for one.

    Attacks themselves play theirs in tests/attacks/test_attack_properties.py, where more is asked of it.
    """
    quick = QUICK.get(option, [])
    with start(tiny(option, "shadow=[]", "poisoned_model_rate=0.4", *quick)) as (fed, state):
        record = play(fed, state)
    assert 0 <= record.metrics["eval/ma"] <= 1
    assert math.isfinite(record.metrics["eval/ma_loss"])


@pytest.mark.parametrize("option", options("engine"))
def test_engines_take_a_task(compose: Compose, option: str) -> None:
    """Partial targets: the one argument that the YAML leaves out is the task."""
    node = compose("dataset=digits", option).engine
    assert node._partial_
    missing = set(inspect.signature(get_object(node._target_)).parameters) - set(node)
    assert missing == {"task"}


@pytest.mark.parametrize("option", options("tracker"))
def test_trackers_are_built(compose: Compose, option: str) -> None:
    if option == "tracker=tensorboard":
        pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    tracker = make(compose("dataset=digits", option), "tracker")
    assert all(callable(getattr(tracker, name)) for name in ("start", "log", "finish", "close"))
