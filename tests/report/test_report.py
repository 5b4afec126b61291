"""Runs read back, gathered and drawn: hand-worked tables and grids, and figures of every kind of run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from flame.federation import Round
from flame.report.__main__ import main
from flame.report.comparison import comparison, notes, printed
from flame.report.contrasts import UNITS
from flame.report.statistics import half_width
from flame.run.figure import FIGURE, draw_run, verdict_columns
from flame.run.folder import IDENTITY
from flame.run.panels import VERDICTS, verdict_grid
from flame.run.record import find_runs, gather, read_run
from flame.run.trackers.files import ACCEPTANCE, CHOICES, CONFIG, ENVIRONMENT, METRICS, SUMMARY, RunFiles, write_json

CHOSEN = {"dataset": "digits", "partition": "dirichlet", "model": "resnet8", "attack": "badnets", "defense": "fedavg"}
HEADER = "round,client,compromised,samples,accepted,shadow_weights_only,shadow_all_state"
NAN = math.nan


def write_run(
    folder: Path,
    seed: int = 0,
    rows: Sequence[Mapping[str, Any]] = ({"eval/ma": 0.5},),
    clients: str | None = None,
    summary: Mapping[str, Any] | None = None,
    alpha: float = 0.5,
    **choices: str,
) -> Path:
    """A run folder by hand; `clients` None: one in each round; `summary` None: unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed": seed, "rounds": 2, "clients_per_round": 4, "partition": {"alpha": alpha}, "paths": {"runs": "r"}}
    ours = {"_target_": "flame.data.datasets.digits", "root": str(folder)}  # a place divides no runs
    config |= {"dataset": ours, "model": {}, "attack": {}, "defense": {}}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    write_json(folder / CHOICES, CHOSEN | choices)
    write_json(folder / IDENTITY, {"identity": f"{seed}-{alpha}-{choices}"})
    write_json(folder / ENVIRONMENT, {"commit": "1234567", "dirty": False, "processor": "P"})
    lines = [json.dumps({"round": number, "filter/floor": 0.25, **row}) + "\n" for number, row in enumerate(rows)]
    (folder / METRICS).write_text("".join(lines))
    each = "".join(f"{number},1,0,9,1,1,1\n" for number in range(len(rows))) if clients is None else clients
    (folder / ACCEPTANCE).write_text(f"{HEADER}\n{each}" if each else "")
    if summary is not None:
        write_json(
            folder / SUMMARY, {"finished": True, "mean_of_last": 1, "metrics": {"filter/floor": 0.25, **summary}}
        )
    return folder


def test_what_is_recorded_is_read_back(tmp_path: Path, history: list[Round]) -> None:
    write_run(tmp_path)
    files = RunFiles(tmp_path, 0)
    for record in history:
        files.log(record)
    run = read_run(tmp_path)
    assert run.rounds == 3 and run.shadows == ["weights_only", "all_state"] and run.summary is None
    for name, column in run.metrics.items():
        expected = [record.number if name == "round" else record.metrics[name] for record in history]
        assert column.tolist() == pytest.approx(expected, nan_ok=True)
    accepted = np.concatenate([record.verdict.accepted.numpy() for record in history])
    assert (run.acceptance["accepted"] == accepted).all()
    assert (run.acceptance["client"] == np.concatenate([record.cohort.ids.numpy() for record in history])).all()


def test_undefined_and_missing_metrics_are_nan(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, rows=[{"eval/ma": 0.5, "eval/ba": None}, {"eval/ba": 0.25}]))
    assert run.metric("eval/ma").tolist() == pytest.approx([0.5, NAN], nan_ok=True)
    assert run.metric("eval/ba").tolist() == pytest.approx([NAN, 0.25], nan_ok=True)
    assert np.isnan(run.metric("no/such")).all() and len(run.metric("no/such")) == 2


def test_compromised_clients_are_on_top(tmp_path: Path) -> None:
    first = "0,3,0,9,1,1,1\n0,5,1,9,0,0,0\n0,8,0,9,0,0,0\n"
    second = "1,2,1,9,1,1,1\n1,4,1,9,0,0,0\n"
    run = read_run(write_run(tmp_path, rows=[{}, {}], clients=first + second))
    grid = verdict_grid(run.acceptance, "accepted")  # 0 benign rejected, 1 accepted, 2 malicious rejected, 3 accepted
    assert np.array_equal(grid, [[2, 3], [1, 2], [0, NAN]], equal_nan=True)


def test_runs_are_gathered_by_all_but_the_seed(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_run(tmp_path / f"a{seed}", seed=seed, summary={})
        write_run(tmp_path / f"b{seed}", seed=seed, alpha=0.1, summary={})
    write_run(tmp_path / "c", defense="krum", summary={})
    cells = gather(map(read_run, find_runs([tmp_path])))
    labels = [{"defense": "fedavg", "partition.alpha": "0.1"}, {"defense": "fedavg", "partition.alpha": "0.5"}]
    assert [cell.labels for cell in cells] == [*labels, {"defense": "krum", "partition.alpha": "0.5"}]
    assert [[run.config["seed"] for run in cell.runs] for cell in cells] == [[0, 1], [0, 1], [0]]
    assert cells[0].name == "fedavg partition.alpha=0.1"


def test_a_number_written_in_two_ways_does_not_divide_runs(tmp_path: Path) -> None:
    """As `alpha=1` and `alpha=1.0` on the command line, which have one identity."""
    write_run(tmp_path / "a", seed=0, alpha=1)
    write_run(tmp_path / "b", seed=1, alpha=1.0)
    (cell,) = gather(map(read_run, find_runs([tmp_path])))
    assert [run.config["seed"] for run in cell.runs] == [0, 1]


def test_of_equal_runs_the_finished_one_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "done", summary={"eval/ma": 0.5})
    write_run(tmp_path / "stopped-later")
    (cell,) = gather(map(read_run, find_runs([tmp_path, tmp_path / "done"])))
    assert [run.folder.name for run in cell.runs] == ["done"]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ([81.25], "81.2"),
        ([80, 82], "81.0 ± 12.7"),  # t(0.975, 1) = 12.706, s / sqrt(2) = 1
        ([1, 2, 3], "2.0 ± 2.5"),  # t(0.975, 2) = 4.303, s / sqrt(3) = 0.577
        ([NAN, NAN], "-"),
        ([50, NAN], "50.0 (1 of 2 seeds)"),
        ([], "-"),
    ],
)
def test_estimates_by_hand(sample: list[float], expected: str) -> None:
    assert UNITS["per_cent"].estimate(pd.Series(sample, dtype=float) / 100) == expected


