"""Shared ground: configs composed as on the command line, tiny federations on the digits, random rounds, train.py."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from pathlib import Path

import hydra
import hypothesis
import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import DictConfig
from oracles.rounds import random_round
from remember import remember, remember_checks
from warm import Warm, preheating

from flame.engine.workbench import prepare_process
from flame.federation import Federation, Round, rounds
from flame.geometry.layout import StateLayout
from flame.round.types import ServerState, Updates
from flame.run.build import build
from flame.run.config import register

ROOT = Path(__file__).parents[1]
TINY = (
    "experiment=smoke",
    "clients_per_round=5",
    "engine=sequential",
    "tracker=files",
    "train_samples=300",
)  # a round: 0.1 s
Compose = Callable[..., DictConfig]
Start = Callable[[DictConfig], AbstractContextManager[tuple[Federation, ServerState]]]
Train = Callable[..., subprocess.CompletedProcess[str]]

remember()
remember_checks()
preheating()  # a process has one fork server: whoever starts it, workers and commands are forked from it

# The suite draws the same examples everywhere, so that what passed here passes there; `make explore` draws new ones.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)  # a busy machine is not a failure
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What is there for the whole session is not looked through at each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in a run: the thread count is part of the bits."""
    prepare_process(threads=1)


@pytest.fixture(scope="session")
def compose() -> Compose:
    """`compose(*overrides, name="config")`: what the command line would hand to `run`; do not change it."""
    register()

    @cache
    def composed(*overrides: str, name: str = "config") -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return hydra.compose(name, list(overrides))

    return composed


@pytest.fixture(scope="session")
def tiny(compose: Compose) -> Compose:
    """`tiny(*overrides)`: ten clients with 30 digits each, five a round, one of them compromised."""
    return lambda *overrides: compose(*TINY, *overrides)


@pytest.fixture(scope="session")
def start() -> Start:
    """`with start(cfg) as (federation, initial_state)`: built and closed as `flame.run.experiment` does."""

    @contextmanager
    def started(cfg: DictConfig) -> Iterator[tuple[Federation, ServerState]]:
        parts = build(cfg)
        with closing(parts.start_engine(parts.task)) as engine:
            yield parts.federation(engine), parts.initial

    return started


@pytest.fixture(scope="session")
def history(tiny: Compose, start: Start) -> list[Round]:
    """Three rounds of `flame_weights_only` against badnets; do not change them."""
    with start(tiny()) as (fed, state):
        return list(rounds(fed, state, 3))


@pytest.fixture(scope="session")
def command() -> Iterator[Warm]:
    """`command(["train.py", ...], env)`: a command of the project, without waiting for its imports."""
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, command: Warm) -> Train:
    """`train(*overrides)`: the command line."""
    folder = tmp_path_factory.mktemp("runs")
    return lambda *arguments: command(["train.py", *arguments], {**os.environ, "FLAME_RUNS": str(folder)})


def recorded_updates(seed: int, n: int, with_bn: bool = True) -> tuple[ServerState, Updates]:
    """A random round (`oracles.rounds`) as a server sees it."""
    recorded = random_round(seed, n, with_bn)
    layout = StateLayout.from_state(recorded.global_state, recorded.trainable)
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(recorded.global_state, row, counters)
    rows, client_counters = layout.zeros(n)
    for i, local in enumerate(recorded.client_states):
        layout.flatten(local, rows[i], client_counters[i])
    rows -= row
    samples, losses = torch.tensor(recorded.samples), torch.zeros(n, dtype=torch.float64)
    return ServerState(row, counters), Updates(
        layout, row, counters, torch.arange(n), rows, client_counters, samples, losses
    )


@pytest.fixture(scope="session")
def updates() -> Callable[..., tuple[ServerState, Updates]]:
    """`updates(seed, n, with_bn=True)`: a random global state and n random updates, without training."""
    return recorded_updates


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A project of the test's own, with a README that has one table's marks."""
    (tmp_path / "README.md").write_text("a\n<!-- table: attacks -->\nold\n<!-- end: attacks -->\nb\n")
    return tmp_path
