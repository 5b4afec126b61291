"""What a W&B run shows beside its curves: the accepted sets, the answers by class, the files that were asked for."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flame.run.classes import CLASSES, class_metric, read_confusions
from flame.run.figure import acceptance_png, classes_png
from flame.run.record import RunRecord
from flame.run.recording import FOLDER
from flame.run.weights import MODEL

log = logging.getLogger(__name__)
TABLE, PICTURE, CONFUSION = "acceptance", "acceptance_map", "confusion"  # keys of the last row of a run
ARTIFACTS = {  # what `tracker.artifacts` may name -> W&B's type, the files in the run folder, how to have some
    "model": ("model", MODEL, "the log says why"),
    "recorded": ("dataset", f"{FOLDER}/*.safetensors", "say record.rounds=[...] or record.every"),
}


def acceptance(run: RunRecord) -> dict[str, Any]:
    """acceptance.csv as one immutable table, and the heat maps of it."""
    import wandb
    from PIL import Image

    columns: list[str | int] = list(run.acceptance.dtype.names or ())
    rows = [list(row) for row in run.acceptance.tolist()]
    return {
        TABLE: wandb.Table(columns=columns, data=rows, log_mode="IMMUTABLE"),
        PICTURE: wandb.Image(Image.open(io.BytesIO(acceptance_png(run)))),
    }


def answers(run: RunRecord) -> dict[str, Any]:
    """classes.csv as one immutable table, and its confusion matrices; nothing where there is none."""
    import wandb
    from PIL import Image

    if not (confusions := read_confusions(run)):
        return {}
    header, *rows = csv.reader(io.StringIO((run.folder / CLASSES).read_text()))
    data = [[float(row[0]), row[1], *map(float, row[2:])] for row in rows]
    return {
        "classes": wandb.Table(columns=list[str | int](header), data=data, log_mode="IMMUTABLE"),
        CONFUSION: wandb.Image(Image.open(io.BytesIO(classes_png(confusions)))),
    }


def final(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """What a W&B sweep may optimise: the means of summary.json under names that no round has.

    For a metric that has a history, W&B's sweep service may take its best round (wandb/sweeps 672a363,
    src/sweeps/run.py, metric_extremum). `final/ma_minus_ba` is one number for "accurate, and without the backdoor".
    """
    ma, ba = metrics.get("eval/ma"), metrics.get("eval/ba")
    both = {} if ma is None or ba is None else {"final/ma_minus_ba": ma - ba}
    return {**{f"final/{k}": v for k, v in (("ma", ma), ("ba", ba)) if v is not None}, **both}


def by_class(run: RunRecord) -> dict[str, float]:
    """Accuracy by class over the rounds that summary.json is the mean of, under the names of the rounds'."""
    return {
        class_metric(name, label): float(share)
        for name, found in read_confusions(run).items()
        for label, share in zip(found.shown, found.accuracy, strict=True)
    }


def artifacts(kinds: Sequence[str], run: RunRecord, run_id: str) -> Iterator[Any]:
    """A `wandb.Artifact` of each kind; files are not copied, and those of the run folder never change."""
    import wandb

    for kind in kinds:
        family, pattern, remedy = ARTIFACTS[kind]
        if not (files := sorted(run.folder.glob(pattern))):
            log.warning("tracker.artifacts: the run has nothing for %s in %s/%s: %s", kind, run.folder, pattern, remedy)
            continue
        facts = {"identity": run.identity, **run.choices, "state_sha256": (run.summary or {}).get("state_sha256")}
        found = wandb.Artifact(f"{kind}-{run_id}", type=family, metadata=facts)
        for file in files:
            found.add_file(str(file), policy="immutable")
        yield found


@contextmanager
def staging(folder: Path) -> Iterator[None]:
    """Tables wait for their upload in the run folder instead of in $HOME, unless WANDB_DATA_DIR says where."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
