"""The script that measures a GPU is in order where there is none: every section, a table, and what time cuts off."""

from __future__ import annotations

import json
from pathlib import Path

import bench_gpu
import pytest
import torch
from gpu_session import Session, gauged

ENGINES = {"sequential", "stacked"}
LOOPS = {"bare loop", "loop of zhmzm/FLAME", "loop of BackFed"}


def test_every_section_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tf32 = torch.backends.cudnn.allow_tf32
    assert bench_gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 0
    assert torch.backends.cudnn.allow_tf32 == tf32
    found = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert found["device"] == "cpu" and found["skipped"] == []
    by = {(row["section"], row["case"]): row for row in found["rows"]}
    assert [by["smoke", name]["equal"] for name in ("once", "again", "two workers")] == [True] * 3
    seeds = by["accuracy", "2 seeds"]
    assert seeds["within"] and seeds["cpu"] == seeds["device"] and len(set(seeds["cpu"])) == 2
    assert by["verdict", "linear, n = 10, device"]["equal"] and by["verdict", "linear, n = 10, host"]["seconds"] > 0
    timed = {case.removeprefix("resnet8, "): row for (section, case), row in by.items() if section == "rounds"}
    assert set(timed) == {*LOOPS, *ENGINES, "bare loop, TF32"} | {
        f"{e}, {p}" for e in ENGINES for p in ("TF32", "bf16")
    }
    assert all(row["seconds"] > 0 and row["utilisation"] is None for row in timed.values())
    table = (tmp_path / "bench_gpu.md").read_text().splitlines()
    assert len(table) == 2 + len(by) and {line.count("|") for line in table} == {6}
    assert f"| smoke | once | {by['smoke', 'once']['result']} | - | - |" in table
    assert "smoke: again: " in capsys.readouterr().out


def test_without_time_everything_is_listed_as_skipped(tmp_path: Path) -> None:
    assert bench_gpu.main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert found["rows"] == [] and found["skipped"][:2] == ["smoke: once", "smoke: again"]
    cells = [name for name in found["skipped"] if name.startswith("rounds: resnet18, ")]
    assert len(cells) == 10 + 2 * 4  # pools of 1, 2, 4 and 8 workers, in float32 and bf16
    assert "| rounds | resnet8, pool, 8 workers, bf16 | skipped | - | - |" in (tmp_path / "bench_gpu.md").read_text()


def test_a_section_stops_before_the_case_that_would_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gpu_session.time.monotonic", lambda: now[0])
    session, seconds = Session("cpu", None, until=100.0), {"a": 30, "b": 40, "c": 20, "d": 1}
    for name in session.cases("rounds", list(seconds)):
        now[0] += seconds[name]
    assert session.skipped == ["rounds: c", "rounds: d"]  # 70 s are over, and one more may take 40


def test_other_bits_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bits = iter("aab")
    monkeypatch.setattr(bench_gpu, "played", lambda overrides, rounds: (next(bits), [0.5]))
    for name in ("accuracy", "verdict", "rounds"):
        monkeypatch.setattr(bench_gpu, name, lambda session: None)
    assert bench_gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 1
    assert "| smoke | two workers | b, DIFFERENT |" in (tmp_path / "bench_gpu.md").read_text()


def test_what_nvidia_smi_says() -> None:
    assert gauged("80, 1000\n90, 3000\n[N/A], 5\n10") == {"utilisation": 85.0, "memory_mb": 3000.0}
    assert gauged("") == {"utilisation": None, "memory_mb": None}


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit):
        bench_gpu.main([])
    assert "device=cuda:0 is not there" in capsys.readouterr().err
