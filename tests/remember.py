"""For the tests: what is the same each time is done once in a process. Of Hydra: reading a YAML, and merging the same.

A composition reads 23 files; a command composes three times, and a sweep once more for each job, which differ in a
value or two. Hydra 1.3 starts from the text every time, for 0.14 s. What is remembered is a copy. A file is known by
its path, time and size, so one that was edited is read anew. Of a build: that a model of ours trains twice to the same
bits, from the same state by the same recipe, on the same images.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from functools import partial, wraps
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.plugins.config_source import ConfigSource
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from flame.engine.workbench import Task
    from flame.round.types import ServerState

MOST = 2048  # results of a kind that are kept: more than the suite asks for, of some 20 kB
INSTALLED: dict[tuple[str, str], bool] = {}  # package and config -> whether it is there


def remember() -> None:
    """From now on, in this process; harmless when called again."""
    if hasattr(ConfigRepository.load_config, "__wrapped__"):
        return
    read, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    choices = defaults_list._create_interpolation_map

    def needed(overrides: Any, defaults: Sequence[InputDefault], self_added: bool) -> Any:
        """All choices so far: a fifth of a composition, and read only where an option is written as `${...}`."""
        return choices(overrides, [*defaults], self_added) if any(d.is_interpolation() for d in defaults) else None

    ConfigRepository.load_config = _once(read, _of_file)  # type: ignore[method-assign]
    ConfigLoaderImpl._compose_config_from_defaults_list = _once(merge, _of_files)  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = needed  # type: ignore[assignment]
    ConfigStore.__deepcopy__ = _itself  # type: ignore[attr-defined]  # copied twice for a composition, changed by none


def remember_checks() -> None:
    """From now on, in this process; what fails is tried each time, and so is a model that a test brings."""
    import flame.run.build as run
    from flame.run.fit import TRIED

    check, passed = run.check_repeatable, set[tuple[str, ...]]()

    def remembered(task: Task, state: ServerState) -> None:
        kind, few = type(task.model), [part[:TRIED] for part in (task.train, task.eval_sets["clean"])]
        bits = sha256(b"".join(t.numpy().tobytes() for t in (state.row, state.counters, *(p.x for p in few))))
        words = (
            task.training,
            task.normalise,
            task.precision,
            task.augment,
            task.device,
            task.seed,
            *(p.y for p in few),
        )
        asked = (repr(task.model), bits.hexdigest(), *map(repr, words))
        if not kind.__module__.startswith("models.") or asked not in passed:
            check(task, state)
            passed.add(asked)

    run.check_repeatable = remembered


def _itself(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:
    return store


def _once(work: Callable[..., Any], key: Callable[..., Hashable]) -> Callable[..., Any]:
    """`work`, done once for each key; where that is None, each time."""
    done: dict[Hashable, Callable[[], Any]] = {}

    @wraps(work)
    def remembered(*args: Any, **named: Any) -> Any:
        if (asked := key(*args, **named)) is None:
            return work(*args, **named)
        if asked not in done:
            if len(done) == MOST:
                done.clear()
            done[asked] = _copies(work(*args, **named))
        return done[asked]()

    return remembered


def _copies(made: Any) -> Callable[[], Any]:
    """A function that copies, for a quarter of what `deepcopy` takes where all classes are known by their names."""
    try:
        return partial(pickle.loads, pickle.dumps(made, pickle.HIGHEST_PROTOCOL))
    except pickle.PicklingError:  # a launcher's own settings: Hydra has loaded their module twice
        return partial(deepcopy, made)


def _of_file(repository: IConfigRepository, config_path: str) -> Hashable:
    """Where a config is read from, and when that was last written; None if it is no file."""
    source = next((each for each in repository.get_sources() if _has(each, config_path)), None)
    if source is None or source.scheme() not in ("file", "pkg"):
        return None
    if source.scheme() == "pkg":  # installed
        return source.path, config_path
    path = os.path.abspath(os.path.join(source.path, source._normalize_file_name(config_path)))
    now = os.stat(path)
    return source.provider, source.path, config_path, path, now.st_mtime_ns, now.st_ino, now.st_size


def _has(source: ConfigSource, config_path: str) -> bool:
    """Whether the config is there; of what is installed, as it was."""
    if source.scheme() != "pkg":
        return source.is_config(config_path)
    if (asked := (source.path, config_path)) not in INSTALLED:
        INSTALLED[asked] = source.is_config(config_path)
    return INSTALLED[asked]


def _of_files(loader: ConfigLoaderImpl, defaults: Sequence[ResultDefault], repo: IConfigRepository) -> Hashable:
    """What is merged, in its order, and where each goes; None if something of it is neither a file nor a dataclass."""
    parts = [(*vars(d).values(), _of_file(repo, str(d.config_path)) or _of_class(repo, d)) for d in defaults]
    return None if any(part[-1] is None for part in parts) else tuple(parts)


def _of_class(repo: IConfigRepository, default: ResultDefault) -> type | None:
    """The dataclass that a registered config is made of."""
    read = repo.load_config(str(default.config_path))
    made = OmegaConf.get_type(read.config) if read else None
    return made if is_dataclass(made) else None
