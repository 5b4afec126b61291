"""What a config group may hold is what its `_target_` takes: names and types are checked before anything is made."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pkgutil import resolve_name
from types import UnionType
from typing import Any, TypeGuard, Union, get_args, get_origin, get_type_hints

PLAIN_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
PLAIN = {*PLAIN_NAMES, type(None)}


def check_signature(key: str, node: Any) -> None:
    """A ValueError unless every key of the node is a parameter of its `_target_`, and none is missing.

    Nested nodes likewise. A node is a composed config or plain; a target with **kwargs takes any key.
    """
    if not is_node(node) or "_target_" not in node:
        return
    name = str(node["_target_"])
    given = {k for k in node if not k.startswith("_")}
    target = located(f"{key}._target_", name)
    try:
        taken = inspect.signature(target).parameters
    except ValueError as error:
        raise ValueError(f"{key}._target_={name} is none of ours: {error}") from error
    # a dataclass inherits fields from other modules, so its own hints are asked for, not those of its __init__
    hints = _hints(target if is_dataclass(target) or not inspect.isclass(target) else target.__init__)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())  # **kwargs
    parameters = _by_name(taken)
    if unknown := sorted(given - set(parameters) if not open_ended else ()):
        meant = difflib.get_close_matches(unknown[0], parameters, n=1)
        hint = f"did you mean {key}.{meant[0]}=?" if meant else f"it takes {', '.join(parameters)}"
        raise ValueError(f"{key}.{unknown[0]} is not a parameter of {name}: {hint}")
    partial_call = node.get("_partial_", False)
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    if (missing := sorted(needed - given)) and not partial_call:
        raise ValueError(f"{key}.{missing[0]} is missing: {name} needs it")
    for part in given:
        _check_type(f"{key}.{part}", node[part], hints.get(part))
        check_signature(f"{key}.{part}", node[part])


def parameters_of(node: Any) -> set[str]:
    """Names of what the `_target_` of a node takes from a config; none if it has none, or none that can be imported."""
    if not is_node(node) or not isinstance(name := node.get("_target_"), str):
        return set()
    try:
        taken = inspect.signature(located("", name)).parameters
    except ValueError:
        return set()
    later = node.get("_partial_", False)  # what has no default then is given by the run
    given = _by_name(taken).items()
    return {key for key, parameter in given if not (later and parameter.default is inspect.Parameter.empty)}


def type_error(key: str, target: str, cause: TypeError) -> str:
    """What a target's TypeError means to who wrote its node: a key that nobody takes, or a wrong value or code."""
    if stranger := re.search(r"unexpected keyword argument '(\w+)'", str(cause)):
        return (
            f"{key}.{stranger[1]} is taken by nothing that {target} makes ({cause}): choose an option, or write a YAML,"
            " with the keys that it takes (docs/guides/models.md)"
        )
    told = f"{key}: one of its values has the wrong type, or its code an error ({cause})"
    return f"{told}; its YAML says what it takes"


def _by_name(parameters: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Without *args and **kwargs, which are no names."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in several}


def _hints(target: Any) -> dict[str, Any]:
    """The types that a target asks for; none if they name what its module does not import when it runs."""
    try:
        return get_type_hints(target)
    except NameError:
        return {}


def is_node(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value of a config has keys of its own."""
    return isinstance(value, Mapping)


def located(key: str, name: str) -> Any:
    """The class or function of that dotted name; a ValueError about `key` if there is none."""
    package = name.partition(".")[0]
    try:
        target = resolve_name(name)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise ValueError(
                f"{key}={name} cannot be imported ({error}): if {package} is a package of yours, set PYTHONPATH to the "
                "folder that holds it; else leave the option's YAML as it is"
            ) from error
        raise ValueError(
            f"{key}={name} cannot be imported ({error}): install what it imports, or mend the name"
        ) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}={name} cannot be imported ({error}): leave it as the option's YAML has it") from error
    if not callable(target):
        raise ValueError(f"{key}={name} is no class or function: leave it as the option's YAML has it")
    return target


def _is_ours(kind: Any) -> bool:
    """Whether a type is one of the project's, which only a node makes."""
    return getattr(kind, "__module__", "").startswith(("attacks.", "flame."))


def _check_type(key: str, value: Any, hint: Any) -> None:
    """A plain value where a plain type is wanted must have it; a whole number will do for a float."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    if get_origin(hint) is Sequence and not several:
        raise ValueError(f"{key}={value!r} has the wrong type: must be a list, such as [1, 2]")
    wanted = set(get_args(hint)) or {hint}
    choices = wanted if get_origin(hint) in (Union, UnionType) else {hint}  # Thing | None: either
    made = any(_is_ours(kind) or (kind is not hint and get_origin(kind) is Callable) for kind in choices)
    if made and not is_node(value) and type(value) not in choices:
        part = "a part or null" if type(None) in choices else "a part"
        raise ValueError(f"{key}={value!r} has the wrong type: must be {part}; its YAML says how to choose another")
    if not wanted <= PLAIN or several or is_node(value) or (key == "engine.workers" and value == "auto"):
        return
    if type(value) not in (wanted | {int} if float in wanted else wanted):
        names = " or ".join(sorted("null" if t is type(None) else PLAIN_NAMES[t] for t in wanted))
        raise ValueError(f"{key}={value!r} has the wrong type: must be {names}")
