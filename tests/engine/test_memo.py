"""What is recalled is, bit for bit, what would have been trained; and nothing is recalled that could differ."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from flame.engine.base import Engine
from flame.engine.memo import STALE, Memo, Remembering, key, recall
from flame.engine.pool import Pool
from flame.engine.sequential import Sequential
from flame.engine.workbench import Task
from flame.federation import rounds
from flame.round.evaluate import Evaluation
from flame.round.types import Cohort, Notes, ServerState, Updates, digest
from flame.run.build import ConfigError, Parts, build
from flame.run.config import identity

Compose = Callable[..., DictConfig]
CODE = "0123456789ab"


@dataclass
class Watched:
    """An engine that notes whom it was asked to train."""

    engine: Engine
    asked: list[int] = field(default_factory=list)
    aggregate_on: None = None

    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, Sequence[Notes]]:
        self.asked += [len(cohort.ids)]
        return self.engine.train(state, cohort)

    def evaluate(self, state: ServerState) -> Mapping[str, Evaluation]:
        return self.engine.evaluate(state)

    def close(self) -> None:
        self.engine.close()


def play(parts: Parts, engine: Engine, until: int = 3) -> tuple[str, list[dict[str, float]]]:
    """The final model's hash and every round's metrics, times aside."""
    with closing(engine):
        played = list(rounds(parts.federation(engine), parts.initial, until))
    return digest(played[-1].after), [
        {name: value for name, value in record.metrics.items() if not name.startswith("time/")} for record in played
    ]


def remembered(parts: Parts, folder: Path, gb: float = 1.0) -> tuple[tuple[str, list[dict[str, float]]], list[int]]:
    """The same with a memory in `folder`, and how many clients were trained in each call."""
    watched: list[Watched] = []

    def start(task: Task) -> Engine:
        watched.append(Watched(Sequential(task)))
        return watched[0]

    return play(parts, Memo(str(folder), gb).around(start, CODE)(parts.task)), watched[0].asked


def test_a_second_run_recalls_the_benign_and_trains_the_attacker(tiny: Compose, tmp_path: Path) -> None:
    """Five clients a round, one of them compromised."""
    parts = build(tiny())
    wanted = play(parts, Sequential(parts.task))
    assert remembered(parts, tmp_path) == (wanted, [5, 5, 5])
    assert remembered(parts, tmp_path) == (wanted, [1, 1, 1])


def test_colluders_find_their_notes_beside_recalled_updates(tiny: Compose, tmp_path: Path) -> None:
    """Other attackers and another defense: the first round's model is the same, later ones need not be."""
    remembered(build(tiny("defense=fedavg")), tmp_path)
    parts = build(tiny("attack=flame_aware", "poisoned_model_rate=0.4"))
    found, asked = remembered(parts, tmp_path)
    assert found == play(parts, Sequential(parts.task))
    assert asked[0] == 2 and asked[1] == 5


def test_a_server_with_data_of_its_own(tiny: Compose, tmp_path: Path) -> None:
    parts = build(tiny("defense=fltrust"))
    wanted = play(parts, Sequential(parts.task))
    assert [remembered(parts, tmp_path) for _ in range(2)] == [(wanted, [6, 6, 6]), (wanted, [1, 1, 1])]


def test_a_pool_keeps_its_workers_for_a_part_of_a_cohort(tiny: Compose, tmp_path: Path) -> None:
    parts = build(tiny())
    wanted, _ = remembered(parts, tmp_path)
    assert play(parts, Memo(str(tmp_path), 1.0).around(lambda task: Pool(task, workers=2), CODE)(parts.task)) == wanted
    with closing(Pool(parts.task, workers=2)) as pool:
        cohort = parts.population.cohort(0)
        whole, _ = pool.train(parts.initial, cohort)
        rows, workers = whole.rows.clone(), list(pool._workers)
        part, _ = pool.train(parts.initial, Cohort(cohort.ids[2:], cohort.compromised[2:]))
        assert pool._workers == workers and torch.equal(part.rows, rows[2:])


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "client.lr=0.01",
        "train_samples=299",
        "model=cnn",
        "precision=bf16",
        "partition=dirichlet",
        "augment=crop_flip",
    ],
)
def test_whatever_training_follows_from_is_in_the_key(tiny: Compose, change: str) -> None:
    same, other = tiny("defense=krum", "attack=none", "rounds=7"), tiny(change)
    assert key(build(same).task, CODE) == key(build(tiny()).task, CODE) != key(build(other).task, CODE)


def test_a_round_is_recalled_at_its_rate_alone(tiny: Compose, tmp_path: Path) -> None:
    """The first round of a constant and of a falling rate is one, of a rising rate another; a run's length is none."""
    memo, files, linear = Memo(str(tmp_path), 1.0), [], "client/schedule=linear"
    for words in ((), (linear, "rounds=9"), ("client.schedule.warmup=1",), (linear,)):
        parts = build(tiny("attack=none", *words))
        with closing(memo.around(Sequential, CODE)(parts.task)) as engine:
            for number in (0, 1):
                engine.train(replace(parts.initial, round=number), parts.population.cohort(number))
        files.append(len(list(tmp_path.iterdir())))
    assert files == [2, 3, 4, 5]  # of round 0 at 1 and 1/2; of round 1 at 1 (twice), 8/9 and 2/3


def test_pixels_and_the_code_are_in_the_key(tiny: Compose) -> None:
    task = build(tiny()).task
    x = task.train.x.clone()
    x[7, 0, 3, 3] ^= 1
    assert key(replace(task, train=replace(task.train, x=x)), CODE) != key(task, CODE)
    assert key(task, "other") != key(task, CODE)


