"""Try any defense on a recorded round (`record.rounds` of a run writes them, see `flame/run/recording.py`).

    python -m flame.replay FILE defense=flame_zhmzm [defense.noise.factor=0] [out=FILE]
    python -m flame.replay --compare FILE... [--defenses flame_weights_only,flame_all_state,krum]

`--config-dir DIR` or `hydra.searchpath=[file://DIR]` finds defenses of your own, in DIR/defense. The first command
prints one JSON object: accepted (positions in the file's order), clip_bound, noise_std (null for a defense without
one), weights, and xray, each block's share of norms and distances; `out` receives the new global state. The second
prints who accepts whom in each round, and the mean Jaccard index of each two accepted sets. A defense that remembers
(foolsgold, afa) starts with an empty memory in every round: a file holds one round alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safetensors.torch import save

from flame.defenses.base import Defense, defend
from flame.round.checkpoint import write_atomically
from flame.round.seeding import generator
from flame.round.shadow import xray
from flame.round.types import Verdict
from flame.run.build import compose_defense
from flame.run.compose import PROJECT, Conf, ConfigError, started
from flame.run.console import keep_going
from flame.run.fit import check_clients
from flame.run.overrides import explain_unknown_keys, quoted
from flame.run.recording import RecordedRound, read_round

SEARCH = "hydra.searchpath="
OWN = ("updates", "out")  # settings of this command; all others are Hydra's
Sets = Mapping[str, frozenset[int]]  # defense -> accepted positions


def main(arguments: Sequence[str]) -> None:
    """The command line; anything the user can mend is one line on standard error and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m flame.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="FILE or updates=, defense=, out=, defense.*=")
    parser.add_argument("--compare", nargs="+", metavar="FILE", help="recorded rounds")
    parser.add_argument("--defenses", help="for --compare, separated by commas; default: all in conf/defense")
    parser.add_argument("--config-dir", metavar="DIR", help="a conf of your own beside the project's")
    given = parser.parse_intermixed_args(arguments)
    conf = Conf(given.config_dir)
    try:
        if given.compare:
            words = [*given.compare, *given.settings]  # what stands behind --compare may be a setting
            search = [word for word in words if "=" in word and not Path(word).exists()]
            files = [Path(word) for word in words if word not in search]
            print(comparison(files, chosen(given.defenses, conf, search), conf, search))
        else:
            print(json.dumps(replay(given.settings, conf), allow_nan=False))
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(str(error))


def chosen(names: str | None, conf: Conf = PROJECT, search: Sequence[str] = ()) -> list[str]:
    """The defenses that `--defenses` names; all there are if it is not given. ValueError for settings beside it."""
    if others := [word for word in search if not word.startswith(SEARCH)]:
        raise ValueError(f"{others[0]}: --compare takes defenses as they are, by --defenses, and {SEARCH}... alone")
    with started(conf) as loader:
        known = loader.get_group_options("defense", config_name="config", overrides=[*search])
    wanted = names.split(",") if names else known
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(
            f"--defenses={unknown[0]} is unknown: must be among {', '.join(known)}; --config-dir adds others"
        )
    return wanted


def replay(settings: Sequence[str], conf: Conf = PROJECT) -> dict[str, object]:
    """What one defense makes of one round, as plain values."""
    settings = [setting if "=" in setting else f"updates={setting}" for setting in settings]
    pairs = (setting.split("=", 1) for setting in settings if setting.startswith(tuple(f"{key}=" for key in OWN)))
    values = {key: Path(value).expanduser() for key, value in pairs}
    overrides = [quoted(setting) for setting in settings if setting.split("=", 1)[0] not in OWN]
    with started(conf) as loader:
        explain_unknown_keys(overrides, loader.list_groups(""))
    if "updates" not in values or not any(o.startswith("defense=") for o in overrides):
        raise ValueError("FILE (or updates=FILE) and defense=NAME are needed; --help shows the rest")
    if "out" in values and not values["out"].absolute().parent.is_dir():
        raise FileNotFoundError(f"out={values['out']}: the folder {values['out'].parent} is not there; make it first")
    record = read_round(values["updates"])
    verdict = verdict_on(record, built(tuple(overrides), len(record.updates), conf))
    if "out" in values:
        write_atomically(values["out"], save(record.plain(verdict.state)))
    return {
        "accepted": verdict.accepted.nonzero().flatten().tolist(),
        "clip_bound": scalar(verdict.info, "clip_bound"),
        "noise_std": scalar(verdict.info, "noise_std"),
        "weights": verdict.weights.tolist(),
        "xray": {name.removeprefix("xray/"): share for name, share in xray(record.updates).items()},
    }


