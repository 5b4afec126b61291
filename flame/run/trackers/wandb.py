"""A view of the run on Weights & Biases: offline by default, without a key, a prompt or the network.

The run folder is the record and the view is made from it. When a run goes on after an interruption, the rounds on file
are sent again: the newest W&B run of a folder is whole, offline too, where W&B itself cannot resume. All attempts carry
the same W&B id, under which W&B replaces an earlier run by a later one. To upload: `wandb sync DIR` with the DIR that
the log names, or `wandb sync RUNS/*/wandb/offline-run-*` for a sweep.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flame.federation import Round
from flame.run.classes import class_metrics, read_class_metrics
from flame.run.config import NAMED, without_seed
from flame.run.record import read_run
from flame.run.trackers.base import RunInfo, dispensable
from flame.run.trackers.exhibits import ARTIFACTS, acceptance, answers, artifacts, by_class, final, staging
from flame.run.trackers.files import read_metrics

log = logging.getLogger(__name__)
MODES = ("disabled", "offline", "online")  # the later, the more leaves this machine
OLD_MODES = {"dryrun": "offline", "run": "online"}  # as WANDB_MODE may still have it
TRUE = ("1", "true", "t", "yes", "y", "on")  # of WANDB_DISABLED
BARRED, PROJECT_LIMIT = "/\\#?%:", 128  # of a project's name, by W&B's own check of its settings
AGENT = "WANDB_SWEEP_ID"  # environment variable: `wandb agent` has started this process
NAME_LIMIT, TAG_LIMIT = 128, 64  # characters that W&B takes
PATIENCE = 30.0  # seconds to wait for the server before the run is written offline
UPLOAD = 600.0  # seconds to wait for the upload at the end; what is left over can be synced


class WandB:
    """One W&B run per job: a row per round and, at the end, the accepted sets as a table and as a picture."""

    def __init__(self, project: str, entity: str | None, mode: str, *, artifacts: Sequence[str] = ()) -> None:
        """ValueError unless `mode` is one of MODES, `artifacts` are of ARTIFACTS, and W&B would take the names.

        The environment may ask for less than `mode`, with WANDB_MODE or WANDB_DISABLED, but not for more.
        """
        check_name("project", project)
        if entity is not None:
            check_name("entity", entity)
        if unknown := [kind for kind in artifacts if kind not in ARTIFACTS]:
            raise ValueError(f"tracker.artifacts={unknown} is unknown: must be a list of {', '.join(ARTIFACTS)}, or []")
        self._project, self._entity, self._mode = project, entity, least_mode(mode, os.environ)
        self._artifacts, self.awaited = tuple(artifacts), bool(os.environ.get(AGENT))
        self._folder = Path()
        self._run: Any = None  # wandb.Run; None when there is no view (any more)

    def start(self, info: RunInfo, first_round: int) -> None:
        """Open the W&B run and send it the rounds that are on file."""
        if self._mode == "disabled":
            return
        self._folder = info.folder
        with self._optional():
            self._run = self._open(info)
            log.info("W&B: %s", where(self._run))
            self._run.define_metric("round", hidden=True)
            self._run.define_metric("*", step_metric="round")
            by_round = read_class_metrics(info.folder)
            for row in read_metrics(info.folder)[:first_round]:
                self._send(row["round"], {**row, **by_round.get(row["round"], {})})

    def log(self, record: Round) -> None:
        """One row."""
        with self._optional():
            self._send(record.number, {**record.metrics, **class_metrics(record.classes)})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """As W&B's summary the means of the last rounds instead of the last values; then all that is no number."""
        metrics = summary["metrics"]
        with self._optional():
            if self._run is not None:
                self._run.summary.update({**metrics, **final(metrics), "state_sha256": summary["state_sha256"]})
        if self._run is None:
            return
        with dispensable("tables and pictures for W&B"), staging(self._folder):  # the view is whole without them
            record = read_run(self._folder)
            self._run.summary.update(by_class(record))
            self._run.log({**acceptance(record), **answers(record)}, step=record.rounds, commit=True)
        with dispensable("artifacts for W&B"), staging(self._folder):
            for artifact in artifacts(self._artifacts, read_run(self._folder), self._run.id) if self._artifacts else ():
                self._run.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        """End the W&B run; `exit_code` other than 0 shows it as failed."""
        with self._optional():
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
        self._run = None

    def _send(self, number: int, metrics: Mapping[str, float | None]) -> None:
        if self._run is not None:
            self._run.log({**defined(metrics), "round": number}, step=number, commit=True)

    def _open(self, info: RunInfo) -> Any:
        """Online if that is wanted and possible, else offline."""
        import wandb

        if self._mode == "online":
            try:
                if wandb.login(prompt=False, verify=False):
                    return self._init(info, "online")
                reason = "no W&B key is configured (wandb login, or WANDB_API_KEY)"
            except wandb.Error as error:
                reason = str(error).splitlines()[0]
                wandb.teardown(exit_code=1)  # the failed attempt holds the id
            log.warning("tracker.mode=online is not possible: %s; this run is written offline, for wandb sync", reason)
        if self.awaited:
            log.warning("the W&B sweep learns nothing from a run that is written offline: tracker.mode=online tells it")
        return self._init(info, "offline")

    def _init(self, info: RunInfo, mode: str) -> Any:
        import wandb

        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=str(info.folder),
            **self._place(info),
            name=fit(info.name, NAME_LIMIT),
            group=fit(info.sweep, NAME_LIMIT),
            job_type=fit(info.choices["defense"], TAG_LIMIT),
            tags=[fit(tag, TAG_LIMIT) for tag in dict.fromkeys(info.choices[name] for name in NAMED)],
            config={
                **info.config,
                "choices": dict(info.choices),
                "identity": info.identity,
                "code": info.code,
                "cell": cell(info),
            },
            reinit="finish_previous",  # else the second job of a process gets the first one's run and config
            settings=wandb.Settings(
                console="off",
                silent=mode == "offline",
                init_timeout=PATIENCE,
                finish_timeout=UPLOAD,
                x_transaction_log_flush_interval=1.0,  # seconds; what a killed run may lose
            ),
        )

    def _place(self, info: RunInfo) -> dict[str, Any]:
        """Where the run goes; to an agent, which has set the project, the entity and the id, W&B leaves them."""
        return {} if self.awaited else {"project": self._project, "entity": self._entity, "id": run_id(info)}

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """A view that fails is given up with a warning; the run goes on, and its record is complete."""
        try:
            yield
        except Exception as error:  # whatever W&B raises: its service may die, its disk may be full
            self._run = None
            log.warning("W&B is given up for this run, whose record stays in %s: %r", self._folder, error)
            with suppress(Exception):  # a dead service would fail once more at exit, with a traceback
                import wandb

                wandb.teardown(exit_code=1)


