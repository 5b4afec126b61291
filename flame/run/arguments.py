"""The options of `train.py`: Hydra's, and ours."""

from __future__ import annotations

import argparse

from hydra._internal.utils import get_args_parser

from flame.run.compose import Conf


def parser() -> argparse.ArgumentParser:
    """Hydra's, and `--estimate`."""
    hydras = get_args_parser()
    hydras.add_argument("--estimate", action="store_true")
    return hydras


def conf_of(given: argparse.Namespace) -> Conf:
    """Where a parsed command line looks for configs."""
    return Conf(given.config_dir, given.config_path)
