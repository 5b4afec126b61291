"""Clients that are given: who wrote, measured or collected what, by the data set or by a file.

| partition | shards                                            | who says so                                |
|-----------|---------------------------------------------------|--------------------------------------------|
| `natural` | disjoint, all samples of holders who take part    | the data set, `flame.data.samples.Holders` |
| `file`    | disjoint, complete unless `unlisted` is leave_out | index lists in a file                      |

Both work with a server's own images, `train_samples` and attacks that take images away: those are in no shard.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from flame.data.arrays import read
from flame.data.check import check_names
from flame.data.samples import Holders, Kept, Shards
from flame.partition.checks import check_count
from flame.partition.rules import collect


def natural(
    labels: Tensor,
    clients: int,
    generator: Generator,
    *,
    min_samples: int,
    holders: Holders | None,
    dataset_name: str = "null",
) -> Shards:
    """A client for each holder of at least `min_samples` >= 1 samples; if there are more, as many as `clients` drawn.

    Clients are in the order of the holders, and have their names.

    Raises:
        ValueError: the data set does not know who holds what, or too few hold enough.
    """
    check_count("partition.min_samples", min_samples)
    check_count("clients", clients)
    if holders is None:
        raise ValueError(
            f"partition=natural needs data that say who holds what, and dataset={dataset_name} does not: give"
            " dataset=arrays a client_train, or a Dataset its holders; partition=dirichlet makes skewed clients out of"
            " any data"
        )
    held = torch.bincount(holders.of, minlength=len(holders.names))
    able = (held >= min_samples).nonzero().flatten()
    if clients > len(able):
        fewest = f"{holders.names[int(held.argmin())]} has {int(held.min())}, the fewest"
        told = f" in {holders.told_by}" if holders.told_by else ""
        remedy = f"set clients to at most {len(able)}, or lower" if len(able) else "lower"
        raise ValueError(
            f"clients={clients} do not fit the data: of {len(held)} holders{told} {len(able)} have"
            f" partition.min_samples={min_samples} samples or more ({fewest}); {remedy} partition.min_samples"
        )
    chosen = able[torch.randperm(len(able), generator=generator)[:clients]].sort().values
    owner = torch.full_like(held, -1).index_copy_(0, chosen, torch.arange(clients))[holders.of]
    mine = (owner >= 0).nonzero().flatten()
    shards = collect(mine, owner[mine], clients, generator)
    return replace(shards, names=tuple(holders.names[i] for i in chosen.tolist()))


@dataclass(frozen=True)
class Listed:
    """A client for each list of a file: positions in the training set as it was loaded, from 0."""

    path: str | None  # .json: an object of name -> list, or a list of lists | .npz: an array of whole numbers for each
    unlisted: str  # images that are in no list: refuse | leave_out

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be."""
        if self.path is None:
            raise ValueError("partition.path=null: partition=file needs a .json or .npz file of index lists")
        if self.unlisted not in ("refuse", "leave_out"):
            raise ValueError(f"partition.unlisted={self.unlisted} is unknown: must be refuse or leave_out")

    @property
    def content(self) -> bytes:
        """sha256 of the file, of which a run's data are made, too."""
        return hashlib.sha256(self._file.read_bytes()).digest()

    @property
    def _file(self) -> Path:
        path = Path(str(self.path)).expanduser()
        if not path.is_file():
            problem = "it is a folder" if path.is_dir() else "there is no such file"
            raise FileNotFoundError(f"partition.path={self.path}: {problem}: name a .json or .npz")
        return path

    def __call__(self, labels: Tensor, clients: int, generator: Generator, *, kept: Kept) -> Shards:
        """Shards of the images that are still there, each in random order.

        Raises:
            ValueError: an index is out of range, in two lists or, unless it may be, in none; a client has no image;
                there are other than `clients` lists; the file is damaged.
        """
        names, lists = read_lists(self._file)
        if clients != len(lists):
            raise ValueError(
                f"clients={clients} does not fit partition.path={self.path}, which has {len(lists)} lists: say"
                f" clients={len(lists)}"
            )
        owner = torch.arange(clients).repeat_interleave(torch.tensor([len(each) for each in lists]))
        index = torch.from_numpy(np.concatenate(lists))
        self._check(index, owner, names, kept.loaded)
        at = torch.full((kept.loaded,), -1).index_copy_(0, kept.at, torch.arange(len(kept.at)))[index]
        there = at >= 0
        shards = collect(at[there], owner[there], clients, generator)
        if not bool(shards.sizes.all()):
            empty = names[int(shards.sizes.argmin())]
            raise ValueError(
                f"partition.path={self.path}: list {empty} has no sample left, once train_samples, the attack and the"
                " server have theirs: take the list out, or raise train_samples"
            )
        return replace(shards, names=tuple(names))

    def _check(self, index: Tensor, owner: Tensor, names: list[str], images: int) -> None:
        """A ValueError unless every one of so many images is in one list, as far as that is asked."""
        outside = ((index < 0) | (index >= images)).nonzero().flatten()
        if len(outside):
            first = int(outside[0])
            raise ValueError(
                f"partition.path={self.path}: list {names[int(owner[first])]} has the index {int(index[first])}"
                f" ({len(outside)} are out of range): must be in [0, {images - 1}], positions in the training set, of"
                " which test samples, as of dataset.test_share, are no part"
            )
        times = torch.bincount(index, minlength=images)
        if int(times.max()) > 1:
            twice = int(times.argmax())
            whose = [names[client] for client in owner[index == twice].tolist()]
            raise ValueError(
                f"partition.path={self.path}: index {twice} is there {int(times.max())} times, in the lists"
                f" {', '.join(whose[:5])} ({int((times > 1).sum())} are there more than once): must be in one list"
            )
        if self.unlisted == "refuse" and not bool(times.all()):
            missing = (times == 0).nonzero().flatten()
            raise ValueError(
                f"partition.path={self.path}: {len(missing)} of {images} samples are in no list, the first is"
                f" {int(missing[0])}: list them, or say partition.unlisted=leave_out"
            )


def read_lists(path: Path) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Names of the lists, their numbers where the file has none, and the index list [n] of each, n >= 1.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    if path.suffix == ".npz":
        found: dict[str, Any] = dict(read(path))
    elif path.suffix == ".json":
        found = _read_json(path)
    else:
        raise ValueError(f"partition.path={path} ends in {path.suffix or 'nothing'}: must be a .json or .npz file")
    if not found:
        raise ValueError(f"partition.path={path} has no list: must have one for each client")
    check_names(f"partition.path={path}", tuple(found))
    return list(found), [_indices(path, name, each) for name, each in found.items()]


def _read_json(path: Path) -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"partition.path={path} is damaged: {error}; write it with json.dump") from error
    if isinstance(content, list):
        content = {str(number): each for number, each in enumerate(content)}
    if not isinstance(content, dict):
        raise ValueError(f"partition.path={path} must be an object of name -> list of indices, or a list of lists")
    return content


def _indices(path: Path, name: str, given: Any) -> NDArray[np.int64]:
    """One list, as an array."""
    plain = isinstance(given, list) and all(type(value) is int for value in given)
    array = np.array(given) if plain else given
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise ValueError(f"partition.path={path}: list {name} must be a list of whole numbers, at least one")
    return array.astype(np.int64)
