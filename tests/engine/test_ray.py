"""`engine=ray` on a cluster of two nodes, Ray's own `Cluster`: the oracle's bits, even if a node dies in mid-round."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from test_engines import Broken

from attacks.base import Attack
from flame.engine.base import WorkerError
from flame.engine.ray import LOCAL, Ray
from flame.engine.sequential import Sequential
from flame.round.client import LocalJob
from flame.round.types import Updates
from flame.run.build import build
from flame.run.experiment import execute
from flame.run.stop import Stop
from flame.run.trackers.base import RunInfo

PATIENCE = 240  # seconds that a round may take, a node's death included
DOOMED = "FLAME_TEST_DOOMED"  # environment variable of the node that will die


@dataclass(frozen=True)
class Hanging(Attack):
    """On the doomed node a client says that it has begun, and never ends."""

    begun: str

    def train(self, job: LocalJob) -> float:
        if DOOMED in os.environ:
            Path(self.begun).touch()
            time.sleep(PATIENCE)
        return super().train(job)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A node of one core, to which a test may add others; what this process can import, so can they."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            ray.init(address=nodes.address, logging_level="warning")
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def same(one: Updates, other: Updates) -> bool:
    parts = ("ids", "rows", "counters", "samples", "losses")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


@pytest.mark.slow
def test_a_node_that_dies_in_mid_round_changes_no_bit(
    tiny: Callable[..., DictConfig], cluster: Any, tmp_path: Path
) -> None:
    """All clients of the round are on the attacker's side, so that one hangs on the doomed node whatever the order."""
    parts = build(tiny("defense=flame_all_state"))
    task = replace(parts.task, attack=Hanging(str(tmp_path / "begun")))
    cohort = parts.population.cohort(0)
    cohort = replace(cohort, compromised=torch.ones_like(cohort.compromised))
    oracle = Sequential(task)
    doomed = cluster.add_node(num_cpus=1, env_vars={DOOMED: "1"})
    with closing(Ray(task, LOCAL, workers=1)) as engine, ThreadPoolExecutor(1) as thread:
        round_ = thread.submit(engine.train, parts.initial, cohort)
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline and not round_.done(), round_.exception(0)
            time.sleep(0.05)
        cluster.remove_node(doomed, allow_graceful=False)
        updates, _ = round_.result(PATIENCE)
        evaluations = engine.evaluate(parts.initial)
    assert same(updates, oracle.train(parts.initial, cohort)[0])
    assert evaluations == oracle.evaluate(parts.initial)


@pytest.mark.slow
def test_the_global_model_is_sent_once_a_round_and_a_mistake_surfaces(
    tiny: Callable[..., DictConfig], cluster: Any
) -> None:
    parts = build(tiny())
    with closing(Ray(parts.task, LOCAL, workers=1)) as engine:
        engine.evaluate(parts.initial)
        sent = engine._sent
        engine.train(parts.initial, parts.population.cohort(0))
        assert engine._sent is sent
        kept = replace(parts.initial, memory={"defense/history": torch.ones(2)})  # the same row, another state
        engine.evaluate(kept)
        assert engine._sent is not sent
    with closing(Ray(replace(parts.task, attack=Broken()), LOCAL, workers=1)) as engine:
        cohort = parts.population.cohort(0)
        with pytest.raises(WorkerError, match=r"(?s)a worker failed:.*ZeroDivisionError.*client \d divides by zero"):
            engine.train(parts.initial, replace(cohort, compromised=torch.ones_like(cohort.compromised)))


def test_without_ray_the_error_names_the_extra(
    tiny: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(WorkerError, match=r"engine=ray needs the extra `ray` .*: pip install 'ray>=2.9'"):
        Ray(build(tiny()).task, LOCAL, workers=1)


def test_without_ray_a_run_writes_nothing(
    tiny: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match="engine=ray needs"):
        execute(tiny("engine=ray"), RunInfo("a", tmp_path, "i", {}, {}, "a"), Stop())
    assert not list(tmp_path.iterdir())
