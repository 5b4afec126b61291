"""Run one federation, or sweep many (`python train.py --help`), or with `--estimate` measure what that would cost."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent  # the project's, if this is started through a link, too
sys.path.insert(0, str(ROOT))  # which PYTHONSAFEPATH leaves out


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def main(cfg: DictConfig) -> None:
    """One job; Hydra composes `cfg` from conf/ and the command line."""
    from flame.engine import start_fork_server  # here, as sys.path is only now what it should be

    if cfg.engine._target_.endswith(".Pool"):
        start_fork_server()  # first, so that it imports torch while this process does
    from flame.run.experiment import run  # here, so that --help does not wait for torch

    run(cfg)


if __name__ == "__main__":
    from flame.run.command import start

    start(main)
