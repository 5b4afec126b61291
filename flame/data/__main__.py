"""`python -m flame.data fashion_mnist --root DIR --download` makes a data set available, without root."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from flame.data.datasets import FASHION_MNIST, MNIST
from flame.data.fetch import debian_package, torchvision_mirror
from flame.data.idx import locate


def main() -> None:
    """Find an IDX data set or, if allowed, fetch it; verify it; print where it is."""
    sources = {source.name: source for source in (FASHION_MNIST, MNIST)}
    parser = argparse.ArgumentParser(prog="python -m flame.data", description=main.__doc__)
    parser.add_argument("dataset", choices=sources)
    parser.add_argument("--root", type=Path, required=True, help="data folder, as paths.data")
    parser.add_argument("--download", action="store_true", help="fetch it if it is nowhere: Debian, then torchvision")
    arguments = parser.parse_args()
    source = sources[arguments.dataset]
    try:
        folder = locate(source, arguments.root, [debian_package, torchvision_mirror] if arguments.download else [])
        train, test = source.load(folder)
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{source.name}: {len(train):,} training and {len(test):,} test images, verified, in {folder}")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    main()
