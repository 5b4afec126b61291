"""Say what was probably meant when the command line names what does not exist or is not installed."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flame.run.config import RunConfig
from flame.run.place import CONF

PLUGINS = {  # hydra/launcher=KEY needs hydra_plugins.VALUE
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
    "slurm": "hydra_submitit_launcher",
}
BARE = re.compile(r"[\w/\-\\+.$%*@?|: ]*", re.ASCII)  # what Hydra reads without quotes
SYNTAX = re.compile(r"[,\[\]{}()'\"]")  # what means something to Hydra


def placed(message: str, full_key: str) -> str:
    """What a part says of its own keys, as they are called inside another one: `defense.size`, `defense.rule.size`."""
    if full_key.startswith("attack.") and message.startswith("client."):  # a recipe of the attack's own
        return re.sub(r"\.(optimizer|schedule)$", "", full_key) + message.removeprefix("client")
    if full_key.startswith("attack.") and message.startswith("defense."):  # a rule that the attacker supposes
        return full_key + message.removeprefix("defense")
    inside = re.match(r"(\w+)(\.rule|\.backdoor)+", full_key)
    if inside is None or not message.startswith(f"{inside[1]}."):
        return message
    return inside[0] + message.removeprefix(inside[1])


def nested(message: str, attack: Mapping[str, Any]) -> str:
    """The same for what an attack finds once it sees the data: `attack.trigger` may be inside a `backdoor`."""
    found = re.match(r"attack\.(\w+)", message)
    if found is None:
        return message
    inside = "attack"
    while "backdoor" in attack and str(attack.get(found[1], "${")).startswith("${"):  # not there, or taken from there
        inside, attack = f"{inside}.backdoor", attack["backdoor"]
    return message.replace(found[0], f"{inside}.{found[1]}")


def quoted(word: str) -> str:
    """An override with its value in quotes if Hydra could not read it without, such as umlauts; `~` is at home.

    None, as W&B's agent writes it, is null.
    """
    key, equals, value = word.partition("=")
    if value == "None":
        return f"{key}=null"
    if not equals or BARE.fullmatch(value) or SYNTAX.search(value):
        return word
    escaped = os.path.expanduser(value).replace("'", r"\'")
    return f"{key}='{escaped}'"


def explain_unknown_keys(arguments: Sequence[str], groups: Collection[str]) -> None:
    """ValueError with a hint if an override's first word is no group or run-level key, or its second none of its keys.

    Hydra takes `+defence=` without a word.
    """
    own = {f.name: f.default_factory for f in fields(RunConfig)}
    known = {*own, *groups, "hydra"}
    for argument in arguments:
        if re.match(r"~[A-Za-z_]", argument):
            raise ValueError(
                f"{argument}: nothing can be left out; a group has an option for that, such as attack=none"
            )
        found = re.match(r"\+{0,2}([A-Za-z_]\w*)(?:\.(\w+))?[\w./@]*=", argument)
        if found is None:
            continue
        if found[1] not in known:
            raise ValueError(misspelt(argument, found[1], known))
        part = own.get(found[1])
        if found[2] and is_dataclass(part) and found[2] not in (keys := {f.name for f in fields(part)}):
            raise ValueError(misspelt(argument, found[2], keys, prefix=f"{found[1]}."))


def misspelt(
    argument: str, name: str, known: Collection[str], kind: str = "key", prefix: str = "", of: str = ""
) -> str:
    """That there is no `name` among what is `known`, and which of it was probably meant."""
    mark = "=" if kind == "key" else ""
    begun = sorted(other for other in known if other.startswith(name))
    meant = [f"{prefix}{other}{mark}" for other in begun or difflib.get_close_matches(name, sorted(known), n=1)]
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"known are: {', '.join(sorted(known)) or 'none'}"
    return f"{argument}: there is no {kind} {name!r}{of and f' of {of}'}; {hint}"


def explain_missing_launcher(arguments: Sequence[str], plugins: Mapping[str, str] = PLUGINS) -> None:
    """ValueError with the package to install; Hydra itself would say "Error locating target"."""
    for plugin in (plugins.get(argument.removeprefix("hydra/launcher=")) for argument in arguments):
        if plugin and find_spec(f"hydra_plugins.{plugin}") is None:
            raise ValueError(f"this launcher is not installed: pip install {plugin.replace('_', '-')}")


def recipe_meant(arguments: Sequence[str], conf: Path = CONF) -> str | None:
    """How a recipe is started, if the command line names one otherwise: without its folder, or as an override.

    `recipe/question=...` would compose it into a run and leave out its sweep.
    """
    text = "\0".join(arguments)
    named = re.search(r"(?:^|\0)(?:--config-name|-cn)[=\0]([^\0]+)", text)
    given = re.search(r"(?:^|\0)(\+*recipe(?:/\w+)?=)([^\0]*)", text)
    if not given and (not named or (conf / f"{named[1]}.yaml").exists() or re.search(r"--config-[dp]|-c[dp]\b", text)):
        return None
    wrong, name = (
        (given[0].strip("\0"), given[2]) if given else (f"--config-name {named[1]}", named[1]) if named else ("", "")
    )
    known = {path.stem: path.relative_to(conf).with_suffix("").as_posix() for path in conf.glob("recipe/*/*.yaml")}
    meant = difflib.get_close_matches(name.rpartition("/")[2], known, n=1)
    hint = f"did you mean --config-name {known[meant[0]]}?" if meant else "see `ls conf/recipe/*`"
    return f"{wrong}: a recipe is started with --config-name recipe/THEME/NAME; {hint}"
