"""The command line of `train.py` before Hydra reads it: put in Hydra's order and spelling, and checked.

What does not exist is answered with what was probably meant, in a sentence, before anything heavy is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flame.run.again import AGAIN, without_again
from flame.run.arguments import conf_of, parser
from flame.run.compose import PROJECT, ConfigError, composed_here, sentence, started
from flame.run.config import register
from flame.run.console import keep_going
from flame.run.overrides import explain_missing_launcher, explain_unknown_keys, quoted, recipe_meant
from flame.run.sweep import parsed

INTERRUPTED = 130  # exit code, 128 + SIGINT
LOOKS = ("help", "hydra_help", "version", "shell_completion", "info", "experimental_rerun")  # options that run nothing


def start(main: Callable[[], None]) -> None:
    """All that `train.py` does, around Hydra's `main`."""
    keep_going()
    register()
    sys.argv[1:] = prepared(without_again(sys.argv))
    try:
        if "--estimate" in sys.argv:
            from flame.run.estimate import estimate  # here, so that --help does not wait for torch

            sys.exit(estimate(sys.argv[1:]))
        main()
    except KeyboardInterrupt:  # before the run listens, which then ends with a checkpoint
        sys.exit(INTERRUPTED)


def prepared(arguments: Sequence[str]) -> list[str]:
    """Options first, as Hydra wants them, then overrides that Hydra can read; exits with a sentence if one is wrong."""
    options, words = split(arguments)
    words = [quoted(word) for word in words]
    given = parser().parse_args([*options, *words])
    if not any(getattr(given, name, None) for name in LOOKS):
        explain(given)
    return [*options, *words]


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options with their values, and the overrides, in whatever order they stand."""
    valued = {flag: action.nargs for action in parser()._actions if action.nargs != 0 for flag in action.option_strings}
    options: list[str] = []
    words: list[str] = []
    before = ""
    for word in arguments:
        value = before in valued and (valued[before] is None or "=" not in word)  # --info has one or none
        (options if value or word.startswith("-") else words).append(word)
        before = "" if value else word
    return options, words


def explain(given: argparse.Namespace) -> None:
    """Exit with a hint if the command line names a key, an option or a launcher that is not there, or a wrong type."""
    named = ["--config-name", given.config_name] if conf_of(given) == PROJECT else []
    if given.config_name in (None, AGAIN):
        named = []
    if recipe := recipe_meant([*named, *given.overrides]):
        sys.exit(recipe)
    try:
        explain_missing_launcher(given.overrides)
        with started(conf_of(given)) as loader:
            explain_unknown_keys(given.overrides, loader.list_groups(""))
            check_jobs(loader, given.config_name or "config", given.overrides, given.multirun)
    except (HydraException, ValueError) as error:
        sys.exit(str(error))


def check_jobs(loader: ConfigLoader, name: str, words: Sequence[str], multirun: bool) -> None:
    """ConfigError unless the first job can be composed, and every option and value that is swept over fits into it.

    Not every job is composed: a sweep may have thousands, at 0.1 s each.
    """
    params = {} if name == "config" else composed_here(loader, [], name, hydra=True).hydra.sweeper.get("params") or {}
    overrides = read([*(f"{key}={values}" for key, values in params.items()), *words], loader)
    swept = [o for o in overrides if o.is_sweep_override()]
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    first = {o.get_key_element(): next(iter(o.sweep_string_iterator()), None) for o in swept}
    choice = {key: f"{key}={value}" for key, value in first.items() if value is not None}
    cfg = composed_here(loader, [*choice.values(), *fixed], name, hydra=True)
    for override in swept:
        key, known = override.get_key_element(), loader.get_group_options(override.key_or_group)
        if not known:
            check_values(cfg, override, loader)
            continue
        dotted = any(word.startswith(f"{override.key_or_group}.") for word in fixed)  # a key that not all may have
        for value in list(override.sweep_string_iterator())[1:]:
            if dotted or key in ("dataset", "model") or value not in known:  # not every model reads all data
                composed_here(loader, [*(choice | {key: f"{key}={value}"}).values(), *fixed], name)
    if swept and not (multirun or cfg.hydra.mode == RunMode.MULTIRUN):
        composed_here(loader, words, name)  # which fails


def check_values(cfg: DictConfig, override: Override, loader: ConfigLoader) -> None:
    """ConfigError unless each value of a sweep is one that the config takes."""
    for value in override.sweep_iterator():
        try:
            OmegaConf.update(cfg, override.key_or_group, value, force_add=override.is_add())
        except OmegaConfBaseException as error:
            raise ConfigError(sentence(error, [], loader)) from error


def read(words: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """The overrides; ConfigError if one is none."""
    try:
        return parsed(words)
    except HydraException as error:
        raise ConfigError(sentence(error, words, loader)) from error
