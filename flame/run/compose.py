"""Configs composed as `train.py` composes them, for whoever looks at a run without running it: the one home of that.

Every tool so knows the user's own parts, whether they come from `--config-dir`, `--config-path` or `hydra.searchpath`.
What Hydra and OmegaConf say of a wrong setting becomes a sentence: its key, its value, what it must be, the remedy.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, ValueNode
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from flame.run.config import RunConfig, register
from flame.run.overrides import explain_unknown_keys, misspelt
from flame.run.place import CONF
from flame.run.signature import PLAIN_NAMES, parameters_of

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "flame.round.client.LocalTraining"
KINDS = {"channels": "images", "tokens": "tokens", "features": "rows of features"}  # a data set's fact -> what it has
PACE = {"client"}  # of a backdoor: how it trains, as an attack around it sets it
APPEND = re.compile(r"\nTo append to your .*")  # Hydra's advice for a key that is not there; a typo would stay one


class ConfigError(CompactHydraException):
    """A wrong setting; the command line prints the message without a traceback and exits with 1."""


@dataclass(frozen=True)
class Conf:
    """Where configs are looked for: in the project's conf, and where the user says, in Hydra's own words."""

    directory: str | None = None  # --config-dir: a folder beside it
    path: str | None = None  # --config-path: in its place; from train.py's folder, or absolute, or pkg://


PROJECT = Conf()


@contextmanager
def started(conf: Conf = PROJECT) -> Iterator[ConfigLoader]:
    """Hydra, as `train.py` starts it; afterwards what was before."""
    register()
    with aside(), initialize_config_dir(str(CONF), version_base="1.3"):
        if conf != PROJECT:
            primary = conf.path or str(CONF)
            search = create_config_search_path(primary if primary.startswith("pkg://") else str(ROOT / primary))
            if conf.directory is not None:
                folder = Path(conf.directory).expanduser().absolute()
                if not folder.is_dir():
                    raise ConfigError(f"--config-dir={conf.directory}: {folder} is no folder: name one that is there")
                if said := unread(folder):
                    raise ConfigError(said)
                search.prepend("command-line", f"file://{folder}", SearchPathQuery("schema"))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("app", search)
        yield GlobalHydra.instance().config_loader()


@contextmanager
def aside() -> Iterator[None]:
    """Without the Hydra of a command that is under way, if one is."""
    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


def unread(folder: Path) -> str | None:
    """A sentence about a file of a user's conf that Hydra would pass over: of two of one name it takes ours."""
    for path in sorted(CONF.rglob("*.yaml")):
        name = path.relative_to(CONF)
        if (folder / name).is_file() and (folder / name).read_bytes() != path.read_bytes():
            return f"{folder / name} would not be read: conf/{name} comes before it; give yours another name"
    return None


def composed(
    overrides: Sequence[str],
    name: str = "config",
    conf: Conf = PROJECT,
    hydra: bool = False,
    modelled: bool = True,
) -> DictConfig:
    """The config of `python train.py --config-name NAME OVERRIDES`, for one job; with its `hydra` node if wanted.

    Where no model is built of it (not `modelled`), the model may be one of other data.

    Raises:
        ConfigError: an override or a file is wrong.
    """
    with started(conf) as loader:
        try:
            explain_unknown_keys(overrides, loader.list_groups(""))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return composed_here(loader, overrides, name, hydra, modelled)


def composed_here(
    loader: ConfigLoader, overrides: Sequence[str], name: str, hydra: bool = False, modelled: bool = True
) -> DictConfig:
    """The same where Hydra has started."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"provider=.*is not available")
            cfg = compose(name, list(overrides), return_hydra_config=hydra)
        check_backdoor(cfg.get("attack"))
        if modelled:
            check_kind(cfg.get("model"), cfg.get("dataset"))
        return cfg
    except UserWarning as error:
        path = str(error).partition("path=")[2].partition(" is not available")[0]
        raise ConfigError(f"hydra.searchpath: {path} is no folder: name one that is there") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(sentence(error, overrides, loader)) from error
    except ValueError as error:
        if "Config group override must be" not in str(error):  # it is a number, or null
            raise
        words = [w for w in overrides if loader.get_group_options(w.partition("=")[0].partition("@")[0].lstrip("+"))]
        raise ConfigError(
            f"{', '.join(words)}: an option is the name of a file in that group, such as defense=fedavg"
        ) from error


def check_backdoor(attack: Any) -> None:
    """ConfigError if an attack takes a key from its `backdoor`, or sets one there, that this has not."""
    if not OmegaConf.is_dict(attack) or not OmegaConf.is_dict(inner := attack.get("backdoor")):
        return
    written: Any = OmegaConf.to_container(attack)
    here = [value for key, value in written.items() if key != "backdoor"]
    wanted = re.findall(r"\$\{\.backdoor\.(\w+)\}", str(here))
    taken = parameters_of(inner)
    if taken and (lacking := sorted({*wanted, *PACE & {*map(str, inner)}} - taken)):
        outer, name = (str(node.get("_target_")).rpartition(".")[2] for node in (attack, inner))
        what = "" if {"backdoor", "poisoned_data_rate"} & taken else " poisons no data and"
        has = f"attack.backdoor={name}{what} has no {lacking[0]}, which {outer} needs there"
        raise ConfigError(f"{has}: must be a way to poison data that has it, such as badnets or dba")
    check_backdoor(inner)


def check_kind(model: Any, dataset: Any) -> None:
    """ConfigError if a model is built from a fact that the data set's YAML does not have, as its data are others."""
    if not OmegaConf.is_dict(model) or not OmegaConf.is_dict(dataset):
        return
    wanted = re.findall(r"\$\{dataset\.(\w+)\}", str(OmegaConf.to_container(model)))
    if missing := [fact for fact in wanted if fact not in dataset]:
        own = next((kind for fact, kind in KINDS.items() if fact in dataset), "of another kind")
        reads = f"reads {KINDS[missing[0]]}, and these data are {own}" if missing[0] in KINDS else "needs that fact"
        raise ConfigError(
            f"model: {model.get('_target_')} is built from dataset.{missing[0]}, which {dataset.get('_target_')} does"
            f" not have: it {reads}; take a model that reads these data (docs/guides/models.md), or another dataset"
        )


