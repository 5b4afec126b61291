"""What the GPU benchmark keeps at hand: the time that is left, what was found, torch's switches, the GPU's gauges."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flame.round.device import describe_device, describe_processor

SHARES = {"smoke": 0.1, "accuracy": 0.25, "verdict": 0.2, "rounds": 1.0}  # of the time that is left
Row = dict[str, Any]


@dataclass
class Session:
    """The device, the time that is left, and what was found."""

    device: str
    size: Any  # how much is measured
    until: float  # of time.monotonic
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def cases(self, section: str, names: Sequence[str]) -> Iterator[str]:
        """The names in order, as long as there is time for one more that takes as long as the longest so far."""
        start = time.monotonic()
        end, longest = start + SHARES[section] * (self.until - start), 0.0
        for i, name in enumerate(names):
            before = time.monotonic()
            if before + longest >= end:
                self.skipped += [f"{section}: {each}" for each in names[i:]]
                return
            yield name
            longest = max(longest, time.monotonic() - before)

    def note(self, section: str, case: str, result: str, **facts: Any) -> None:
        """A row of the table."""
        self.rows.append({"section": section, "case": case, "result": result, **facts})
        print(f"{section}: {case}: {result}", flush=True)

    def write(self, folder: Path) -> None:
        """bench_gpu.json and bench_gpu.md, whole after each section."""
        facts = {"device": describe_device(self.device), "processor": describe_processor(), "torch": torch.__version__}
        content = {**facts, "rows": self.rows, "skipped": self.skipped}
        (folder / "bench_gpu.json").write_text(json.dumps(content, indent=1) + "\n")
        lines = ["| section | case | result | utilisation | peak memory |", "|---|---|---|---|---|"]
        for row in self.rows:
            used, memory = row.get("utilisation"), row.get("memory_mb")
            ends = (
                f"{'-' if used is None else f'{used:.0f} %'} | {'-' if memory is None else f'{memory / 1000:.1f} GB'}"
            )
            lines.append(f"| {row['section']} | {row['case']} | {row['result']} | {ends} |")
        lines += [
            f"| {name.partition(': ')[0]} | {name.partition(': ')[2]} | skipped | - | - |" for name in self.skipped
        ]
        (folder / "bench_gpu.md").write_text("\n".join(lines) + "\n")


class Gauge:
    """Mean utilisation in per cent and most memory in MB of a GPU while it is open, asked five times a second."""

    def __init__(self, device: str) -> None:
        self._gpu, self._process = device.removeprefix("cuda").removeprefix(":") or "0", None
        self._asked = device.startswith("cuda")
        self.found: dict[str, float | None] = {"utilisation": None, "memory_mb": None}

    def __enter__(self) -> Gauge:
        query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
        with suppress(FileNotFoundError):  # not there: not measured
            if self._asked:
                command = ["nvidia-smi", "-i", self._gpu, *query]
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self.found = gauged(self._process.communicate()[0])


def gauged(text: str) -> dict[str, float | None]:
    """Of lines such as `87, 12345`."""
    pairs = [line.split(", ") for line in text.splitlines()]
    numbers = [(float(a), float(b)) for a, b in (p for p in pairs if len(p) == 2) if a.isdigit() and b.isdigit()]
    if not numbers:
        return {"utilisation": None, "memory_mb": None}
    used, memory = zip(*numbers, strict=True)
    return {"utilisation": round(statistics.mean(used), 1), "memory_mb": max(memory)}


@contextmanager
def arithmetic(tf32: bool, deterministic: bool) -> Iterator[None]:
    """torch's switches, and afterwards as they were."""
    switches = [(torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32")]
    wanted = [(*switch, tf32) for switch in switches] + [(torch.backends.cudnn, "deterministic", deterministic)]
    before = [(of, name, getattr(of, name)) for of, name, _ in wanted]
    for of, name, value in wanted:
        setattr(of, name, value)
    yield
    for of, name, value in before:
        setattr(of, name, value)
