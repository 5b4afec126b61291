"""What of an engine's config has a range, and what of it changes the last bits of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flame.round.device import aggregating


def check_engine(engine: Mapping[str, Any], device: str) -> None:
    """ValueError unless the engine's numbers and words hold, for the run's device; `workers` is cores.py's."""
    per_gpu, at_once = engine.get("per_gpu"), engine.get("at_once", 1)
    if per_gpu is not None and per_gpu < 1:
        raise ValueError(f"engine.per_gpu={per_gpu} is out of range: must be null (by memory) or a whole number >= 1")
    if per_gpu is not None and device == "cpu":
        raise ValueError(f"engine.per_gpu={per_gpu} is about GPUs, and device=cpu: leave it null, or say device=cuda")
    if at_once < 1:
        raise ValueError(f"engine.at_once={at_once} is out of range: must be a whole number >= 1")
    aggregating(device, engine.get("aggregate_on", "cpu"))


def own_bits(engine: Mapping[str, Any]) -> str:
    """What makes this engine round otherwise than `sequential`, in words; empty if nothing does."""
    together = f", stacked, {engine['at_once']} at once" if "at_once" in engine else ""
    return together + (", aggregated on the device" if engine.get("aggregate_on", "cpu") != "cpu" else "")
