"""A finished run whose command is given again: nothing is trained, and what is missing beside its record is made."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from flame.run.build import ConfigError, check_incidental, check_part, make
from flame.run.figure import FIGURE, draw_run
from flame.run.folder import read_json
from flame.run.provenance import differences, origin_of
from flame.run.trackers.base import RunInfo, Tracker, dispensable
from flame.run.trackers.files import ENVIRONMENT, SUMMARY
from flame.run.weights import MODEL, export

log = logging.getLogger(__name__)


def checked(cfg: Any) -> Tracker:
    """Its tracker; ConfigError unless the settings hold that may differ from the run's. The others are its own."""
    try:
        check_incidental(cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    check_part(cfg, "engine")  # made of more than its config
    tracker: Tracker = make(cfg, "tracker")
    return tracker


def skip(info: RunInfo) -> None:
    """Say in one line that the run is finished, and if the same command would now run something else."""
    said = f"{info.folder} is finished; resume=false runs it again in a new folder"
    try:
        changed = differences(recorded(info.folder), origin_of(info.config, info.code))
    except (ConfigError, ValueError, OSError) as error:  # a part cannot be made any more
        changed = f"what it would be made of now is not known: {str(error).splitlines()[0]}"
    log.log(
        logging.WARNING if changed else logging.INFO, "%s", f"{said}. It was made of: {changed}" if changed else said
    )


def revisit(folder: Path) -> None:
    """Make what a finished run lacks beside its record: something ended the process, or it failed then."""
    for name, make_again in ((FIGURE, draw_run), (MODEL, export)):
        if not (folder / name).exists():
            with dispensable(name):
                make_again(folder)


def show(tracker: Tracker, info: RunInfo) -> None:
    """The view once more, from the record, if somebody waits for it: a W&B agent learns nothing of a skipped run."""
    if getattr(tracker, "awaited", False):
        summary = read_json(info.folder / SUMMARY)
        with dispensable("the view"):
            tracker.start(replace(info, code=str(summary.get("code", info.code))), summary["rounds"])
            tracker.finish(summary)
            tracker.close(0)


def recorded(folder: Path) -> dict[str, Any]:
    """environment.json of a run, as far as there is one."""
    return read_json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).exists() else {}