def test_the_code_is_that_of_the_parts_that_train(tiny: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the user's own counts, and its settings, which its printed form need not show; a defense does not."""
    seen: list[str] = []
    monkeypatch.setattr(Memo, "around", lambda self, start, code: seen.append(code) or start)
    monkeypatch.setattr("flame.round.code.users_code", lambda names: {name: "x" for name in names if "models" in name})
    for change in ("seed=0", "defense=krum", "model=cnn", "model.norm=group", "client.lr=0.01"):
        build(tiny(change))
    assert seen[0] == seen[1] and len(set(seen)) == 4


def test_the_gpu_is_in_the_key(tiny: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(build(tiny()).task, device="cuda")
    keys = set()
    for name in ("NVIDIA A100", "NVIDIA H100"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        keys.add(key(task, CODE))
    assert len(keys) == 2


def cut(content: bytes) -> bytes:
    return content[:100]


def flip(content: bytes) -> bytes:
    """One bit of the last number."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_file_is_written_again(
    tiny: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    parts = build(tiny())
    wanted, _ = remembered(parts, tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert remembered(parts, tmp_path) == (wanted, [5, 5, 5])
    assert sum("is damaged" in record.message for record in caplog.records) == 3
    assert remembered(parts, tmp_path) == (wanted, [1, 1, 1])


def test_runs_side_by_side_keep_the_same_round(tiny: Compose, tmp_path: Path) -> None:
    """Each under a name of its own until it is whole: nobody renames half of another's file, or finds it gone."""
    task = build(tiny()).task
    memory, benign = Remembering(Sequential(task), task, tmp_path, 1.0, CODE), torch.ones(5, dtype=torch.bool)
    rows, counters = task.layout.zeros(5)
    ids, losses = torch.arange(5), torch.zeros(5, dtype=torch.float64)
    updates = Updates(task.layout, rows[0], counters[0], ids, rows, counters, ids, losses)
    with ThreadPoolExecutor(4) as runs:
        list(runs.map(lambda _: memory._keep(tmp_path / "round.safetensors", updates, benign), range(40)))
    assert torch.equal(recall(tmp_path / "round.safetensors")["rows"], rows)
    assert [file.name for file in tmp_path.iterdir()] == ["round.safetensors"]


def test_half_a_file_of_a_killed_run_is_removed_once_nobody_can_be_writing_it(tiny: Compose, tmp_path: Path) -> None:
    parts = build(tiny())

    def killed() -> None:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        remembered(parts, tmp_path)

    run = get_context("fork").Process(target=killed)
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    mine, older = tmp_path / ".notes.tmp", tmp_path / f".{'a' * 64}.0123456789abcdef.tmp"  # a user's; as named before
    for path in (mine, older):
        path.touch()
    remembered(parts, tmp_path)
    assert {left, mine, older} < {*tmp_path.iterdir()}
    for path in (left, mine, older):
        os.utime(path, (time.time() - STALE - 1,) * 2)
    assert remembered(parts, tmp_path)[1] == [1, 1, 1]
    assert [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"] == [mine]


def test_a_folder_that_is_deleted_under_a_run_is_made_again(tiny: Compose, tmp_path: Path) -> None:
    parts = build(tiny())
    with closing(Memo(str(tmp_path / "memo"), 1.0).around(Sequential, CODE)(parts.task)) as engine:
        (tmp_path / "memo").rmdir()
        engine.train(parts.initial, parts.population.cohort(0))
    assert remembered(parts, tmp_path / "memo")[1] == [1, 5, 5]


@pytest.mark.parametrize(
    ("error", "tried", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 3, 0),  # deleted at just that moment
        (OSError(errno.ENOSPC, "No space left on device"), 1, 1),
    ],
)
def test_what_cannot_be_written_does_not_end_a_run(
    tiny: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: OSError,
    tried: int,
    said: int,
) -> None:
    """A deleted folder is made anew in the next round; of a full disk the run says so once and tries no more."""
    attempts: list[Path] = []

    def fail(path: Path, content: bytes, own: str) -> None:
        attempts.append(path)
        raise error

    monkeypatch.setattr("flame.engine.memo.write_atomically", fail)
    parts = build(tiny())
    assert remembered(parts, tmp_path)[1] == [5, 5, 5]
    assert len(attempts) == tried
    assert sum("cannot be written (No space left on device)" in message for message in caplog.messages) == said


@pytest.mark.parametrize("below", ["", "/memo"])
def test_what_cannot_be_a_folder_is_refused_before_a_run(tiny: Compose, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"memo\.dir=.*/file.*; must be a folder, or null"):
        build(tiny(f"memo.dir={tmp_path}/file{below}"))


def test_no_more_is_written_than_was_allowed(tiny: Compose, tmp_path: Path) -> None:
    parts = build(tiny())
    wanted, _ = remembered(parts, tmp_path / "all")
    (size,) = {file.stat().st_size for file in (tmp_path / "all").iterdir()}
    gb = 1.5 * size / 1e9
    with closing(Memo(str(tmp_path / "some"), gb).around(Sequential, CODE)(parts.task)) as beside:
        assert remembered(parts, tmp_path / "some", gb) == (wanted, [5, 5, 5])
        beside.train(replace(parts.initial, round=5), parts.population.cohort(5))  # it started when nothing was there
    assert len(list((tmp_path / "some").iterdir())) == 1
    assert remembered(parts, tmp_path / "some", gb=0) == (wanted, [1, 5, 5])


def test_it_is_no_part_of_a_run_s_identity(tiny: Compose, tmp_path: Path) -> None:
    assert identity(tiny(f"memo.dir={tmp_path}")) == identity(tiny())
    for gb in ("-1", "nan"):
        with pytest.raises(ConfigError, match=rf"memo\.gb={gb}.* is out of range: must be >= 0"):
            build(tiny(f"memo.gb={gb}"))
