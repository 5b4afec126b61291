"""`wandb sweep`: the command lines that W&B's own agent makes of examples/wandb/, and a run that it starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_wandb import described, inspect, written
from warm import Warm

from flame.run.command import prepared
from flame.run.trackers.exhibits import final
from flame.run.trackers.files import SUMMARY
from flame.run.trackers.wandb import WandB

agents = pytest.importorskip("wandb.wandb_agent")
EXAMPLES = Path(__file__).parents[2] / "examples" / "wandb"
VARIABLES = ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_SWEEP_ID", "WANDB_PROJECT", "WANDB_ENTITY")
TINY = ("experiment=smoke", "engine=sequential", "train_samples=300", "rounds=1", "report_last=1")
Started = dict[str, Any]
Agent = Callable[[str, dict[str, Any]], Started]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """`agent(example, parameters)`: command and environment of the process that an agent of a sweep starts for them."""
    started: list[Started] = []

    class Process:
        def __init__(self, **asked: Any) -> None:
            started.append(asked)

    for name in VARIABLES:
        monkeypatch.setenv(name, "x")  # so that what the agent sets is taken back
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setattr(agents, "AgentProcess", Process)

    def starts(example: str, parameters: dict[str, Any]) -> Started:
        asked = yaml.safe_load((EXAMPLES / example).read_text())
        one = agents.Agent(api=None, queue=None, sweep_id="sweep1")
        one._sweep_command = asked["command"]
        args = {key: {"value": value} for key, value in parameters.items()}
        one._command_run({"run_id": f"run{len(started)}", "program": asked["program"], "args": args})
        return started[-1]

    return starts


def values(example: str) -> dict[str, list[Any]]:
    """Parameter -> values that a sweep may draw: those of a list, or both ends."""
    parameters = yaml.safe_load((EXAMPLES / example).read_text())["parameters"]
    return {key: p["values"] if "values" in p else [p["min"], p["max"]] for key, p in parameters.items()}


@pytest.mark.parametrize("example", ["grid.yaml", "bayes.yaml"])
def test_what_an_agent_types_is_a_command_of_ours(agent: Agent, example: str) -> None:
    """`prepared` composes it, or exits with a sentence; each value of the sweep once."""
    drawn = values(example)
    for i in range(max(map(len, drawn.values()))):
        line = agent(example, {key: some[i % len(some)] for key, some in drawn.items()})["command"]
        assert line[:3] == ["/usr/bin/env", "python", "train.py"]
        found = prepared(line[3:])
        assert "tracker.mode=online" in found and not [word for word in found if word.endswith("=None")]


def test_a_null_of_a_sweep_is_one() -> None:
    assert prepared(
        ["defense.cluster.min_cluster_size=None", "shadow=['weights_only']", "evaluate.per_class=True"]
    ) == [
        "defense.cluster.min_cluster_size=null",
        "shadow=['weights_only']",
        "evaluate.per_class=True",
    ]


def test_the_run_is_the_agent_s(agent: Agent, tmp_path: Path, command: Warm) -> None:
    """Its id, its sweep and the number that is optimised; once more when the finished run is asked for again."""
    drawn = {"defense": "flame_weights_only", "defense.noise.factor": 0, "defense.cluster.min_cluster_size": None}
    for number in range(2):
        started = agent("grid.yaml", {**drawn, "seed": 1})
        environment = {**started["env"], "WANDB_MODE": "offline", "FLAME_RUNS": str(tmp_path / "runs")}
        done = command([*started["command"][2:], *TINY], environment)
        assert done.returncode == 0, done.stderr
        told = done.stdout + done.stderr
        assert "learns nothing from a run that is written offline" in told and "Ignoring" not in told
        assert ("is finished; resume=false" in told) == bool(number)
    (folder,) = (tmp_path / "runs").glob("*-s1-*")
    first, again = written(folder)
    assert first.parent.name.endswith("-run0") and again.parent.name.endswith("-run1")
    records, metrics = inspect(first), json.loads((folder / SUMMARY).read_text())["metrics"]
    (run,) = records["run"]
    assert (run["run_id"], run["sweep_id"], run["project"]) == ("run0", "sweep1", "x")
    assert run["config"]["update"]["defense.noise.factor"] == 0
    shown = {key: value for record in records["summary"] for key, value in record.get("update", {}).items()}
    assert shown["final/ma_minus_ba"] == pytest.approx(metrics["eval/ma"] - metrics["eval/ba"])
    assert not [name for row in records["history"] for name in row["item"] if name.startswith("final/")]
    assert again.stat().st_size > 0.5 * first.stat().st_size  # the same rounds, tables and means


def test_project_entity_and_id_are_the_agent_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B would ignore others, with a warning for each."""
    info = described(tmp_path / "run")
    assert WandB("p", "e", "offline")._place(info) == {"project": "p", "entity": "e", "id": info.identity}
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert WandB("p", "e", "offline")._place(info) == {}


def test_what_a_sweep_may_optimise() -> None:
    assert final({"eval/ma": 0.75, "eval/ba": 0.25, "x": 1.0}) == {
        "final/ma": 0.75,
        "final/ba": 0.25,
        "final/ma_minus_ba": 0.5,
    }
    assert final({"eval/ma": 0.75, "eval/ba": None}) == {"final/ma": 0.75}
