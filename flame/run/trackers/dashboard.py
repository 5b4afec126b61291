"""`python -m flame.report dashboard --project P`: a saved W&B workspace over the runs of a project.

A line of a panel is a cell (`flame.run.trackers.wandb.cell`, all of a config but its seed): the mean over the seeds
with a band of one standard deviation, over rounds. Without a key the workspace is written as JSON, in the form in which
W&B stores it. docs/dashboard.md tells the way from offline runs to here.
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

from flame.run.trackers.exhibits import PICTURE, TABLE

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
            print(workspace(given.project, given.entity or str(wandb.Api().default_entity)).save().url)
            return 0
        write(workspace(given.project, given.entity or ""), given.out)
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
    return parser.parse_args(arguments)


def workspace(project: str, entity: str) -> Workspace:
    """All panels, lines grouped by cell; nothing is sent."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Config, Ordering

    def plots(metrics: Mapping[str, str]) -> list[Any]:
        return [
            panels.LinePlot(title=title, x="round", y=[metric], groupby_aggfunc="mean", groupby_rangefunc="stddev")
            for metric, title in metrics.items()
        ]

    picture = panels.MediaBrowser(title="Accepted by each vector", media_keys=[PICTURE], num_columns=1)
    table = panels.WeavePanelSummaryTable(table_name=TABLE)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            *(ws.Section(name=name, panels=plots(metrics), is_open=True) for name, metrics in SECTIONS.items()),
            ws.Section(name="Acceptance tables", panels=[picture, table], is_open=True),
        ],
        settings=ws.WorkspaceSettings(max_runs=MOST_LINES),
        runset_settings=ws.RunsetSettings(groupby=[Config("cell")], order=[Ordering(Config("cell"), ascending=True)]),
    )


def write(dashboard: Workspace, path: Path) -> None:
    """The view as W&B would store it, in JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dashboard._spec, indent=2) + "\n")
