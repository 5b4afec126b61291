"""100,000 clients cost index arrays and nothing else."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from omegaconf import DictConfig

from flame.run.build import build

MANY = ("partition=main_label", "partition.samples_per_client=20", "train_samples=null", "clients_per_round=50")


def test_a_hundred_thousand_clients_are_ready_in_seconds(tiny: Callable[..., DictConfig]) -> None:
    """CPU seconds, so that a busy machine is not a failure; 1.3 were measured."""
    build(tiny(*MANY, "clients=100"))  # imports
    gc.collect()
    objects, began = len(gc.get_objects()), time.process_time()
    parts = build(tiny(*MANY, "clients=100000"))
    cohort = parts.population.cohort(0)
    assert time.process_time() - began < 10
    gc.collect()
    assert len(gc.get_objects()) - objects < 10_000  # not one for each client
    assert len(cohort.ids) == 50 and cohort.ids.max() > 50_000
    shards = parts.task.shards
    assert shards.index.shape == (2_000_000,) and shards.offsets.shape == (100_002,)  # the server's shard is empty
