"""Checkpoints hold the whole state and survive damage; a resumed federation has the bits of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flame.federation import rounds
from flame.geometry.layout import StateLayout
from flame.round.checkpoint import latest_checkpoint, write_atomically, write_checkpoint
from flame.round.types import ServerState, digest
from models.resnet8 import ResNet8

LAYOUT = StateLayout.of(ResNet8(1, 10, "batch"))


def state_after(round_: int) -> ServerState:
    stream = torch.Generator().manual_seed(round_)
    row = torch.randn(LAYOUT.size, generator=stream)
    counters = torch.randint(0, 99, (LAYOUT.counter_size,), generator=stream)
    memory = {"attack/history": torch.rand(3, 4, generator=stream, dtype=torch.float64).T, "rule/seen": counters > 50}
    return ServerState(row, counters, round_, memory)


def latest(folder: Path, identity: str = "abc") -> ServerState | None:
    return latest_checkpoint(folder, LAYOUT, identity)


def test_nothing_is_lost(tmp_path: Path) -> None:
    before = state_after(3)
    write_checkpoint(tmp_path, before, "abc")
    after = latest(tmp_path)
    assert after is not None
    assert digest(after) == digest(before) and after.round == 3
    assert set(after.memory) == set(before.memory)
    for name, value in before.memory.items():
        assert after.memory[name].dtype == value.dtype and torch.equal(after.memory[name], value)


def test_memory_may_be_the_global_model_itself(tmp_path: Path) -> None:
    """A defense that remembers the last global row shares its tensor when a round keeps the model."""
    state = state_after(1)
    write_checkpoint(tmp_path, ServerState(state.row, state.counters, 1, {"rule/last": state.row}), "abc")
    after = latest(tmp_path)
    assert after is not None and torch.equal(after.memory["rule/last"], after.row)


def test_there_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def test_the_millionth_round_is_newer_than_the_one_before(tmp_path: Path) -> None:
    """As text `1000000` comes before `999999`."""
    for round_ in (999_998, 999_999, 1_000_000):
        write_checkpoint(tmp_path, state_after(round_), "abc")
    assert {p.name for p in tmp_path.iterdir()} == {f"round_{r}.safetensors" for r in (999_999, 1_000_000)}
    found = latest(tmp_path)
    assert found is not None and found.round == 1_000_000


def test_the_newest_counts_and_few_are_kept(tmp_path: Path) -> None:
    for round_ in (8, 9, 10, 11):
        write_checkpoint(tmp_path, state_after(round_), "abc")
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"round_{r:06d}.safetensors" for r in (10, 11)]
    found = latest(tmp_path)
    assert found is not None and found.round == 11


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    write_checkpoint(tmp_path, state_after(1), "abc")
    newest = write_checkpoint(tmp_path, state_after(2), "abc")
    content = {"truncated": newest.read_bytes()[:-100], "empty": b"", "garbage": b"\x80\x04" * 500}[damage]
    newest.write_bytes(content)
    found = latest(tmp_path)
    assert found is not None and digest(found) == digest(state_after(1))


def test_all_are_damaged(tmp_path: Path) -> None:
    for round_ in (1, 2):
        write_checkpoint(tmp_path, state_after(round_), "abc").write_bytes(b"no")
    with pytest.raises(OSError, match=r"no checkpoint can be read; remove them.*round_000002.*round_000001"):
        latest(tmp_path)


def test_half_written_is_not_there(tmp_path: Path) -> None:
    """What a crash before the rename leaves behind."""
    write_checkpoint(tmp_path, state_after(1), "abc")
    (tmp_path / ".round_000002.safetensors.tmp").write_bytes(b"half")
    found = latest(tmp_path)
    assert found is not None and found.round == 1


def test_anothers_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state_after(1), "abc")
    with pytest.raises(ValueError, match="belongs to the config abc, not to xyz"):
        latest(tmp_path, "xyz")
    with pytest.raises(ValueError, match="does not fit the model"):
        latest_checkpoint(tmp_path, StateLayout.of(ResNet8(3, 10, "batch")), "abc")


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text is not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"


def test_resumed_equals_uninterrupted(tiny: Callable, start: Callable, tmp_path: Path) -> None:
    with start(tiny("defense=flame_all_state")) as (fed, initial):
        *_, whole = rounds(fed, initial, 4)
        *_, half = rounds(fed, initial, 2)
    write_checkpoint(tmp_path, half.after, "abc")
    with start(tiny("defense=flame_all_state")) as (fed, _):
        restored = latest_checkpoint(tmp_path, half.updates.layout, "abc")
        assert restored is not None
        *_, last = rounds(fed, restored, 4)
    assert last.number == 3
    assert digest(last.after) == digest(whole.after)
    timeless = {k: v for k, v in whole.metrics.items() if not k.startswith("time/")}
    assert {k: v for k, v in last.metrics.items() if not k.startswith("time/")} == pytest.approx(timeless, nan_ok=True)
