"""What the clients of a recorded run hold: its training images, dealt again from its own config and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flame.data.samples import Dataset
from flame.partition.figure import Held
from flame.round.seeding import generator
from flame.run.build import dealt, load, make
from flame.run.record import Array, RunRecord

DEALT_BY = ("dataset", "partition", "attack", "clients", "train_samples", "seed")  # beside the server's own images


@dataclass(frozen=True)
class Holdings:
    """Per client."""

    sizes: Array  # [clients] samples
    skew: Array  # [clients] in [0, 1], total variation distance of its label distribution from all clients' together


def holdings(run: RunRecord) -> Holdings:
    """What the clients of this run hold.

    Raises:
        ValueError: they had other numbers of samples when the run was made: the code or the data have changed since; or
            its config does not say.
    """
    if missing := {*DEALT_BY, "defense"} - set(run.config):
        raise ValueError(f"{run.folder}: the recorded config has no {', '.join(sorted(missing))}")
    dealt_by = json.dumps({key: run.config[key] for key in DEALT_BY}, sort_keys=True)
    found = _holdings(dealt_by, root_samples(run.config["defense"]))
    ids, samples = run.acceptance["client"], run.acceptance["samples"]
    if (found.sizes[ids] != samples).any():
        client = int(ids[found.sizes[ids] != samples][0])
        raise ValueError(
            f"{run.folder}: client {client} is dealt {found.sizes[client]:g} samples, and acceptance.csv says"
            " otherwise: read the run with the code and the data that made it"
        )
    return found


def root_samples(defense: Mapping[str, Any]) -> int:
    """Images that a recorded defense, or the rule inside it (nnm, bucketing), keeps at the server."""
    if "rule" in defense:
        return root_samples(defense["rule"])
    return int(defense.get("root_samples", 0))


@lru_cache
def _holdings(config: str, root_samples: int) -> Holdings:
    cfg = json.loads(config)
    _, dataset = make(cfg, "attack").prepare(_dataset(json.dumps(cfg["dataset"])), generator(cfg["seed"], "prepare"))
    train, shards = dealt(cfg, dataset, root_samples)
    held = Held.of(train.y, shards.first(cfg["clients"]), dataset.classes)  # without the server's own samples
    return Holdings(held.sizes.double().numpy(), held.skew.numpy())


@lru_cache(maxsize=1)
def _dataset(node: str) -> Dataset:
    return load({"dataset": json.loads(node)})
