"""Run one federation, or sweep many (`python train.py --help`), or with `--estimate` measure what that would cost."""

import sys

import hydra
from omegaconf import DictConfig

from flame.engine import start_fork_server
from flame.run.again import prepared
from flame.run.config import register

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job; Hydra composes `cfg` from conf/ and the command line."""
    if cfg.engine._target_.endswith(".Pool"):
        start_fork_server()  # first, so that it imports torch while this process does
    from flame.run.experiment import run  # here, so that --help does not wait for torch

    run(cfg)


if __name__ == "__main__":
    sys.argv[1:] = prepared(sys.argv)
    try:
        if "--estimate" in sys.argv:
            from flame.run.estimate import estimate

            sys.exit(estimate(sys.argv[1:]))
        main()
    except KeyboardInterrupt:  # before the run listens, which then ends with a checkpoint
        sys.exit(130)
