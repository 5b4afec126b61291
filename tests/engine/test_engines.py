"""Engines give the same bits, whoever trains, dies or fails."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from attacks.base import Attack
from flame.engine.pool import MAX_DEATHS, Pool, WorkerError
from flame.engine.sequential import Sequential
from flame.engine.sharing import emptied, filled, held
from flame.federation import rounds
from flame.geometry.layout import StateLayout
from flame.round.client import LocalJob
from flame.round.types import Cohort, ServerState, digest
from flame.run.build import Parts, build

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Killed(Attack):
    """Its process is killed while training, as by the kernel when memory runs out: `times` times in all."""

    folder: str
    times: int

    def train(self, job: LocalJob) -> float:
        for i in range(self.times):
            try:
                os.close(os.open(f"{self.folder}/{i}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(job)


@dataclass(frozen=True)
class Broken(Attack):
    """Its code has a mistake."""

    def train(self, job: LocalJob) -> float:
        raise ZeroDivisionError(f"client {job.client} divides by zero")


@pytest.fixture(scope="module")
def cfg(tiny: Callable[..., DictConfig]) -> DictConfig:
    """With everything that a client's recipe may have, and poison batch by batch."""
    recipe = (
        "client=adamw",
        "client/schedule=cosine",
        "client.clip_norm=1",
        "client.proximal=0.1",
        "client.max_steps=9",
    )
    return tiny(
        "defense=flame_all_state", "attack=badnets", "attack/mixing=per_batch", "+attack.client.clip_norm=2", *recipe
    )


def final(parts: Parts, cfg: DictConfig, engine: Sequential | Pool, until: int = 2) -> tuple[ServerState, list[dict]]:
    played = list(rounds(parts.federation(engine), parts.initial, until))
    timeless = [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in played]
    return played[-1].after, timeless


@pytest.fixture(scope="module")
def oracle(cfg: DictConfig) -> tuple[ServerState, list[dict]]:
    parts = build(cfg)
    return final(parts, cfg, Sequential(parts.task))


@pytest.fixture(scope="module")
def pool(cfg: DictConfig) -> Iterator[Pool]:
    """Two workers that train forever; tests that break a pool make their own."""
    with closing(Pool(build(cfg).task, workers=2)) as shared:
        yield shared


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_pool_gives_the_bits_of_the_oracle(
    cfg: DictConfig, oracle: tuple[ServerState, list[dict]], pool: Pool, workers: int
) -> None:
    parts = build(cfg)
    with nullcontext(pool) if workers == 2 else closing(Pool(parts.task, workers)) as engine:
        state, metrics = final(parts, cfg, engine)
    assert digest(state) == digest(oracle[0])
    assert metrics == oracle[1]


class Many(nn.Module):
    """A thousand tensors, two of them one, some outside the state_dict, and dropout in between."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.full((1,), 1 + i * 1e-5)) for i in range(992)])
        self.twin = self.scales[0]
        self.register_buffer("hidden", torch.linspace(0.5, 1.5, 64), persistent=False)
        self.plain = torch.eye(16)[:, 1:10].T
        self.norm = nn.BatchNorm1d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(x.flatten(1)) * self.hidden, 0.2, self.training)
        return self.fc(x) * torch.cat([*self.scales, self.twin]).mean() + self.plain.sum() * 1e-3


def test_a_thousand_tensors_reach_a_pool(cfg: DictConfig) -> None:
    """To the bits of the oracle; one descriptor for each would be too many."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Many()
    assert len(model.state_dict()) == 1000
    layout = StateLayout.of(model)
    (row,), (counters,) = layout.zeros(1)
    layout.flatten(model.state_dict(), row, counters)
    task = replace(build(cfg).task, model=model, layout=layout)
    state, cohort = ServerState(row, counters), Cohort(torch.arange(3), torch.tensor([False, True, False]))
    wanted, _ = Sequential(task).train(state, cohort)
    with closing(Pool(task, workers=2)) as engine:
        found, _ = engine.train(state, cohort)
        assert torch.equal(found.rows, wanted.rows) and torch.equal(found.counters, wanted.counters)
        assert engine.evaluate(state) == Sequential(task).evaluate(state)


def test_an_emptied_module_is_filled_again() -> None:
    """Ties, strides, dtypes, what is not trained and what is not in the state_dict."""
    model = Many()
    model.fc.weight = nn.Parameter(torch.randn(64, 10).T, requires_grad=False)  # not contiguous
    shell, flats = emptied(model)
    assert set(flats) == {torch.float32, torch.int64} and all(t.device.type == "meta" for t in held(shell))
    again = filled(shell, flats)
    assert again.twin is again.scales[0] and again.fc.weight.stride() == (1, 10) and not again.fc.weight.requires_grad
    assert not any(t.data_ptr() % 64 for t in held(again))
    for one, other in zip(held(model), held(again), strict=True):
        assert torch.equal(one, other) and type(one) is type(other)
    assert model.fc.weight.device.type == "cpu"


