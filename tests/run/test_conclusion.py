"""After the last round nothing ends a run: it is finished once its summary is there, whatever becomes of its views."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure
from omegaconf import DictConfig
from test_wandb import described

from flame.engine.sequential import Sequential
from flame.federation import Round
from flame.run import experiment
from flame.run.config import NAMED
from flame.run.experiment import conclude, execute
from flame.run.figure import FIGURE, own_settings
from flame.run.folder import finished
from flame.run.revisit import revisit
from flame.run.stop import stop_on_signals
from flame.run.trackers.base import NoView, RunInfo
from flame.run.trackers.files import CHOICES, SUMMARY, RunFiles
from flame.run.trackers.wandb import WandB

ROOT = Path(__file__).parents[2]


class Broken(NoView):
    """A view that fails at the end, in ways that nobody has thought of."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.seen = folder, False

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.seen = self.folder is not None and finished(self.folder)
        raise AttributeError("'NoneType' object has no attribute 'upload'")

    def close(self, exit_code: int) -> None:
        raise ZeroDivisionError


@pytest.fixture
def info(tmp_path: Path, history: list[Round]) -> RunInfo:
    """A run folder after three rounds, as it is before its summary."""
    info = described(tmp_path / "run")
    files = RunFiles(info.folder, 0)
    for record in history:
        files.log(record)
    return info


def summary_of(info: RunInfo) -> dict[str, Any]:
    return RunFiles(info.folder, 3).summary(2, "f00d", {"identity": info.identity})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_summary_is_written_before_any_view(info: RunInfo, caplog: pytest.LogCaptureFixture) -> None:
    view = Broken(info.folder)
    conclude(info.folder, summary_of(info), view)
    assert view.seen and finished(info.folder) and (info.folder / FIGURE).stat().st_size > 10_000
    (warning,) = warnings(caplog)
    assert "AttributeError: 'NoneType'" in warning and "the record of the run is complete" in warning


def test_a_figure_that_fails_is_one_warning(
    info: RunInfo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Figure, *_: object, **__: object) -> None:
        raise RuntimeError("Failed to process string with tex\nbecause latex could not be found")

    monkeypatch.setattr(Figure, "savefig", fail)
    conclude(info.folder, summary_of(info), NoView())
    assert finished(info.folder)
    (warning,) = warnings(caplog)
    assert warning.startswith("figure.png failed (RuntimeError: Failed to process string with tex because")


def test_a_run_whose_engine_and_view_do_not_close_is_finished(
    tiny: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny("rounds=2")
    config = {"rounds": 2, "seed": 0, "clients_per_round": 5, **{key: {} for key in NAMED}}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "identity.json").write_text('{"identity": "i"}')
    info = RunInfo("run", folder, "i", config, described(tmp_path / "a").choices, "run")

    def fail(self: object) -> None:
        raise OSError("a worker did not end")

    monkeypatch.setattr(Sequential, "close", fail)
    monkeypatch.setattr(experiment, "make", lambda cfg, group: Broken())
    with stop_on_signals() as stop:
        execute(cfg, info, stop)
    assert finished(folder) and json.loads((folder / SUMMARY).read_text())["rounds"] == 2
    assert (folder / FIGURE).exists() and (folder / CHOICES).exists()
    assert [text.split(" failed (")[0] for text in warnings(caplog)] == [
        "model.safetensors",  # the config above names no model
        "the end of the tracker's view",
        "closing the tracker's view",
        "closing the engine",
    ]


def test_a_figure_that_was_not_drawn_is_drawn_when_the_command_is_given_again(info: RunInfo) -> None:
    conclude(info.folder, summary_of(info), NoView())
    before = (info.folder / FIGURE).read_bytes()
    (info.folder / FIGURE).unlink()
    revisit(info.folder)
    assert (info.folder / FIGURE).read_bytes() == before


def test_an_error_before_the_summary_is_still_an_error(info: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        conclude(info.folder, summary_of(info), NoView())
    assert not finished(info.folder)


def test_wandb_that_ends_with_an_error_ends_no_run(info: RunInfo, caplog: pytest.LogCaptureFixture) -> None:
    class Service:
        summary: dict[str, Any] = {}  # noqa: RUF012

        def log(self, *_: object, **__: object) -> None:
            return None

        def finish(self, exit_code: int) -> None:
            raise ConnectionResetError("the service has gone")

    view = WandB("p", None, "offline")
    view._folder, view._run = info.folder, Service()
    conclude(info.folder, summary_of(info), view)
    view.close(0)
    assert finished(info.folder)
    (warning,) = warnings(caplog)
    assert "ConnectionResetError" in warning


def test_figures_do_not_see_what_the_user_has_set() -> None:
    before = matplotlib.rcParams["text.usetex"], matplotlib.rcParams["font.size"]
    try:
        matplotlib.rcParams.update({"text.usetex": True, "font.size": 40.0})
        with own_settings():
            assert not matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 10
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 40
    finally:
        matplotlib.rcParams.update({"text.usetex": before[0], "font.size": before[1]})


def test_every_figure_of_the_project_has_them() -> None:
    """Whoever saves a figure does so inside `own_settings`, or is called inside it by its room's command."""
    saving = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "flame").rglob("*.py") if ".savefig(" in path.read_text()
    )
    assert saving == [
        "flame/arena/figure.py",
        "flame/data/sheet.py",
        "flame/partition/figure.py",
        "flame/report/curves.py",
        "flame/report/figures.py",
        "flame/run/figure.py",
    ]
    for name in (saving[0], *saving[3:], "flame/data/__main__.py", "flame/partition/__main__.py"):
        assert "own_settings()" in (ROOT / name).read_text()


def test_a_real_run_under_a_user_s_settings(tmp_path: Path) -> None:
    """Through a link from elsewhere, with settings that matplotlib cannot use, a reader who leaves, `~` and umlauts."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    (tmp_path / "link.py").symlink_to(ROOT / "train.py")
    words = ["experiment=smoke", "-m", "engine=pool", "--config-dir", str(tmp_path), "engine.workers=1", "rounds=2"]
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "MATPLOTLIBRC": str(tmp_path),
        "MPLBACKEND": "module://nowhere",
        "PYTHONSAFEPATH": "1",
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(tmp_path / "link.py"), *words, "train_samples=300", "paths.runs=~/Läufe"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head -0`
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert "Traceback" not in said and "Error" not in said
    (run,) = (tmp_path / "Läufe").glob("digits-*")
    assert finished(run) and (run / FIGURE).stat().st_size > 10_000 and (run / "train.log").exists()
    assert not (run / "wandb").exists()
