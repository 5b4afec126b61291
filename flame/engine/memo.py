"""What a benign client sends is a function of the global model, the round and the client: a sweep need not train it
twice.

Runs that share seed, data, model and recipe meet the same global model in round 0, and again in every round for as long
as their servers decide alike: FLAME under one attack and under another, while it rejects all attackers of both. With
`memo.dir` they share a folder in which a round's benign updates lie under a hash of all that they follow from, the
code and the kind of processor and GPU included, so that what is recalled is, bit for bit, what would have been trained.
Compromised clients are always trained, and everything is evaluated. Files are written whole and sealed with a hash, so
runs may go on at once and a flipped bit is not recalled; the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flame.engine.base import Engine
from flame.engine.workbench import Task
from flame.round.checkpoint import RunFolderError, sealed, unsealed, write_atomically
from flame.round.device import describe_processor, kind_of_device
from flame.round.evaluate import Evaluation
from flame.round.types import Cohort, Notes, ServerState, Updates, digest

log = logging.getLogger(__name__)
GB = 1e9
STALE = 3600.0  # seconds without a write, after which nobody writes a file any more
KEPT = ("rows", "counters", "losses")  # fields of Updates


@dataclass(frozen=True)
class Memo:
    """Where benign updates are kept, and how much of them."""

    dir: str | None  # None: nothing is
    gb: float  # 10^9 bytes from which on nothing more is written, >= 0; runs side by side may exceed it by a file each

    def __post_init__(self) -> None:
        if not self.gb >= 0:
            raise ValueError(f"memo.gb={self.gb} is out of range: must be >= 0, in GB (0: read what is there)")

    def around(self, start: Callable[[Task], Engine], code: str) -> Callable[[Task], Engine]:
        """An engine's constructor, with a memory if there is a folder for it; ValueError if it cannot be made.

        `code` is the hash of all code that benign training runs: a change of any line forgets everything.
        """
        if self.dir is None:
            return start
        folder = Path(self.dir).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)  # now, before the run writes anything
            tidy(folder)
        except OSError as error:
            raise ValueError(f"memo.dir={folder}: {error.strerror}; must be a folder, or null for none") from error
        return lambda task: Remembering(start(task), task, folder, self.gb, code)


class Remembering:
    """An engine that asks another one for those clients only that the folder does not know."""

    def __init__(self, engine: Engine, task: Task, folder: Path, gb: float, code: str) -> None:
        self._engine, self._task, self._folder = engine, task, folder
        self.aggregate_on = engine.aggregate_on
        self._key = key(task, code)
        self._room = gb * GB  # bytes that the folder may hold

    def train(self, state: ServerState, cohort: Cohort) -> tuple[Updates, Sequence[Notes]]:
        """See `Engine.train`."""
        rate = self._task.training.schedule(state.round)  # of this round alone: runs of other lengths share it, too
        address = hashlib.sha256(f"{self._key} {digest(state)} {state.round} {rate}".encode()).hexdigest()
        path = self._folder / f"{address}.safetensors"
        known = recall(path)
        places = {client: place for place, client in enumerate(known["ids"].tolist())} if known else {}
        ids = cohort.ids.tolist()
        found = torch.tensor([client in places for client in ids]) & ~cohort.compromised
        if not bool(found.any()):
            updates, notes = self._engine.train(state, cohort)
        else:
            updates, notes = self._complete(state, cohort, found, known, torch.tensor([places.get(c, 0) for c in ids]))
        if self._room and bool((~found & ~cohort.compromised).any()):
            self._keep(path, updates, ~cohort.compromised)
        return updates, notes

    def _complete(
        self, state: ServerState, cohort: Cohort, found: Tensor, known: Mapping[str, Tensor], places: Tensor
    ) -> tuple[Updates, Sequence[Notes]]:
        """The cohort's updates: those `found` [n] bool from their `places` [n] in `known`, the others trained."""
        ids, n = cohort.ids, len(cohort.ids)
        rows, counters = self._task.layout.zeros(n)
        losses = torch.zeros(n, dtype=torch.float64)
        notes: list[Notes] = [{} for _ in range(n)]
        sources = [(found, {name: known[name][places[found]] for name in KEPT})]
        if not bool(found.all()):
            trained, noted = self._engine.train(state, Cohort(ids[~found], cohort.compromised[~found]))
            sources.append((~found, {name: getattr(trained, name) for name in KEPT}))
            for place, note in zip((~found).nonzero().flatten().tolist(), noted, strict=True):
                notes[place] = note
        for where, parts in sources:
            rows[where], counters[where], losses[where] = (parts[name] for name in KEPT)
        return self._task.updates(state, ids, rows, counters, losses), notes

    def _keep(self, path: Path, updates: Updates, benign: Tensor) -> None:
        """Write them by way of a name that no other run has: runs side by side keep the same round at once."""
        content = sealed({"ids": updates.ids[benign], **{name: getattr(updates, name)[benign] for name in KEPT}}, {})
        folder = path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted
            used = sum(file.stat().st_size for file in folder.glob("*.safetensors"))  # the other runs' files too
            if used + len(content) <= self._room:
                write_atomically(path, content, own=f".{secrets.token_hex(8)}")
        except FileNotFoundError:
            log.debug("memo: %s was deleted while this round was being kept", folder)
        except OSError as error:  # a full disk, say: the run itself may write elsewhere
            log.warning("memo: %s cannot be written (%s); this run keeps no more updates", folder, error.strerror)
            self._room = 0.0

    def evaluate(self, state: ServerState) -> Mapping[str, Evaluation]:
        """See `Engine.evaluate`."""
        return self._engine.evaluate(state)

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()


def tidy(folder: Path) -> None:
    """Remove what killed runs left half written; a run that still writes there after all keeps one round less."""
    for path in folder.glob(f".{'[0-9a-f]' * 64}.*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()
        except OSError as error:  # another run has, or it is somebody else's, or nothing can be written here
            log.debug("memo: %s stays: %s", path, error.strerror)


def recall(path: Path) -> dict[str, Tensor]:
    """What a file holds; nothing if it is not there, or damaged, in which case it will be written again."""
    try:
        return unsealed(path)[0]
    except RunFolderError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            log.warning("memo: %s; its clients are trained again", error)
        return {}


def key(task: Task, code: str) -> str:
    """Hash of all that benign training follows from, beside the global model, the round, its rate and the client."""
    h = hashlib.sha256()
    for tensor in (task.train.x, task.train.y, task.shards.index, task.shards.offsets):
        h.update(tensor.contiguous().numpy().data)
    h.update(task.normalise(task.train.x[:2]).contiguous().numpy().data)  # stands for mean and std
    device = kind_of_device(task.device)  # several machines may share a folder
    machine = (device, task.precision, torch.__version__, describe_processor(), code)
    parts = (task.model, plain_attributes(task.model), task.layout, task.training, task.augment)
    facts = (*parts, task.seed, *machine)
    h.update("\n".join(map(repr, facts)).encode())
    state = task.model.state_dict()
    for name, buffer in task.model.named_buffers():
        if name not in state:
            h.update(buffer.contiguous().flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()


def plain_attributes(model: nn.Module) -> list[tuple[str, str, object]]:
    """Numbers and words that a module keeps beside its tensors, such as a rate for `F.dropout`; `repr` hides them."""
    kinds = bool, int, float, str
    return [
        (name, key, value)
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, kinds) or (isinstance(value, tuple | list) and all(isinstance(v, kinds) for v in value))
    ]
