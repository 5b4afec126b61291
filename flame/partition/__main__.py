"""`python -m flame.partition partition=dirichlet partition.alpha=0.3 --figure labels.png`: who holds which labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flame.partition.figure import Held, describe, plot_held
from flame.run.build import build
from flame.run.compose import Conf, ConfigError, composed
from flame.run.console import keep_going
from flame.run.figure import own_settings
from flame.run.overrides import quoted


def main() -> None:
    """`python -m flame.partition partition=dirichlet partition.alpha=0.3 --figure labels.png`."""
    parser = argparse.ArgumentParser(prog="python -m flame.partition", description="Who holds which labels.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py, e.g. seed=1")
    parser.add_argument("--figure", type=Path, help="also draw it to this .png, .svg or .pdf")
    parser.add_argument("--config-dir", metavar="DIR", help="a conf of your own beside the project's")
    arguments = parser.parse_intermixed_args()
    if arguments.figure and arguments.figure.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--figure {arguments.figure}: the name must end in .png, .svg or .pdf")
    try:
        parts = build(composed(list(map(quoted, arguments.overrides)), conf=Conf(arguments.config_dir)))
    except ConfigError as error:
        sys.exit(str(error))
    shards = parts.task.shards.first(parts.population.clients)  # without the server's own samples
    held = Held.of(parts.task.train.y, shards, parts.dataset.classes, parts.dataset.noun)
    print(describe(held, shards.names))
    if arguments.figure:
        try:
            with own_settings():
                plot_held(held, arguments.figure)
        except OSError as error:
            sys.exit(f"--figure {arguments.figure}: {error.strerror}; name a file in a folder that is there")
        print(arguments.figure)


if __name__ == "__main__":
    keep_going()
    main()
