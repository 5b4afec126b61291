"""Updates in a file: the bits of updates in memory, nothing left behind, and words when there is no room."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.engine.spill import Spill, Store, _limits, available_memory
from flame.federation import rounds
from flame.round.types import digest
from flame.run.build import ConfigError, build

ROOT = Path(__file__).parents[2]
TASK = ("attack=constrain_and_scale", "train_samples=150")
DEFENSES = ("flame_weights_only", "flame_3dfed", "krum", "median", "bulyan", "foolsgold", "freqfed")


@pytest.mark.parametrize("defense", DEFENSES)
def test_the_bits_are_those_in_memory(tiny: Callable[..., DictConfig], tmp_path: Path, defense: str) -> None:
    plain = build(tiny(*TASK, f"defense={defense}"))
    spilled = replace(plain.task, spill=Spill(0, str(tmp_path)))
    hashes = []
    for task in (plain.task, spilled):
        for record in rounds(plain.federation(Sequential(task)), plain.initial, 2):
            last = record.after
        hashes.append(digest(last))
    assert hashes[0] == hashes[1]
    assert not list(tmp_path.iterdir())  # the file has no name


def test_workers_write_into_the_file(tiny: Callable[..., DictConfig], tmp_path: Path) -> None:
    parts = build(tiny(*TASK))
    oracle = Sequential(parts.task)
    with closing(Pool(replace(parts.task, spill=Spill(0, str(tmp_path))), workers=2)) as pool:
        for size in (5, 4):
            cohort = replace(parts.population, per_round=size).cohort(0)
            updates, _ = pool.train(parts.initial, cohort)
            assert in_a_file(updates.rows) and not list(tmp_path.iterdir())
            assert torch.equal(updates.rows, oracle.train(parts.initial, cohort)[0].rows)


def in_a_file(rows: torch.Tensor) -> bool:
    """Whether the kernel maps the first byte from a file that has been deleted (or never had a name)."""
    address = rows.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return line.endswith("(deleted)")
    return False


def test_a_share_of_the_memory_decides(tmp_path: Path) -> None:
    tenth = available_memory() // 4 // 10
    assert Spill(0.5, str(tmp_path)).rows(1, tenth) is None
    assert Spill(0.05, str(tmp_path)).rows(1, 10) is None
    assert Spill(1e-9, str(tmp_path)).rows(1, 1000) is not None  # 4 KB of at most 4 TB


def test_one_file_serves_all_rounds(updates: Callable, tmp_path: Path) -> None:
    layout = updates(0, 3)[1].layout
    store = Store(Spill(0, str(tmp_path)))
    first, counters = store.room(3, layout)
    assert first.shape == (3, layout.size) and not first.any() and counters.shape == (3, layout.counter_size)
    first += 1
    assert store.room(3, layout)[0].data_ptr() == first.data_ptr()
    assert store.room(2, layout)[0].shape == (2, layout.size)


def test_no_room_on_the_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"spill\.dir=.*take 4\.4e\+03 GB, .* GB are free there: free"):
        Spill(0, str(tmp_path)).rows(1 << 20, 1 << 20)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"spill\.dir=.*/file: File exists.*another disk"):
        Spill(0, str(tmp_path / "file")).rows(1, 1)


def test_out_of_range(tiny: Callable[..., DictConfig]) -> None:
    with pytest.raises(ConfigError, match=r"spill.share=1.5 is out of range: must be in \[0, 1\]"):
        build(tiny("spill.share=1.5"))


def test_limits_of_cgroups_are_found(tmp_path: Path) -> None:
    one, two = tmp_path / "memory/job/step", tmp_path / "slice/scope"
    for folder, name, limit in (
        (one, "memory.limit_in_bytes", "9223372036854771712"),
        (one.parent, "memory.limit_in_bytes", "3000"),
        (two, "memory.max", "max"),
        (two.parent, "memory.max", "5000"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(limit + "\n")
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/job/step\n1:cpu:/elsewhere\n0::/slice/scope\n")
    assert _limits(tmp_path, membership) == [9223372036854771712, 3000, 5000]
    assert _limits(tmp_path, tmp_path / "nowhere") == []


def test_a_killed_run_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import sys; from flame.engine.spill import Spill\n"
        "held = Spill(0, sys.argv[1]).rows(10, 1000); held.tensor += 1; print('there', flush=True)\n"
        "import time; time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"there\n"
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())
