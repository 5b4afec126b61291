"""Where a run's numbers come from: code, data, initial weights and machine, recorded before its first round.

A run's identity, the hash that names its folder, is of the config alone, for the folder has its name before there are
data. What a config cannot say (the content of files, the code behind a `_target_`) is recorded in the folder as hashes
instead, and compared when the run goes on or is skipped. A commit is a name under which others find code; the hash
`code` is of the files themselves.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from flame.geometry.layout import StateLayout
from flame.round.checkpoint import RunFolderError
from flame.round.code import LENGTH, PARTS, ROOT, own_content
from flame.round.device import describe_device, describe_processor
from flame.round.types import ServerState, digest
from flame.run.again import COMMAND
from flame.run.build import data_digest, initial_model, load
from flame.run.folder import finished, read_json
from flame.run.trackers.files import ENVIRONMENT, SUMMARY

log = logging.getLogger(__name__)
PACKAGES = ("torch", "torchvision", "hdbscan", "numpy", "scipy", "hydra-core", "omegaconf", "wandb", "scikit-learn")
ORIGIN = {"code": "code", "data": "data", "initial": "initial weights"}  # key -> in words
SAME_BITS = ("engine_workers", "cores", "command", "commit", "dirty")  # follow; what a commit names, `code` tells
WEIGHTS = ("model", "start", "seed")  # what the initial ones follow from, and the data set if they are from a file
REMEDY = "resume=force goes on all the same, resume=false starts in a new folder"


def environment(
    threads: int, engine_workers: int, device: str, targets: Iterable[str] = (), own_bits: str = ""
) -> dict[str, Any]:
    """Commit, versions and machine: what a number, or the time it took, may depend on beside config and origin.

    Versions also of installed packages that `targets`, the dotted names of a run's parts, are in. `own_bits` says how
    the engine rounds otherwise than others.
    """
    commit, dirty = source()
    return {
        "command": os.environ.get(COMMAND) or shlex.join(["python", *sys.argv]),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*PACKAGES, *_packages(targets))},
        "threads": threads,
        "engine_workers": engine_workers,
        "device": describe_device(device) + own_bits,
        "processor": describe_processor(),
        "cores": os.cpu_count(),
    }


@cache
def source(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """Commit, and whether the code differs from it; asked once, since a process goes on with what it has imported.

    None, with a warning, unless the project is the whole of a repository: the commit of one around it says nothing.
    """
    top, reason = _git(root, "rev-parse", "--show-toplevel")
    if top is not None and Path(top).resolve() != root:
        top, reason = None, f"it is a part of the repository {top}"
    if top is not None:
        commit, reason = _git(root, "rev-parse", "--verify", "HEAD")
        changed, _ = _git(root, "status", "--porcelain", "--untracked-files=normal", "--", *PARTS, "conf")
        if commit is not None:
            return commit, None if changed is None else bool(changed)
    log.warning("of this code no commit is known (%s): a run's record has its hash alone", reason)
    return None, None


def origin_of(config: Mapping[str, Any], code: str) -> dict[str, str]:
    """Hashes of the code, the data and the initial weights that a resolved config means now; the run is not built.

    Each data set and each start is looked at once in a process: a sweep skips a thousand finished runs in no time.

    Raises:
        ConfigError: the data or the model cannot be made.
    """
    dataset = {key: value if key != "download" else False for key, value in config["dataset"].items()}
    return {
        "code": code,
        "data": data_digest(config, _data(json.dumps(dataset)))[:LENGTH],
        "initial": _initial(json.dumps({**{part: config[part] for part in WEIGHTS}, "dataset": dataset})),
    }


def initial_digest(state: ServerState) -> str:
    """Hash of the bits that the first round starts from."""
    return digest(state)[:LENGTH]


def differences(before: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """`code 1a2b, now 3c4d; data ...`: what a run was last made of, where that is something else now; else empty."""
    return "; ".join(
        f"{words} {last(before, key) or 'not recorded'}, now {now[key]}"
        for key, words in ORIGIN.items()
        if last(before, key) != now[key]
    )


def last(recorded: Mapping[str, Any], key: str) -> str | None:
    """What the newest rounds of a run were made of; see `joined`."""
    found = recorded.get(key)
    return None if found is None else str(found).rpartition("+")[2]


def joined(before: Mapping[str, Any], now: Mapping[str, str]) -> dict[str, str]:
    """The origin of a whole run: `1a2b+3c4d` where a part of it is of one code and a part of another."""
    return {
        key: f"{before.get(key) or '?'}{'' if last(before, key) == value else f'+{value}'}"
        for key, value in now.items()
    }


def going_on(folder: Path, before: Mapping[str, Any], now: Mapping[str, str], resume: bool | str) -> dict[str, str]:
    """The origin of a run that goes on in this folder; RunFolderError unless it is what it was, or is forced to."""
    if resume != "force" and (changed := differences(before, now)):
        commit = f" (commit {before['commit']})" if before.get("commit") else ""
        raise RunFolderError(f"{folder} was begun with other files{commit}: {changed}", REMEDY)
    return joined(before, now)


def repetition(original: Path, folder: Path) -> str:
    """Whether the finished run in `folder` has ended as that of its config which it repeats; empty if that has not."""
    try:
        if not finished(original):
            return ""
        first, second = (read_json(each / SUMMARY) for each in (original, folder))
        then, now = (read_json(each / ENVIRONMENT) for each in (original, folder))
    except (RunFolderError, OSError) as error:  # the new run is whole all the same
        return f"{original} cannot be compared: {error}"
    if first.get("identity") != second.get("identity"):
        return ""
    if first.get("state_sha256") == second.get("state_sha256"):
        return f"the final model is that of {original}, bit for bit"
    changed = sorted(key for key in now.keys() - {*SAME_BITS} if then.get(key) != now[key])
    return f"the final model is NOT that of {original}; since then changed: {', '.join(changed) or 'nothing on record'}"


@cache
def _data(node: str) -> str:
    return load({"dataset": json.loads(node)}).digest()


@cache
def _initial(nodes: str) -> str:
    model = initial_model(json.loads(nodes))
    return initial_digest(ServerState.of(StateLayout.of(model), model))


def _packages(targets: Iterable[str]) -> list[str]:
    """The installed packages, beyond those that every run needs, that dotted names are in."""
    tops = {name.partition(".")[0] for name in targets} - {*PARTS, *PACKAGES}
    foreign = {top for top in tops if own_content(top) is None}
    if not foreign:
        return []
    known = packages_distributions()
    return sorted({package for top in foreign for package in known.get(top, ())} - {*PACKAGES})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> tuple[str | None, str]:
    """What git says of the project's folder, whoever owns it and whatever GIT_DIR is; or None, and the reason."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    except OSError as error:
        return None, f"git: {error.strerror}"
    said = done.stderr.strip().partition("\n")[0]
    return (done.stdout.strip(), "") if done.returncode == 0 else (None, said)