def sentence(error: Exception, overrides: Sequence[str], loader: ConfigLoader) -> str:
    """What a failed composition means to who wrote the overrides."""
    reason = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = error.options or loader.get_group_options(group, ObjectType.CONFIG)
        return misspelt(f"{group or '--config-name'}={option}", option, known, "option") + _inside(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read: KEY=VALUE, and a value with a blank or any of ,=:{{}}[]()'\" in it "
            "goes between quotes of its own, as in 'paths.runs=\"my runs\"'"
        )
    if several := re.match(r"Ambiguous value for argument '(([^=]+)=(.*))'", str(error)):
        return f"{several[1]} is several values: add --multirun (-m) to run each, or say {several[2]}=[{several[3]}]"
    if there := re.match(r"Could not append to config. An item is already at '([^']+)'", str(error)):
        word = next((w for w in overrides if w.lstrip("+").startswith(f"{there[1]}=")), f"+{there[1]}")
        return f"{word}: {there[1]} has a value already; say it without the +: {word.lstrip('+')}"
    if isinstance(reason, (ConfigKeyError, ConfigAttributeError)) and OmegaConf.is_dict(reason.parent_node):
        return unknown_key(reason, overrides, loader) + _inside(error)
    if isinstance(reason, ValidationError) and reason.full_key:
        return wrong_type(reason) + _inside(error)
    return APPEND.sub("", f"{error}\n{reason}" if isinstance(reason, OmegaConfBaseException) else str(error))


def _inside(error: Exception) -> str:
    """The file that an error is in, unless it is in an override."""
    found = re.match(r"In '([^']+)'", str(error))
    return f" (in {found[1]}.yaml)" if found and found[1] not in ("config", "hydra/config") else ""


def unknown_key(error: OmegaConfBaseException, overrides: Sequence[str], loader: ConfigLoader) -> str:
    """The nearest key at the same place; or that a part takes the key, although its YAML leaves it out."""
    place, _, key = str(error.full_key).rpartition(".")
    node: Any = error.parent_node
    word = next((w for w in overrides if w.lstrip("+").split("=")[0].startswith(str(error.full_key))), error.full_key)
    recipe = re.fullmatch(r"attack(\.backdoor)*\.client", place)  # what it does not name is the benign clients'
    taken = parameters_of(OmegaConf.create({"_target_": RECIPE}) if recipe else node)
    if key in taken:
        return f"{word}: {place} takes {key}, but its YAML has no value for it to replace; add one: +{word}"
    known = {*(str(k) for k in node), *taken} - {"_target_", "_partial_"}
    if not place:
        return misspelt(str(word), key, known | set(loader.list_groups("")))
    return misspelt(str(word), key, known, prefix=f"{place}.", of=node.get("_target_", place))


def wrong_type(error: ValidationError) -> str:
    """Key, value and what it must be, by the schema; a value of that kind as an example."""
    key = re.sub(r"\[\d+\]", "", str(error.full_key))
    hint = _hint(key)
    given = "null" if error.value is None else repr(error.value)
    if hint is None:
        return f"{key}={given} has the wrong type: {str(error.msg).splitlines()[0]}"
    if is_dataclass(hint):
        return f"{key}={given} has the wrong type: it has keys of its own, {', '.join(get_type_hints(hint))}"
    now = error.child_node._value() if isinstance(error.child_node, ValueNode) else None
    shown = str(now).lower() if isinstance(now, bool) else str(now)
    example = f", such as {key}={shown}" if type(now) in PLAIN_NAMES and "$" not in shown else ""
    return f"{key}={given} has the wrong type: must be {_in_words(hint)}{example}; conf/config.yaml says what it means"


def _hint(key: str) -> Any:
    """The type of a run-level key; None for others."""
    found: Any = RunConfig
    for part in key.split("."):
        found = get_type_hints(found).get(part) if is_dataclass(found) else None
    return None if found is Any else found


def _in_words(hint: Any) -> str:
    if get_origin(hint) is list:
        return "a list, such as [0, 9]" if get_args(hint) == (int,) else "a list of words, such as [weights_only]"
    kinds = get_args(hint) or (hint,)
    return " or ".join("null" if kind is type(None) else PLAIN_NAMES[kind] for kind in kinds)
