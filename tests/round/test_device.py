"""Training on a device that this machine may not have: what is asked of it, and what is said when it is not there.

The GPU is played by torch's meta device, which knows shapes, types and devices and computes nothing: a tensor on the
wrong device is an error here as it is there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recorded_updates
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode

from flame.defenses.base import defend
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.engine.stacked import fit, losses_of
from flame.engine.workbench import Task, Workbench
from flame.round.client import LocalJob, LocalTraining
from flame.round.device import check_device, describe_device, describe_processor
from flame.round.evaluate import evaluate
from flame.round.seeding import generator
from flame.run.build import build, make
from flame.run.config import identity

Tiny = Callable[..., DictConfig]
aten = torch.ops.aten
READ = aten._local_scalar_dense.default  # .item(), float(), bool(): the host waits for the device
ATTACKS = ("none", "badnets", "constrain_and_scale", "neurotoxin", "a3fl", "chameleon", "lp", "flame_aware")


class Reads(TorchDispatchMode):
    """Counts how often a number is read off a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is READ
        return func(*args, **(kwargs or {}))


class FakeGPU(TorchDispatchMode):
    """torch's meta device behaves as a GPU would: what is read off it is 1, what is copied to the host is 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (READ, aten.item.default) and args[0].is_meta:
            return 1.0 if args[0].is_floating_point() else 1
        if func is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        to_host = any(isinstance(arg, torch.device) and arg.type == "cpu" for arg in (*args, *kwargs.values()))
        if func.overloadpacket in (aten.to, aten._to_copy) and args[0].is_meta and to_host:
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)


def job(task: Task, model: torch.nn.Module, training: LocalTraining) -> LocalJob:
    """The first client's."""
    return LocalJob(model, task.train[task.shards[0]], training, task.normalise, {}, task.seed, 0, 0)


def test_no_step_waits_for_the_device(tiny: Tiny) -> None:
    task = build(tiny()).task
    counts = []
    for epochs in (1, 3):
        work = job(task, Workbench(task).model, replace(task.training, epochs=epochs))
        with Reads() as reads:
            work.fit(work.images)
        counts.append(reads.count)
    assert counts == [1, 1]  # the mean loss, at the end


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_on_the_wrong_device(tiny: Tiny, attack: str) -> None:
    cfg = tiny(f"attack={attack}", "poisoned_model_rate=0.4")  # two attackers in a round
    task = build(cfg).task
    model = make(cfg, "model").to("meta", memory_format=torch.channels_last)
    work = job(task, model, task.training)
    with FakeGPU():
        task.attack.train(work)
        found = evaluate(model, task.eval_sets["clean"], task.normalise)
    assert all(value.is_meta for value in model.state_dict().values())
    assert found.count == 355
    assert not any(noted.is_meta for noted in work.notes.values())
    with FakeGPU(), pytest.raises(RuntimeError, match="device"):  # the test can fail
        work.fit(work.images, objective=lambda model, x, y: (model(x) * torch.ones(10)).mean())


def test_stacked_clients_are_on_one_device(tiny: Tiny) -> None:
    task = build(tiny()).task
    jobs = [replace(job(task, task.model, task.training), client=client) for client in (0, 1)]
    stack = {name: torch.stack([value, value]).to("meta") for name, value in task.model.state_dict().items()}
    with FakeGPU():
        losses = fit(stack, jobs, losses_of(task.model, task.training), task.model)
    assert losses.shape == (2,) and not losses.is_meta and all(value.is_meta for value in stack.values())


@pytest.mark.parametrize("defense", ["flame_weights_only", "fedavg", "multi_krum"])
def test_what_is_aggregated_on_a_device_comes_back(tiny: Tiny, defense: str) -> None:
    """With an update that the guard refuses, so that rows are selected there."""
    state, sent = recorded_updates(seed=0, n=5)
    sent.rows[2, 0] = torch.inf
    there = replace(sent, aggregate_on=torch.device("meta"))
    there.__dict__["guarded"] = sent.guarded  # a GPU would find it, too
    rule = make(tiny(f"defense={defense}"), "defense")
    with FakeGPU():
        verdict = defend(rule, state, there, generator(0, "defense"))
    assert there.copied.is_meta and there.select(torch.arange(5) > 2).copied.shape[0] == 2
    assert not verdict.state.row.is_meta and not verdict.weights.is_meta and float(verdict.weights[2]) == 0


def test_bf16_trains_to_other_bits_the_same_each_time(tiny: Tiny) -> None:
    cohort = build(tiny()).population.cohort(0)
    rows = {}
    for name in ("float32", "bf16"):
        parts = build(tiny(f"precision={name}"))
        rows[name], again = (Sequential(parts.task).train(parts.initial, cohort)[0].rows for _ in range(2))
        assert torch.equal(rows[name], again)
    exact, rough = rows.values()
    assert exact.dtype == rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert (torch.nn.functional.cosine_similarity(exact, rough) > 0.9).all()  # 8 bits of mantissa, not noise


def test_precision_is_part_of_the_identity(tiny: Tiny) -> None:
    """But float32 leaves it as it was before there was a choice, and the device never matters."""
    assert identity(tiny("precision=bf16")) != identity(tiny()) == identity(tiny("device=cuda"))


def test_workers_train_in_bf16_too(tiny: Tiny) -> None:
    parts = build(tiny("precision=bf16"))
    cohort = parts.population.cohort(0)
    with closing(Pool(parts.task, workers=1)) as pool:
        rows = pool.train(parts.initial, cohort)[0].rows
        assert torch.equal(rows, Sequential(parts.task).train(parts.initial, cohort)[0].rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said_before_anything_is_written(
    train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = train("experiment=smoke", "tracker=files", "device=cuda", f"paths.runs={tmp_path}/runs")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "device=cuda is not there: torch" in done.stderr and "sees 0 CUDA devices; take device=cpu" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_devices_have_names() -> None:
    check_device("cpu")
    assert describe_device("cpu") == "cpu"
    for name in ("tpu", "meta", "cuda:x"):
        with pytest.raises(ValueError, match=f"device={name} is unknown: must be cpu, cuda or cuda:0"):
            check_device(name)


def test_the_processor_is_told_from_others_that_round_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_processor()
    assert torch.backends.cpu.get_cpu_capability() in here and describe_processor() == here

    def told(name: str, cache: str, flags: str) -> str:
        text = f"processor\t: 0\nmodel name\t: {name}\ncache size\t: {cache}\nflags\t\t: {flags}\n\n"
        monkeypatch.setattr(Path, "read_text", lambda path: text)
        return describe_processor()

    assert told("A B", "1 KB", "fpu avx").startswith("A B, cache 1 KB, ")
    told_apart = {told(*facts) for facts in [("A", "1", "fpu"), ("B", "1", "fpu"), ("A", "2", "fpu"), ("A", "1", "f")]}
    assert len(told_apart) == 4 and told("A", "1", "fpu") in told_apart
