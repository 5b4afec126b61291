"""`python train.py --again RUN [KEY=VALUE ...]`: run once more what a run folder records, whole, from its config.yaml.

Parts and values are those of the folder, whatever conf/ says by now; parts of the user's own need their module on
PYTHONPATH and no YAML. What follows is Hydra's, as always: `seed=1`, `tracker=files`, `-m seed=1,2`. The new run gets a
new folder in paths.runs (`resume=false`, unless the command line says otherwise). Data are looked for where they were
or, if that is no folder here, where any run looks. What followed from another value (an attack's rate from client.lr)
stays as it was when that is changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore

from flame.run.compose import unread
from flame.run.config import AS_EVER
from flame.run.place import CONF

COMMAND = "FLAME_COMMAND"  # environment variable: the command line, for jobs in other processes to record
ORIGINAL = "FLAME_AGAIN"  # likewise: the run that is repeated
AGAIN = "again"  # of the config that is made of a run folder
RECORDED = ("config.yaml", "choices.json")


def without_again(argv: Sequence[str]) -> list[str]:
    """The arguments, with the config of a run in the place of `--again RUN`; notes the command line for the record."""
    os.environ[COMMAND] = shlex.join(["python", *argv])
    os.environ.pop(ORIGINAL, None)
    words = list(argv[1:])
    refuse_shadowed(words)
    given = next((i for i, word in enumerate(words) if re.fullmatch(r"--again(=.*)?", word)), None)
    if given is None:
        return words
    _, mark, folder = words.pop(given).partition("=")
    if not mark and given == len(words):
        sys.exit("--again: which run? Give its folder, as in `python train.py --again RUN`")
    folder = folder if mark else words.pop(given)
    if taken := [word for word in words if re.match(r"-(cn|cp)\b|--config-(name|path)\b", word)]:
        sys.exit(f"{taken[0]}: --again has a config already, that of the run")
    repeat(Path(folder).expanduser(), [word.partition("=")[0] for word in words if "=" in word])
    return ["--config-name", AGAIN, *words]


def repeat(folder: Path, keys: Collection[str] = ()) -> None:
    """Make the config `again` of a run folder; exits with a sentence if it is none.

    `keys` are those that the command line sets: a part among them (`tracker=files`) is chosen anew, from conf/.
    """
    try:
        texts = [(folder / name).read_text() for name in RECORDED]
        config, choices = yaml.safe_load(texts[0]), json.loads(texts[1])
        if not isinstance(config, dict) or not isinstance(choices, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        sys.exit(f"--again {folder}: {reason}; must be the folder of a run, which has {' and '.join(RECORDED)}")
    paths = config.pop("paths", {})
    parts = [key for key in keys if key in config and (CONF / key).is_dir()]
    data = paths.get("data")
    found = {"data": data} if data and Path(data).expanduser().is_dir() else {}
    kept = {key: value if key == "tracker" else portable(value, paths) for key, value in config.items()}
    node = {
        "defaults": ["schema", {"paths": "default"}, *({part: choices.get(part)} for part in parts), "_self_"],
        **{key: value for key, value in AS_EVER.items() if key not in config},
        **{key: value for key, value in kept.items() if key not in parts},
        "paths": found,
        "resume": False,
        "hydra": {**yaml.safe_load((CONF / "config.yaml").read_text())["hydra"], "runtime": {"choices": choices}},
    }
    ConfigStore.instance().store(name=AGAIN, node=node)
    os.environ[ORIGINAL] = str(folder.absolute())


def portable(value: Any, paths: Mapping[str, str]) -> Any:
    """The same settings, with `${paths.data}` again where it was filled in: other machines have other folders."""
    if isinstance(value, dict):
        followed = {"rounds": "${rounds}"} if "warmup" in value else {}  # a schedule is as long as the run
        return {key: portable(item, paths) for key, item in value.items()} | followed
    if isinstance(value, list):
        return [portable(item, paths) for item in value]
    for name, path in paths.items():
        if isinstance(value, str) and (value == path or value.startswith(f"{path}/")):
            return f"${{paths.{name}}}{value.removeprefix(path)}"
    return value


def refuse_shadowed(words: Sequence[str]) -> None:
    """Exit if the command line names a folder of configs that is a run, or has files that Hydra would not read."""
    parser = get_args_parser()
    parser.add_argument("--again", nargs="?")
    given, others = parser.parse_known_args(words)
    searched = " ".join(word for word in [*given.overrides, *others] if "hydra.searchpath" in word)
    added = [Path(name) for name in (given.config_dir, *re.findall(r"file://([^\s,\]'\"]+)", searched)) if name]
    for folder in (*added, *([CONF.parent / given.config_path] if given.config_path else [])):
        if (folder / RECORDED[1]).is_file():
            sys.exit(f"{folder} is a run and no folder of configs: `python train.py --again {folder}` repeats it")
    for folder in added:
        if said := unread(folder):
            sys.exit(said)
