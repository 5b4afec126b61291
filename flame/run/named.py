"""A defense by its name, without Hydra: conf/defense/NAME.yaml composed by PyYAML alone.

What is read is what `train.py` reads (a test holds that, for every file): a defaults list with options of the same
group, `/group@package: option` and `_self_`, and keys that are merged in its order. Interpolations are left as they
are; what they refer to is known to a run only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml  # type: ignore[import-untyped]

from flame.defenses.base import Defense
from flame.run.place import CONF
from flame.run.signature import check_signature, is_node, located

Node = dict[str, Any]

GROUP = "defense"


def named_defense(name: str, options: Mapping[str, Any]) -> Defense:
    """The defense of that name with some of its YAML's keys set otherwise.

    An option is a value, a mapping of options for a part (`cluster={"min_samples": 2}`), or the name of another part
    (`rule="krum"`). A number for `noise` is a level, whatever the rule calls it: see `with_noise`.

    Raises:
        ValueError: the name, an option or its value is none that there is.
    """
    level = options.get("noise")
    rest = {key: value for key, value in options.items() if key != "noise" or is_node(level)}
    node = with_options(composed(name), rest)
    if "noise" not in rest and level is not None:
        node = with_noise(node, level, name)
    check_known(node, GROUP)
    check_signature(GROUP, node)
    made: Defense = instantiated(node)
    return made


def composed(name: str, group: str = GROUP) -> Node:
    """The content of an option, with all that its defaults list names."""
    own = dict(_content(group, name))
    node: Node = {}
    for entry in own.pop("defaults", ["_self_"]):
        if entry == "_self_":
            node = merged(node, own)
        elif isinstance(entry, str):
            node = merged(node, composed(entry, group))
        else:
            ((place, option),) = entry.items()
            other, _, package = place.partition("@")
            node = merged(node, {package: composed(option, other.lstrip("/"))})
    return node


@cache
def _content(group: str, name: str) -> Node:
    known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if name not in known:  # a name with a path in it is none, either
        meant = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {meant[0]}?" if meant else f"must be one of {', '.join(known)}, or a callable of your own"
        raise ValueError(f"{group}={name} is unknown: {hint}")
    content: Node = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return content


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Node:
    """`base` with what `over` sets, key by key at any depth."""
    node = dict(base)
    for key, value in over.items():
        node[key] = merged(node[key], value) if is_node(value) and is_node(node.get(key)) else value
    return node


def with_options(node: Node, options: Mapping[str, Any]) -> Node:
    """A part whose keys are set as the caller wants; a word in the place of a part names another one of the group."""
    found = dict(node)
    for key, value in options.items():
        inner = node.get(key)
        if is_node(inner) and isinstance(value, str):
            value = composed(value)
        elif is_node(inner) and is_node(value):
            value = with_options(dict(inner), value)
        found[key] = value
    return found


def with_noise(node: Node, level: Any, name: str) -> Node:
    """The rule at another level of noise: lambda of a FLAME, `noise_std` of a rule that has one, that of an inner rule.

    Raises:
        ValueError: the rule adds no noise, and some is wanted.
    """
    if is_node(node.get("noise")):
        return with_options(node, {"noise": {"factor": level, "epsilon": None, "delta": None}})
    if "noise_std" in node:
        return {**node, "noise_std": level}
    if is_node(node.get("rule")):
        return {**node, "rule": with_noise(dict(node["rule"]), level, name)}
    if level != 0:
        raise ValueError(f"noise={level} is out of range: defense={name} adds no noise, so it must be 0, or left out")
    return node


def check_known(node: Any, place: str) -> None:
    """A ValueError if a value is known to a run only."""
    if isinstance(node, str) and "${" in node:
        raise ValueError(f"{place}={node} is known to a run only: give {place.removeprefix(f'{GROUP}.')} a value here")
    for key, value in node.items() if is_node(node) else ():
        check_known(value, f"{place}.{key}")


def instantiated(node: Any) -> Any:
    """A node's `_target_` called with its keys, inner nodes first; anything else as it is."""
    if not is_node(node):
        return node
    values = {key: instantiated(value) for key, value in node.items() if key != "_target_"}
    return located(GROUP, node["_target_"])(**values) if "_target_" in node else values
