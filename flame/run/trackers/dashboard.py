"""`python -m flame.report dashboard --project P`: a saved W&B workspace over the runs of a project.

A line of a panel is a cell (`flame.run.trackers.wandb.cell`, all of a config but its seed): the mean over the seeds
with a band of one standard deviation, over rounds. Without a key the workspace is written as JSON, in the form in which
W&B stores it. docs/guides/wandb.md tells the way from offline runs to here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flame.round.checkpoint import write_atomically
from flame.run.trackers.exhibits import CONFUSION, PICTURE, TABLE

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

PACKAGE = "wandb-workspaces>=0.4.13"
TITLE = "FLAME: who is accepted, and what it costs"
MOST_LINES = 100  # cells in one panel; W&B's default of 10 would drop some without a word
BLOCKS = (
    "trunk",
    "head",
    "running_mean",
    "running_var",
)  # of `flame.geometry.layout`; our models have no other buffers
CLASSES = 10  # with a panel of their own, unless `--classes` says otherwise
SETS = {"ma": "clean test set", "ba": "triggered test set, by the true class"}
BY_CLASS = "Accuracy by class, of runs with evaluate.per_class=true"
VECTORS = ("weights_only", "all_state")  # what conf/config.yaml records as `shadow`

SECTIONS: Mapping[str, Mapping[str, str]] = {  # section -> metric -> title of its panel
    "Filter quality": {
        "filter/benign_recall": "Benign clients accepted (share)",
        "filter/floor": "Benign clients that a set of n//2 + 1 must reject (share)",
        "filter/malicious_recall": "Malicious clients rejected (share)",
        "filter/accepted": "Clients accepted",
        "filter/benign_precision": "Accepted that are benign (share)",
        "filter/malicious_precision": "Rejected that are malicious (share)",
    },
    "Accuracy": {
        "eval/ma": "MA: main task (share)",
        "eval/ba": "BA: backdoor (share)",
        "eval/ma_loss": "Loss, clean test set",
        "eval/ba_loss": "Loss, triggered test set",
    },
    "Both clustering vectors on the same updates": {
        f"{family}/{vector}{name}": f"{vector}: {title}"
        for family, name, title in (
            ("shadow", "/benign_recall", "benign clients accepted (share)"),
            ("shadow", "/malicious_recall", "malicious clients rejected (share)"),
            ("auc", "", "AUC of its outlier scores"),
        )
        for vector in VECTORS
    },
    "X-ray": {
        f"xray/{block}/{name}_share": f"{block}: share of {title}"
        for name, title in (("distance", "pairwise squared distances"), ("norm", "squared norms"))
        for block in BLOCKS
    },
    "FLAME, guard and training": {
        "flame/clip_bound": "Clip bound S_t",
        "flame/clipped_share": "Accepted clients that were clipped (share)",
        "flame/noise_std": "Noise, standard deviation",
        "flame/min_running_var": "Smallest running variance",
        "guard/nonfinite": "Updates with NaN or Inf",
        "guard/oversized": "Updates too long for float32",
        "guard/implausible": "Implausible updates",
        "guard/floored": "Running variances floored at 0",
        "guard/kept_model": "Rounds that kept the old model",
        "train/loss": "Loss of benign local training",
        "time/train": "Training (seconds)",
        "time/aggregate": "Defense (seconds)",
    },
}


def main(arguments: Sequence[str]) -> int:
    """Save the workspace and print its URL; without a key write it to a file. The exit code: 1 where neither works."""
    given = parse(arguments)
    if find_spec("wandb_workspaces") is None:
        print(f"the dashboard needs a package that is not installed: pip install '{PACKAGE}'", file=sys.stderr)
        return 1
    import wandb

    try:
        if wandb.login(prompt=False, verify=False):
            print(asked(given, given.entity or str(wandb.Api().default_entity)).save().url)
            return 0
        write(asked(given, given.entity or ""), given.out)
    except Exception as error:  # whatever W&B raises: its errors have no common base
        print(f"the dashboard was not saved: {error}\n(the project must exist: wandb sync makes it)", file=sys.stderr)
        return 1
    print(f"no W&B key is configured: the specification is in {given.out}")
    print("to publish it, run `wandb login` or set WANDB_API_KEY (https://wandb.ai/authorize), then the same command")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flame.report dashboard", description="A saved W&B workspace.")
    parser.add_argument("--project", required=True, help="the W&B project of the runs (tracker.project)")
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="a user or team; default: your own")
    parser.add_argument("--out", type=Path, default=Path("dashboard.json"), help="written without a key (%(default)s)")
    parser.add_argument("--defenses", default="", help="only their runs, separated by commas; default: all")
    parser.add_argument("--classes", type=int, default=CLASSES, help="of evaluate.per_class: how many (%(default)s)")
    return parser.parse_args(arguments)


def asked(given: argparse.Namespace, entity: str) -> Workspace:
    """The view that a command line asks for."""
    return workspace(given.project, entity, list(filter(None, given.defenses.split(","))), given.classes)


def workspace(project: str, entity: str, defenses: Sequence[str] = (), classes: int = CLASSES) -> Workspace:
    """All panels, lines grouped by cell; nothing is sent."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Config, Metric, Ordering

    def plots(metrics: Mapping[str, str]) -> list[Any]:
        return [
            panels.LinePlot(title=title, x="round", y=[metric], groupby_aggfunc="mean", groupby_rangefunc="stddev")
            for metric, title in metrics.items()
        ]

    def bars(kind: str, images: str) -> Any:
        names: list[Any] = [f"class/{kind}/{label}" for label in range(classes)]
        title = f"{kind.upper()} of each class, mean of the last rounds: {images}"
        return panels.BarPlot(title=title, metrics=names, groupby_aggfunc="mean", groupby_rangefunc="stddev")

    def pictures(title: str, key: str) -> Any:
        return panels.MediaBrowser(title=title, media_keys=[key], num_columns=2)  # runs beside one another

    by_class = {f"class/ma/{label}": f"Class {label}: accuracy on its clean samples" for label in range(classes)}
    answers = pictures("Who is taken for whom", CONFUSION)
    of_classes = [*(bars(*each) for each in SETS.items()), answers, *plots(by_class)] if classes else []
    both = [panels.RunComparer(diff_only="split"), pictures("Accepted by each vector", PICTURE)]
    order = [Ordering(Config("cell"), ascending=True)]
    kept = [Metric("JobType").isin(list(defenses))] if defenses else []
    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            *(ws.Section(name=name, panels=plots(metrics), is_open=True) for name, metrics in SECTIONS.items()),
            ws.Section(name=BY_CLASS, panels=of_classes, is_open=bool(of_classes)),
            ws.Section(name="Runs beside one another", panels=both, is_open=True),
            ws.Section(name="Acceptance table", panels=[panels.WeavePanelSummaryTable(table_name=TABLE)], is_open=True),
        ],
        settings=ws.WorkspaceSettings(max_runs=MOST_LINES),
        runset_settings=ws.RunsetSettings(groupby=[Config("cell")], order=order, filters=kept),
    )


def write(dashboard: Workspace, path: Path) -> None:
    """The view as W&B would store it, in JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(dashboard._spec, indent=2) + "\n").encode())
