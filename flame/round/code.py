"""Which code runs, as a hash: the project's own files, and those of the user that a config's `_target_`s bring along.

Of the project every file counts that a run can reach, imported or not, so that all runs of one state of the code have
one hash; reports and replays are left out, which no run imports. Of the user count the files of the named parts and
what these import, found by reading their `import` statements: what is imported under a computed name is not seen.
Code that is installed (standard library, site-packages) is told by its version, not by this hash.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import logging
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
PARTS = ("flame", "attacks", "models", "train.py")
ASIDE = ("flame/report/", "flame/replay.py")  # behind a run in the order of the rooms
LENGTH = 12  # hexadecimal digits of what is recorded, as a run's identity has
STANDARD = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]


def code(config: Any) -> str:
    """Hash of what runs under a config, or a part of one, in plain dicts and lists."""
    own = users_code(targets(config))
    return short(IMPORTED, *(part for item in sorted(own.items()) for part in item)) if own else IMPORTED


def short(*parts: str | bytes) -> str:
    """A hash of these parts; where one ends and the next begins counts, too."""
    digests = [hashlib.sha256(part.encode() if isinstance(part, str) else part).digest() for part in parts]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:LENGTH]


def project(root: Path = ROOT) -> str:
    """Hash of the project's Python files, as they are on disk."""
    files = [path for part in PARTS for path in (root / part, *(root / part).rglob("*.py")) if path.is_file()]
    named = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    return short(*(part for item in sorted(named.items()) if not item[0].startswith(ASIDE) for part in item))


# Read while the process starts: an edit amid a sweep changes the files, not what was imported. The exception is what is
# imported later: a model that no run before needed, or a pool's new workers. Let models/ alone while a sweep runs.
IMPORTED = project()


def targets(config: Any) -> Iterator[str]:
    """Every `_target_` in it, and what those name that only fetch something (`hydra.utils.get_method`)."""
    if isinstance(config, dict):
        if isinstance(name := config.get("_target_"), str):
            yield name
            if name.startswith("hydra.utils.get_") and isinstance(fetched := config.get("path"), str):
                yield fetched
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from targets(item)


def users_code(names: Iterable[str]) -> dict[str, str]:
    """Module -> hash, of the modules in dotted names and of all that they import, as far as they are the user's own."""
    found: dict[str, str] = {}
    waiting, seen = [module for name in names for module in prefixes(name)], set[str]()
    while waiting:
        if (name := waiting.pop()) in seen:
            continue
        seen.add(name)
        if (content := own_content(name)) is not None:
            found[name] = short(content)
            waiting += imports(name, content)
    return found


@cache  # as it was when it was first imported: see above
def own_content(name: str) -> bytes | None:
    """The file of a module of the user's own; None of any other, and of what is no module."""
    spec = spec_of(name)
    if spec is None or not spec.origin or not spec.has_location or not is_own(Path(spec.origin)):
        return None
    try:
        return bytes(spec.loader.get_data(spec.origin))  # type: ignore[union-attr]  # from a zip file, too
    except (AttributeError, OSError) as error:
        log.warning("%s in %s is not part of the record's `code`: %r", name, spec.origin, error)
        return None


def spec_of(name: str) -> ModuleSpec | None:
    """Where a module is; its parents are not imported for that."""
    first, *others = name.split(".")
    try:
        spec = find_spec(first)
    except ValueError:  # made by hand, or a script that is running
        return None
    for part in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def is_own(path: Path) -> bool:
    """Whether a file belongs neither to the project, nor to Python, nor to an installed package."""
    path = path.resolve()
    if any(path.is_relative_to(ROOT / part) for part in PARTS):
        return False
    if {"site-packages", "dist-packages"} & set(path.parts) or any(map(path.is_relative_to, STANDARD)):
        return False
    entries = [Path(entry).resolve() for entry in sys.path]
    return not any(path in installed(entry) for entry in entries if path.is_relative_to(entry))


@cache
def installed(folder: Path) -> frozenset[Path]:
    """The files that pip has put there, as its `--target` can anywhere, by its own lists; a user's may lie beside."""
    lists = [record.read_text(encoding="utf-8") for record in folder.glob("*.dist-info/RECORD")]
    names = (row[0] for text in lists for row in csv.reader(text.splitlines()) if row)
    return frozenset(Path(os.path.normpath(folder / name)) for name in names)


def prefixes(name: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`: some of them are modules, the rest is in the last of these."""
    words = name.split(".")
    yield from (".".join(words[:end]) for end in range(1, len(words) + 1))


def imports(name: str, content: bytes) -> Iterator[str]:
    """What a module's `import` statements, wherever they stand, may name; nothing of a file that is no source."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled
        return
    spec = spec_of(name)
    package = (name if spec and spec.submodule_search_locations is not None else name.rpartition(".")[0]) or None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (module for alias in node.names for module in prefixes(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            try:
                base = resolve_name(base, package) if node.level else base
            except ImportError:  # beyond the top: the import itself will say so
                continue
            yield from (module for alias in node.names for module in prefixes(f"{base}.{alias.name}"))
