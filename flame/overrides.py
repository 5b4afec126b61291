"""Say what was probably meant when the command line names what does not exist or is not installed."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from flame.config import RunConfig

PLUGINS = {  # hydra/launcher=KEY needs hydra_plugins.VALUE
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
    "slurm": "hydra_submitit_launcher",
}


def placed(message: str, full_key: str) -> str:
    """What a part says of its own keys, as they are called inside another one: `defense.size`, `defense.rule.size`."""
    inside = re.match(r"(\w+)(\.rule|\.backdoor)+", full_key)
    if inside is None or not message.startswith(f"{inside[1]}."):
        return message
    return inside[0] + message.removeprefix(inside[1])


def explain(arguments: Sequence[str]) -> None:
    """Exit with a hint if the command line names a key or a launcher that is not there."""
    explain_unknown_keys(arguments)
    explain_missing_launcher(arguments)


def explain_unknown_keys(arguments: Sequence[str], conf: Path = Path(__file__).parent.parent / "conf") -> None:
    """Exit with a hint if an override's first word is neither a config group nor a run-level key.

    Hydra itself would say "Key 'defence' is not in struct".
    """
    known = {f.name for f in fields(RunConfig)} | {p.name for p in conf.iterdir() if p.is_dir()} | {"hydra"}
    for argument in arguments:
        found = re.match(r"([A-Za-z_]\w*)[\w./@]*=", argument)
        if found and found[1] not in known:
            close = difflib.get_close_matches(found[1], sorted(known), n=1)
            hint = f"did you mean {close[0]}=?" if close else f"known are: {', '.join(sorted(known))}"
            sys.exit(f"{argument}: there is no key {found[1]!r}; {hint}")


def explain_missing_launcher(arguments: Sequence[str], plugins: Mapping[str, str] = PLUGINS) -> None:
    """Exit with the package to install; Hydra itself would say "Error locating target"."""
    for plugin in (plugins.get(argument.removeprefix("hydra/launcher=")) for argument in arguments):
        if plugin and find_spec(f"hydra_plugins.{plugin}") is None:
            sys.exit(f"this launcher is not installed: pip install {plugin.replace('_', '-')}")
