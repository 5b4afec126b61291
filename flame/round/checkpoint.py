"""A checkpoint is the whole ServerState, sealed with a hash, written atomically, read without unpickling (safetensors).

Its metadata holds a sha256 over everything else in it, so that a flipped bit is a damaged file and not another model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from flame.geometry.layout import StateLayout
from flame.round.types import ServerState

log = logging.getLogger(__name__)
KEPT = 2  # newest checkpoints of a run
PATTERN = "round_*.safetensors"
NAME = re.compile(r"round_(\d+)\.safetensors")


class RunFolderError(ValueError):
    """A file of a run folder is damaged or belongs to something else: `args` are which and why, then what to do."""

    def __str__(self) -> str:
        return "; ".join(self.args)


def write_checkpoint(folder: Path, state: ServerState, identity: str) -> Path:
    """Write `folder/round_<r>.safetensors`, with r the next round's number; a crash leaves the older ones whole."""
    folder.mkdir(exist_ok=True)
    named = {"row": state.row, "counters": state.counters} | {f"memory/{k}": v for k, v in state.memory.items()}
    path = folder / f"round_{state.round:06d}.safetensors"
    write_atomically(path, sealed(named, {"round": state.round, "identity": identity}))
    _tidy(folder, path)
    return path


def latest_checkpoint(folder: Path, layout: StateLayout, identity: str) -> ServerState | None:
    """The newest checkpoint that is whole; None if there is none at all.

    Raises:
        RunFolderError: it belongs to another config, or to a model of another size.
        OSError: there are checkpoints and none of them can be read.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            state, owner = read_checkpoint(path)
        except RunFolderError as error:
            log.warning("%s; trying the one before", error)
            damaged.append(str(error))
            continue
        if owner != identity:
            raise RunFolderError(f"{path} belongs to the config {owner}, not to {identity}", "choose another folder")
        if state.row.shape != (layout.size,) or state.counters.shape != (layout.counter_size,):
            raise RunFolderError(
                f"{path} does not fit the model: {tuple(state.row.shape)} instead of ({layout.size},)",
                "resume=false starts in a new folder",
            )
        return state
    if damaged:
        raise OSError("no checkpoint can be read; remove them to start anew: " + "; ".join(damaged))
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The files of a folder by their round, a number: as text, the millionth comes before the second."""
    named = ((NAME.fullmatch(path.name), path) for path in folder.glob(PATTERN))
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def read_checkpoint(path: Path) -> tuple[ServerState, str]:
    """The state in one file, and the identity of the run that wrote it; RunFolderError as from `unsealed`."""
    tensors, facts = unsealed(path, ("round", "identity"))
    memory = {key.removeprefix("memory/"): t for key, t in tensors.items() if key.startswith("memory/")}
    return ServerState(tensors["row"], tensors["counters"], facts["round"], memory), facts["identity"]


def sealed(named: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The content of a file of these tensors and facts, sealed."""
    # copies: a memory may be a view of the row, and safetensors refuses tensors that share storage
    tensors = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in named.items()}
    # one key, because safetensors writes several in no fixed order: equal states give equal files
    return save(tensors, {"run": json.dumps({**facts, "sha256": seal(tensors, facts)})})


def unsealed(path: Path, known: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a sealed file holds: its tensors, and those facts that are `known` by name.

    RunFolderError if the content is not, bit for bit, what was written. Nothing in the file is executed, and nothing
    is allocated that the file does not hold.
    """
    try:
        with safe_open(path, framework="pt") as file:
            run = json.loads(file.metadata()["run"])
            # copies: aligned as torch aligns, and independent of the file
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118, it is not a mapping
        facts = {key: run[key] for key in known}
        whole = run["sha256"] == seal(tensors, facts)
    except Exception as error:  # a damaged header makes the parser raise nearly anything
        raise RunFolderError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not whole:
        raise RunFolderError(f"{path} is damaged: its content is not what was written")
    return tensors, facts


def seal(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """sha256 over the facts and the names, types, shapes and bits of contiguous tensors."""
    h = hashlib.sha256(repr(sorted(facts.items())).encode())
    for name, t in sorted(tensors.items()):
        h.update(repr((name, str(t.dtype), tuple(t.shape))).encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def write_atomically(path: Path, content: bytes, own: str = "") -> None:
    """Replace `path` in one step: written beside it, flushed to disk, renamed.

    A killed process leaves the file beside it, which the next one writes anew. Where several processes may write `path`
    at once, `own` tells their files apart.
    """
    temporary = path.with_name(f".{path.name}{own}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, half a file is space that nobody else gets
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def _tidy(folder: Path, newest: Path) -> None:
    """Keep the last two; what claims to be newer is damaged, or the run would not have gone back behind it."""
    found = checkpoints(folder)
    kept = found[: found.index(newest) + 1][-KEPT:]
    for path in [*(path for path in found if path not in kept), *folder.glob(f".{PATTERN}.tmp")]:
        path.unlink(missing_ok=True)
