"""The W&B workspace: built and read back with the library's own model, and saved to a real server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_wandb import described, ended, written

from flame.federation import Round
from flame.report.__main__ import main
from flame.round.breakdown import class_rows
from flame.round.evaluate import Evaluation
from flame.run.trackers.dashboard import BY_CLASS, SECTIONS, TITLE, workspace
from flame.run.trackers.exhibits import CONFUSION, PICTURE, TABLE
from flame.run.trackers.files import RunFiles
from flame.run.trackers.wandb import WandB, cell

pytest.importorskip("wandb_workspaces")
ROOT = Path(__file__).parents[2]
KEY = "0123456789" * 4
Request = dict[str, Any]


@contextmanager
def wandb_server(project: str) -> Iterator[tuple[str, list[Request]]]:
    """As much of W&B's GraphQL as saving a view needs: its URL, and the views that it was sent."""
    views: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.path != "/graphql":  # telemetry
                return self.answer(404, {})
            request = json.loads(body)
            if "upsertView" not in request["query"]:
                return self.answer(200, {"data": {"viewer": {"id": "1", "entity": "me", "username": "me"}}})
            if request["variables"]["projectName"] != project:
                return self.answer(200, {"data": None, "errors": [{"message": "project not found"}]})
            views.append(request["variables"] | {"authorization": self.headers["Authorization"]})
            view = {"id": "1", "name": request["variables"]["name"]}
            return self.answer(200, {"data": {"upsertView": {"view": view, "inserted": True}}})

        def answer(self, status: int, content: Request) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", views
        finally:
            server.shutdown()


def without_ids(spec: Any) -> Any:
    """Panels are numbered at random."""
    if isinstance(spec, dict):
        return {key: without_ids(value) for key, value in spec.items() if key not in ("__id__", "id")}
    return [without_ids(item) for item in spec] if isinstance(spec, list) else spec


def panels(spec: Request) -> dict[str, list[Request]]:
    """Section -> panels of a stored view."""
    return {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where nobody has logged in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_without_a_key_the_specification_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """W&B's own model reads the file, and building from what it read gives the file again."""
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    path = tmp_path / "new" / "spec.json"
    assert main(["dashboard", "--project", "p", "--out", str(path)]) == 0
    told = capsys.readouterr().out
    assert "no W&B key" in told and str(path) in told and "WANDB_API_KEY" in told
    stored = json.loads(path.read_text())
    assert Workspace._from_model(View.model_validate(stored))._spec == stored
    assert without_ids(stored) == without_ids(workspace("p", "")._spec)


def test_each_line_is_a_cell_with_its_spread() -> None:
    spec = workspace("p", "e")._spec["spec"]
    (runs,) = spec["section"]["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "cell.value"}]
    found = panels(spec)
    assert list(found) == [*SECTIONS, BY_CLASS, "Runs beside one another", "Acceptance table"]
    for name, metrics in SECTIONS.items():
        lines = [panel["config"] for panel in found[name]]
        assert {line["metrics"][0]: line["chartTitle"] for line in lines} == metrics
        assert all(
            (line["xAxis"], line["groupAgg"], line["groupArea"]) == ("round", "mean", "stddev") for line in lines
        )


def test_two_defenses_beside_one_another(tmp_path: Path) -> None:
    """Their runs alone, with as many classes as are asked for, each with a line of both; read back by W&B's model."""
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    out = ["--out", str(tmp_path / "spec.json")]
    assert main(["dashboard", "--project", "p", "--defenses", "krum,fedavg", "--classes", "3", *out]) == 0
    stored = json.loads((tmp_path / "spec.json").read_text())
    assert Workspace._from_model(View.model_validate(stored))._spec == stored
    (runs,) = stored["spec"]["section"]["runSets"]
    (kept,) = runs["filters"]["filters"]
    assert (kept["key"]["name"], kept["op"], kept["value"]) == ("jobType", "IN", ["krum", "fedavg"])
    ma, ba, confusion, *lines = (panel["config"] for panel in panels(stored["spec"])[BY_CLASS])
    assert ma["metrics"] == ["class/ma/0", "class/ma/1", "class/ma/2"] and ba["metrics"][-1] == "class/ba/2"
    assert confusion["mediaKeys"] == [CONFUSION] and [line["metrics"] for line in lines] == [[m] for m in ma["metrics"]]


def test_what_the_panels_name_is_logged(tmp_path: Path, history: list[Round]) -> None:
    """By three rounds of FLAME, the last one evaluated by class, read back from what the tracker wrote."""
    info, tracker = described(tmp_path / "run"), WandB("p", None, "offline")
    answers = {"clean": Evaluation(3, 1.0, 4, answers={(0, 0, 0): 3, (0, 0, 1): 1})}
    answers["backdoor"] = Evaluation(1, 1.0, 2, answers={(0, 1, 1): 1, (0, 1, 0): 1})
    files = RunFiles(info.folder, 0)
    tracker.start(info, 0)
    for record in (*history[:2], replace(history[2], classes=class_rows(answers, 2))):
        files.log(record)
        tracker.log(record)
    tracker.finish({"metrics": {}, "state_sha256": ""})
    tracker.close(0)
    records = ended(written(info.folder)[0])
    logged = {name for row in records["history"] for name in row["item"]}
    named = {metric for metrics in SECTIONS.values() for metric in metrics}
    assert {"round", *named, "class/ma/0", "class/ba/0"} <= logged
    assert {f"{name}._type" for name in (TABLE, PICTURE, CONFUSION)} <= logged
    shown = {k: v for record in records["summary"] for k, v in record.get("update", {}).items()}
    assert (shown["class/ma/0"], shown["class/ba/0"]) == (0.75, 0.5)
    assert records["run"][0]["config"]["update"]["cell"] == cell(info)


def test_seeds_share_a_cell_and_nothing_else_does(tmp_path: Path) -> None:
    info = described(tmp_path)

    def changed(**settings: Any) -> str:
        return cell(type(info)(**{**vars(info), "config": {**info.config, **settings}}))

    assert cell(info).startswith("digits iid resnet8 badnets krum ")
    assert changed(seed=1) == changed(engine={"workers": 2}) == cell(info) != changed(rounds=4)


def test_with_a_key_it_is_saved_or_refused_in_words(tmp_path: Path) -> None:
    """In a process of its own, because W&B remembers the key; first a project that the server does not know."""
    script = "from flame.report.__main__ import main; print([main(['dashboard', '--project', p]) for p in ('q', 'p')])"
    with wandb_server("p") as (url, views):
        environment = os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url, "WANDB_ERROR_REPORTING": "false"}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.stdout.splitlines()[-1] == "[1, 0]", done.stderr
    assert "project not found" in done.stderr and "wandb sync" in done.stderr and "Traceback" not in done.stderr
    (view,) = views
    assert done.stdout.startswith(f"{url}/me/p?nw=")
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "p", TITLE)
    assert view["type"] == "project-view" and view["authorization"].startswith("Basic ")
    assert without_ids(json.loads(view["spec"])) == without_ids(workspace("p", "me")._spec["spec"])


def test_without_the_package_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search path holds no package at all, as where this one is not installed."""
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    assert main(["dashboard", "--project", "p"]) == 1
    assert capsys.readouterr().err.strip().endswith("pip install 'wandb-workspaces>=0.4.13'")
