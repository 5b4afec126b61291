"""Where the configs are: beside the packages in a checkout, inside `flame` where a wheel was installed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