def least_mode(mode: str, environment: Mapping[str, str]) -> str:
    """The mode of a run whose config says `mode`; ValueError unless that and WANDB_MODE are among MODES."""
    wished = environment.get("WANDB_MODE", "")
    asked = {"tracker.mode": mode, "WANDB_MODE": OLD_MODES.get(wished, wished) or mode}
    for key, value in asked.items():
        if value not in MODES:
            raise ValueError(f"{key}={value} is not a mode of W&B: choose one of {', '.join(MODES)}")
    if environment.get("WANDB_DISABLED", "").lower() in TRUE:
        return "disabled"
    least = min(asked.values(), key=MODES.index)
    if least != asked["WANDB_MODE"]:
        log.info("WANDB_MODE=%s is more than tracker.mode=%s, which holds; say tracker.mode=%s", wished, mode, wished)
    return least


def check_name(key: str, name: str) -> None:
    """ValueError unless W&B takes it; it would fail after the start of the run, which would go on without a view."""
    if not 0 < len(name) <= PROJECT_LIMIT or not name.strip() or set(BARRED) & set(name):
        raise ValueError(
            f"tracker.{key}={name!r} is no name for W&B: must be 1 to {PROJECT_LIMIT} characters, none of {BARRED}"
        )


def where(run: Any) -> str:
    """Where a wandb.Run can be seen, or how to get it there."""
    return f"offline; to upload: wandb sync {Path(run.dir).parent}" if run.offline else str(run.url)


def run_id(info: RunInfo) -> str:
    """The W&B id: the run's identity and, where `resume=false` made a folder of its own, the time in its name."""
    return info.identity + info.name.partition(info.identity)[2]


def cell(info: RunInfo) -> str:
    """What the seeds of a setting share, for W&B to group by: the choices, and a hash of all settings but the seed."""
    return " ".join([*(info.choices[name] for name in NAMED), without_seed(info.config)[:6]])


def fit(text: str, limit: int) -> str:
    """`text` with at most `limit` characters; what is cut is replaced by a hash, so that names stay different."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def defined(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Without the undefined ones, which W&B would draw as text."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