@pytest.mark.parametrize("name", ["deepsight", "flshield"])
def test_models_are_tried_to_the_same_bits(tiny: Callable[..., DictConfig], name: str) -> None:
    """With all ten clients, so that flshield clusters."""
    cfg = tiny(f"defense={name}", "clients_per_round=10")
    parts = build(cfg)
    wanted = final(parts, cfg, Sequential(parts.task))
    with closing(Pool(build(cfg).task, workers=2)) as engine:
        state, metrics = final(parts, cfg, engine)
    assert digest(state) == digest(wanted[0])
    assert metrics == wanted[1] and 0 < metrics[-1]["filter/accepted"] <= 10


def test_a_killed_worker_changes_no_bit(cfg: DictConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = build(cfg)
    harmless, deadly = (replace(parts.task, attack=Killed(str(tmp_path), times)) for times in (0, 1))
    wanted, _ = final(parts, cfg, Sequential(harmless))
    with closing(Pool(deadly, workers=2)) as engine, caplog.at_level(logging.WARNING):
        state, _ = final(parts, cfg, engine)
        assert len(engine._workers) == 2 and all(w.process.is_alive() for w in engine._workers)
    assert (tmp_path / "0").exists()
    assert digest(state) == digest(wanted)
    assert [r.message for r in caplog.records if "SIGKILL" in r.message] == [r.message for r in caplog.records]
    assert len(caplog.records) == 1


def test_a_worker_killed_between_rounds(cfg: DictConfig, oracle: tuple[ServerState, list[dict]], pool: Pool) -> None:
    parts = build(cfg)
    pool.train(parts.initial, parts.population.cohort(0))
    victim = pool._workers[0].process
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert digest(final(parts, cfg, pool)[0]) == digest(oracle[0])


def test_workers_that_keep_dying_stop_the_run(cfg: DictConfig, tmp_path: Path) -> None:
    parts = build(cfg)
    with closing(Pool(replace(parts.task, attack=Killed(str(tmp_path), 99)), workers=2)) as engine:
        with pytest.raises(WorkerError, match=r"3 workers died in one round, the last of SIGKILL.* lower engine"):
            final(parts, cfg, engine)
        processes = [w.process for w in engine._workers]
    assert len(list(tmp_path.iterdir())) == MAX_DEATHS == 3
    assert not any(p.is_alive() for p in processes)


def test_a_mistake_in_a_worker_surfaces(cfg: DictConfig) -> None:
    parts, others = build(cfg), set(multiprocessing.active_children())
    with closing(Pool(replace(parts.task, attack=Broken()), workers=1)) as engine:
        with pytest.raises(WorkerError, match=r"(?s)Traceback.*test_engines.py.*ZeroDivisionError: client \d divides"):
            final(parts, cfg, engine)
        assert not engine._workers and set(multiprocessing.active_children()) <= others  # the error has ended them


def test_evaluation_is_spread_and_close_ends_every_worker(cfg: DictConfig) -> None:
    """More slices than workers: 2,500 images are three."""
    parts = build(cfg)
    task = replace(parts.task, eval_sets={"clean": parts.task.eval_sets["clean"][torch.arange(2500) % 355]})
    engine = Pool(task, workers=2)
    assert engine.evaluate(parts.initial) == Sequential(task).evaluate(parts.initial)
    processes = [w.process for w in engine._workers]
    assert len(processes) == 2 and all(p.is_alive() for p in processes)
    engine.close()
    assert not any(p.is_alive() for p in processes)
    engine.close()  # twice is harmless


def test_cohorts_may_change_size(cfg: DictConfig, pool: Pool) -> None:
    parts = build(cfg)
    oracle = Sequential(parts.task)
    for size in (5, 4):
        cohort = replace(parts.population, per_round=size).cohort(0)
        assert torch.equal(pool.train(parts.initial, cohort)[0].rows, oracle.train(parts.initial, cohort)[0].rows)


def test_workers_out_of_range(cfg: DictConfig) -> None:
    with pytest.raises(ValueError, match=r"engine.workers=0 is out of range: must be auto or a whole number >= 1"):
        Pool(build(cfg).task, workers=0)


def children(pid: int) -> set[int]:
    """All descendants."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parent = {int(p): int(pp) for p, pp in map(str.split, found.splitlines())}
    below = {p for p, pp in parent.items() if pp == pid}
    return below | {p for child in below for p in children(child)}


def test_a_killed_run_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "experiment=smoke", "tracker=files", "engine=pool", "engine.workers=2"]
    command += ["rounds=1000", f"paths.runs={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            wait_for(lambda: any(p.stat().st_size for p in tmp_path.glob("*/metrics.jsonl")))
            family = children(run.pid)
        finally:
            run.kill()
    assert len(family) >= 3  # the fork server and two workers
    wait_for(lambda: not any(Path(f"/proc/{p}").exists() for p in family))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