def test_the_interval_holds_the_mean_95_times_in_100() -> None:
    samples = np.random.default_rng(0).normal(3, 2, (2000, 4))
    hits = [abs(sample.mean() - 3) <= half_width(sample) for sample in samples]
    assert abs(np.mean(hits) - 0.95) < 0.015  # three standard errors


def test_the_table(tmp_path: Path) -> None:
    metrics = {"eval/ma": 0.8125, "eval/ba": 0.05, "filter/benign_recall": 2 / 3, "filter/accepted": 3}
    write_run(tmp_path / "a", defense="flame", summary=metrics)
    write_run(tmp_path / "b", defense="fedavg", seed=0, summary={"eval/ma": 0.8})
    write_run(tmp_path / "c", defense="fedavg", seed=1)
    cells = gather(map(read_run, find_runs([tmp_path])))
    lines = [*printed(comparison(cells), 1).splitlines(), *notes(cells)]
    assert lines[0].split("  ")[0] == "defense"
    assert lines[2].split() == ["fedavg", "1", "of", "2", "80.0", "-", "-", "-", "-", "of", "4"]
    assert lines[3].split() == ["flame", "1", "81.2", "5.0", "66.7", "-", "3.0", "of", "4"]
    assert "unfinished: c (1 of 2 rounds)" in lines
    assert any("at most 75.0 %" in line for line in lines)


def colours(path: Path) -> set[str]:
    """The colours in a picture, as #RRGGBB."""
    from matplotlib.image import imread

    pixels = np.unique((imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3), axis=0)
    return {f"#{red:02X}{green:02X}{blue:02X}" for red, green, blue in pixels.tolist()}


ATTACKED = "0,1,1,9,1,0,1\n0,2,0,9,1,1,1\n0,3,0,9,0,1,0\n"
SHARES = {"xray/trunk/distance_share": 0.75, "xray/head/distance_share": 0.25}


@pytest.mark.parametrize(
    ("rows", "clients", "drawn"),
    [
        pytest.param([{"eval/ma": 0.5, "eval/ba": 0.9, **SHARES}], ATTACKED, set(VERDICTS.values()), id="one round"),
        pytest.param([{"eval/ma": 0.5}], "0,1,0,9,1,1,1\n", {VERDICTS["benign, accepted"]}, id="no attack, no X-ray"),
        pytest.param(
            [{"eval/ma": 0.5}, {}], "0,1,1,9,0,0,0\n1,1,1,9,0,0,0\n", {"#F7CDA8"}, id="not every round measured"
        ),
        pytest.param([], "", set(), id="no round yet"),
    ],
)
def test_figures_show_the_verdicts_that_occur(
    tmp_path: Path, rows: list[dict[str, float]], clients: str, drawn: set[str]
) -> None:
    found = colours(draw_run(write_run(tmp_path, rows=rows, clients=clients)))
    pale = {VERDICTS["benign, rejected"], VERDICTS["malicious, rejected"]}  # the others are colours of lines too
    assert drawn <= found and not (pale - drawn) & found


def test_a_figure_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(figure: object, target: Any, **options: object) -> None:
        (target.write if hasattr(target, "write") else target.write_bytes)(b"half")
        raise OSError("disk full")

    before = draw_run(write_run(tmp_path)).read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="disk full"):
        draw_run(tmp_path)
    assert (tmp_path / FIGURE).read_bytes() == before


def test_a_run_without_shadows_is_drawn(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / ACCEPTANCE).write_text("round,client,compromised,samples,accepted\n0,1,0,9,1\n")
    assert list(verdict_columns(read_run(tmp_path))) == ["accepted"]
    assert draw_run(tmp_path).stat().st_size > 10_000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"run{seed}", seed=seed, summary={"eval/ma": 0.5})
    write_run(tmp_path / "other", attack="none", defense="krum")
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "50.0 ± 0.0" in out and f"figure  {tmp_path / 'comparison.png'}" in out
    assert all(str(tmp_path / name) in out for name in ("run0", "run1", "other"))
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_folders_without_a_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, reason in ((tmp_path, "holds no run"), (tmp_path / "none", "does not exist")):
        assert main([str(path)]) == 1
        assert f"{path} {reason}" in capsys.readouterr().err


def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "good", summary={"eval/ma": 0.5})
    (write_run(tmp_path / "bad", seed=1) / METRICS).write_text("not json\n")
    assert main([str(tmp_path), "--figure", str(tmp_path / "new" / "f.png")]) == 1
    shown = capsys.readouterr()
    assert str(tmp_path / "bad") in shown.err and "good" in shown.out and (tmp_path / "new" / "f.png").exists()
