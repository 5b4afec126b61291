"""For the tests: Hydra does its work once in a process, reading a YAML, and merging the same ones into a config.

A composition reads 23 files; a command composes three times, and a sweep once more for each job, which differ in a
value or two. Hydra 1.3 starts from the text every time, for 0.14 s. What is remembered is a copy. A file is known by
its path, time and size, so one that was edited is read anew.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Hashable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.default_element import InputDefault, ResultDefault

MOST = 512  # results of a kind that are kept; one is up to 30 kB


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


def _once(work: Callable[..., Any], key: Callable[..., Hashable]) -> Callable[..., Any]:
    """`work`, done once for each key; where that is None, each time."""
    done: dict[Hashable, bytes] = {}

    @wraps(work)
    def remembered(*args: Any, **named: Any) -> Any:
        if (asked := key(*args, **named)) is None:
            return work(*args, **named)
        if asked not in done:
            result = work(*args, **named)
            if len(done) == MOST:
                done.clear()
            if (written := _pickled(result)) is None:
                return result
            done[asked] = written
        return pickle.loads(done[asked])

    return remembered


def _of_file(repository: IConfigRepository, config_path: str) -> Hashable:
    """Where a config is read from, and when that was last written; None if it is no file."""
    source = next((each for each in repository.get_sources() if each.is_config(config_path)), None)
    if source is None or source.scheme() not in ("file", "pkg"):
        return None
    if source.scheme() == "pkg":  # installed
        return source.path, config_path
    path = Path(source.path, source._normalize_file_name(config_path)).resolve()
    now = path.stat()
    return source.provider, source.path, config_path, str(path), now.st_mtime_ns, now.st_size


def _of_files(loader: ConfigLoaderImpl, defaults: Sequence[ResultDefault], repo: IConfigRepository) -> Hashable:
    """Hash of what is merged, in its order, and of where each goes; None if a class of that name is merged, too."""
    schemas = repo.get_schema_source()
    if any(schemas.is_config(str(d.config_path)) and not _read(repo, d).is_schema_source for d in defaults):
        return None
    written = _pickled([(vars(d), _read(repo, d)) for d in defaults])
    return written and hashlib.sha256(written).digest()


def _pickled(value: Any) -> bytes | None:
    """None if there is a plugin's class in it which Hydra, looking for plugins, has imported twice."""
    try:
        return pickle.dumps(value)
    except pickle.PicklingError:
        return None


def _read(repo: IConfigRepository, default: ResultDefault) -> Any:
    return repo.load_config(str(default.config_path))
