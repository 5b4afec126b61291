"""Which worker trains on which GPU, worked by hand; what is refused, and what a GPU's place never changes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from flame.engine import pool
from flame.engine.base import WorkerError
from flame.engine.memo import key
from flame.engine.placement import homes, place
from flame.engine.ray import Ray
from flame.engine.sharing import empty_room, shared
from flame.round.device import check_device
from flame.run.build import ConfigError, build
from flame.run.config import identity

GB = 1 << 30
RESNET18 = 44_735_848  # bytes: 11,173,962 parameters and 9,600 statistics, 4 bytes each, and 20 counters, 8 each
Compose = Callable[..., DictConfig]


def test_a_large_gpu_is_full_of_workers_before_it_is_full() -> None:
    """139 GB are room for 53 workers of 2.33 GB; more than eight are not started, nor more than asked for."""
    assert place([139 * GB], RESNET18, workers=16, per_gpu=None) == [0] * 8
    assert place([139 * GB], RESNET18, workers=2, per_gpu=None) == [0, 0]


def test_workers_take_the_gpus_in_turn() -> None:
    assert place([80 * GB] * 3, RESNET18, workers=7, per_gpu=None) == [0, 1, 2, 0, 1, 2, 0]


def test_a_small_gpu_drops_out_of_the_turns() -> None:
    """A worker needs 2 GB and eight times a model of 0.25 GB, 4 GB; 0.9 of 10, 3 and 21 GB are 9, 2.7 and 18.9."""
    assert place([10 * GB, 3 * GB, 21 * GB], GB // 4, workers=99, per_gpu=None) == [0, 2, 0, 2, 2, 2]


def test_per_gpu_is_taken_at_its_word() -> None:
    assert place([3 * GB, 3 * GB], GB, workers=99, per_gpu=2) == [0, 1, 0, 1]
    assert place([139 * GB], RESNET18, workers=12, per_gpu=12) == [0] * 12


def test_no_room_is_said_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"no room: .* need 2\.5 GB, and 2\.5, 1\.1 GB are free; .*per_gpu=1"):
        place([int(2.3 * GB), GB], RESNET18, workers=4, per_gpu=None)


@given(
    free=st.lists(st.integers(0, 200), min_size=1, max_size=8),
    model=st.integers(1, 4 * GB),
    workers=st.integers(1, 64),
    per_gpu=st.none() | st.integers(1, 12),
)
def test_no_gpu_takes_more_than_it_has_room_for(free: list[int], model: int, workers: int, per_gpu: int | None) -> None:
    try:
        taken = place([each * GB for each in free], model, workers, per_gpu)
    except ValueError:
        assert per_gpu is None and max(free) * GB * 0.9 < 2 * GB + 8 * model
        return
    counts = [taken.count(gpu) for gpu in range(len(free))]
    assert 1 <= len(taken) == sum(counts) <= workers
    assert all(count <= (per_gpu or 8) for count in counts)
    if per_gpu is None:
        assert all(count * (2 * GB + 8 * model) <= 0.9 * each * GB for count, each in zip(counts, free, strict=True))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpus("A", "A")`: torch says that there are these, with 80 GB free on each."""

    def there(*names: str) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: names[int(f"{gpu}:0".split(":")[1])])
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (80 * GB, 80 * GB))

    return there


def test_cuda_is_all_of_them_and_cuda_1_is_one(
    tiny: Compose, gpus: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    task = build(tiny()).task
    gpus("A", "A")
    with caplog.at_level(logging.INFO):
        assert homes(replace(task, device="cuda"), 3, None) == ["cuda:0", "cuda:1", "cuda:0"]
    assert "workers on GPUs: 2 on cuda:0, 1 on cuda:1" in caplog.text
    assert homes(replace(task, device="cuda:1"), 2, None) == ["cuda:1"] * 2
    assert homes(task, 2, None) == ["cpu"] * 2
    gpus("A", "B")
    with pytest.raises(ValueError, match=r"device=cuda is 2 kinds of GPU here \(A, B\).*name one, such as"):
        homes(replace(task, device="cuda"), 2, None)


def test_a_worker_trains_at_home(tiny: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    homes_seen: list[str] = []
    monkeypatch.setattr(pool, "Workbench", lambda task: homes_seen.append(task.device))
    monkeypatch.setattr(pool.signal, "signal", lambda *arguments: None)
    task = build(tiny()).task
    near, far = Pipe()
    near.close()  # so that the worker's life ends at once
    pool._serve(far, shared(task), empty_room(1, 1, 1, task.spill), "cuda:3")
    assert homes_seen == ["cuda:3"] and task.device == "cpu"


def test_a_pool_without_room_says_so(tiny: Compose, gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    task = build(tiny()).task
    gpus("A")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (GB, 80 * GB))
    with pytest.raises(WorkerError, match=r"device=cuda has no room"):
        pool.Pool(replace(task, device="cuda"), workers=1)


def test_a_device_that_is_not_there(gpus: Callable[..., None]) -> None:
    gpus("A", "A")
    check_device("cuda"), check_device("cuda:1")
    with pytest.raises(ValueError, match=r"device=cuda:7 is not there: must be cuda \(all of them\) or cuda:0 to"):
        check_device("cuda:7")
    gpus()
    with pytest.raises(ValueError, match=r"device=cuda is not there: torch .* sees 0 CUDA devices; take device=cpu"):
        check_device("cuda")


def test_gpus_to_share_need_a_gpu(tiny: Compose) -> None:
    with pytest.raises(ConfigError, match=r"engine.per_gpu=2 is about GPUs, and device=cpu: leave it null"):
        build(tiny("engine=pool", "engine.per_gpu=2"))
    with pytest.raises(ConfigError, match=r"engine.aggregate_on='gpu' is unknown: must be one of cpu, device"):
        build(tiny("engine.aggregate_on=gpu"))


def test_a_place_is_no_part_of_the_identity(tiny: Compose, gpus: Callable[..., None]) -> None:
    """Nor of what is remembered: the kind of GPU is, whichever of several it is."""
    plain = identity(tiny())
    assert {identity(tiny("engine=pool", "device=cuda:1", f"engine.per_gpu={n}")) for n in (1, 4)} == {plain}
    assert identity(tiny("engine=stacked", "engine.aggregate_on=device")) == plain
    task = build(tiny()).task
    gpus("A", "A", "B")
    keys = [key(replace(task, device=name), "code") for name in ("cuda", "cuda:0", "cuda:1", "cuda:2", "cpu")]
    assert keys[0] == keys[1] == keys[2] and len(set(keys)) == 3


def test_ray_is_asked_for_a_share_of_a_gpu(tiny: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    fake = SimpleNamespace(
        is_initialized=lambda: True, put=lambda it: it, remote=lambda **options: asked.append(options) or (lambda f: f)
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    task = build(tiny()).task
    Ray(task, "local", workers=1)
    Ray(replace(task, device="cuda"), "local", workers=1)
    Ray(replace(task, device="cuda"), "local", workers=1, per_gpu=4)
    assert [options.get("num_gpus") for options in asked] == [None, 1, 0.25]
    with pytest.raises(WorkerError, match=r"device=cuda:1 is not for engine=ray, which deals out GPUs itself"):
        Ray(replace(task, device="cuda:1"), "local", workers=1)