@cache
def built(overrides: tuple[str, ...], n: int, conf: Conf = PROJECT) -> Defense:
    """The defense for rounds of n clients."""
    defense = compose_defense([f"clients={max(n, 100)}", f"clients_per_round={n}", *overrides], conf)
    check_clients(defense, n)
    if getattr(defense, "root_samples", 0):
        raise ValueError(
            f"{overrides[0]} needs the server's own data, which a recorded round does not hold: try it in a run"
        )
    if getattr(defense, "needs_lab", False):
        raise ValueError(
            f"{overrides[0]} tries models on samples, and a recorded round holds neither the architecture nor any"
            " sample: try it in a run"
        )
    return defense


def verdict_on(record: RecordedRound, defense: Defense) -> Verdict:
    """The verdict behind the guard, with the stream that the run itself had."""
    stream = generator(record.seed, "defense", record.state.round)
    return defend(defense, record.state, record.updates, stream)


def scalar(info: Mapping[str, float], name: str) -> float | None:
    """`<defense>/<name>` of a verdict; None if there is none or it is not a number."""
    value = next((v for k, v in info.items() if k.endswith(f"/{name}")), math.nan)
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Compared:
    """One round under many defenses."""

    name: str
    clients: int
    usable: int  # of them, by the guard
    accepted: Sets


def comparison(paths: Sequence[Path], names: Sequence[str], conf: Conf = PROJECT, search: Sequence[str] = ()) -> str:
    """The tables: per round who accepts whom, then the Jaccard index of each two filters, averaged over the rounds."""
    rounds, refused = [], {}
    for path in paths:
        record, accepted = read_round(path), {}
        for name in names:
            try:
                verdict = verdict_on(record, built((f"defense={name}", *search), len(record.updates), conf))
            except (ConfigError, ValueError) as error:
                refused[name] = str(error).splitlines()[0]
                continue
            accepted[name] = frozenset(verdict.accepted.nonzero().flatten().tolist())
        usable = int(record.updates.guarded[0].sum())
        rounds.append(Compared(path.name, len(record.updates), usable, accepted))
    tried = [name for name in names if name not in refused]
    filters = [name for name in tried if any(len(r.accepted[name]) < r.usable for r in rounds)]
    lines = [line for r in rounds for line in accepted_table(r, filters)]
    lines += jaccard_table(rounds, filters)
    if everyone := sorted(set(tried) - set(filters)):
        lines.append(f"everyone usable accepted in every round by: {', '.join(everyone)}")
    lines += [f"not compared: {name} ({reason})" for name, reason in refused.items()]
    return "\n".join(lines)


def accepted_table(round_: Compared, filters: Sequence[str]) -> list[str]:
    """One line per defense: how many, and at which positions."""
    width = max(map(len, filters), default=0)
    rows = [f"  {f:<{width}}  {len(round_.accepted[f]):>3}  {sorted(round_.accepted[f])}" for f in filters]
    return [f"{round_.name}: {round_.clients} clients, {round_.usable} usable; accepted", *rows, ""]


def jaccard_table(rounds: Sequence[Compared], filters: Sequence[str]) -> list[str]:
    """|A and B| / |A or B| of accepted sets, mean over rounds; columns are numbered as rows are."""
    width = max(map(len, filters), default=0)
    lines = [f"Jaccard index of accepted sets, mean of {len(rounds)} round(s)"]
    lines.append(" " * (width + 8) + " ".join(f"{j:>4}" for j in range(1, len(filters) + 1)))
    for i, name in enumerate(filters, start=1):
        values = [sum(jaccard(r.accepted[name], r.accepted[o]) for r in rounds) / len(rounds) for o in filters]
        lines.append(f"  {i:>3}  {name:<{width}} " + " ".join(f"{v:4.2f}" for v in values))
    return [*lines, ""]


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """1 for two empty sets."""
    return len(a & b) / len(a | b) if a | b else 1.0


if __name__ == "__main__":
    keep_going()
    main(sys.argv[1:])
