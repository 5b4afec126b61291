"""The figures of the question: what they draw is what the runs say, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from test_report import write_run

from flame.federation import Round
from flame.report.__main__ import main
from flame.report.figures import AXES, CURVES, FIGURES, draw_phases, draw_xray
from flame.report.painting import benign_rounds, chosen, draw_rejections, facts, interval, levels
from flame.report.recipes import recipes
from flame.run.build import build
from flame.run.holdings import holdings
from flame.run.record import RunRecord, read_run
from flame.run.trackers.files import CONFIG, RunFiles

ROWS = [
    {
        "shadow/weights_only/benign_recall": 0.5,
        "shadow/all_state/benign_recall": 0.25,
        "xray/trunk/distance_share": 0.75,
    },
    {
        "shadow/weights_only/benign_recall": 1.0,
        "shadow/all_state/benign_recall": 0.75,
        "xray/trunk/distance_share": 0.25,
    },
]


def written(
    folder: Path, alpha: float = 0.5, seed: int = 0, pdr: float | None = None, ma: float = 0.8, **choices: str
) -> RunRecord:
    """A finished run of two rounds."""
    summary = {"eval/ma": ma, **({} if choices.get("attack") == "none" else {"eval/ba": ma - 0.5})}
    write_run(folder, seed=seed, rows=ROWS, summary=summary, alpha=alpha, **choices)
    config: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text())
    config["attack"] = {} if pdr is None else {"poisoned_data_rate": pdr}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    return read_run(folder)


def of_seeds(folder: Path, *seeds: int, **settings: Any) -> list[RunRecord]:
    return [written(folder / f"{settings}-{seed}".replace("/", "_"), seed=seed, **settings) for seed in seeds]


def heights(figure: Figure) -> dict[str, list[list[float]]]:
    """Title of a panel -> the heights of each marked line with an interval or without."""
    found: dict[str, list[list[float]]] = {}
    for ax in figure.axes:
        lines = [bar.lines[0].get_ydata() for bar in ax.containers if hasattr(bar, "has_yerr")]
        found[ax.get_title()] = [np.asarray(line).round(6).tolist() for line in lines]
    return found


def caption(figure: Figure) -> str:
    """What stands below."""
    return " ".join(figure.get_supxlabel().split())


def test_interval_by_hand() -> None:
    """10, 20 and 30: mean 20, half width t(0.975, 2) * 10 / sqrt(3) = 4.303 * 5.774; two values have no interval."""
    ax = Figure().subplots()
    interval(ax, np.arange(2.0), np.array([[10.0, 60], [20, np.nan], [30, 80]]), ("red", "-", "o"), "x")
    (bar,) = ax.containers
    line, _, (segments,) = bar.lines
    assert line.get_ydata().tolist() == [20, 70]
    drawn = [ends for ends in segments.get_segments() if len(ends)]
    assert len(drawn) == 1 and drawn[0][:, 1] == pytest.approx([20 - 24.841, 20 + 24.841], abs=1e-3)


def test_levels_go_from_even_to_skewed(tmp_path: Path) -> None:
    runs = [
        *of_seeds(tmp_path, 0, alpha=0.15, attack="dba"),
        *of_seeds(tmp_path, 0, alpha=0.5, attack="none"),
        *of_seeds(tmp_path, 0, alpha=9.0, attack="badnets", partition="iid"),
    ]
    found = pd.DataFrame(map(facts, runs))
    assert levels(found, "alpha") == [math.inf, 0.5, 0.15]
    assert levels(found, "attack") == ["none", "badnets", "dba"]


def test_runs_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    runs = [*of_seeds(tmp_path, 0, 1, pdr=0.1), *of_seeds(tmp_path, 0, pdr=0.5)]
    assert len(chosen(runs, "pdr", defense=["fedavg"])) == 3
    with pytest.raises(ValueError, match=r"several runs have .* = \(0.5, 0\): give the folder"):
        chosen(runs, "alpha", defense=["fedavg"])
    with pytest.raises(ValueError, match="no finished run has defense=krum and partition=iid or dirichlet"):
        chosen(runs, "alpha", defense=["krum"])


def test_benign_recall_is_that_of_the_shadows(tmp_path: Path) -> None:
    """Means over both rounds: 75 and 50; the bound is 1 - floor; FLAME's own runs do not count."""
    runs = [*of_seeds(tmp_path, 0, 1), *of_seeds(tmp_path, 0, defense="flame_all_state")]
    figure = FIGURES["benign_recall"](runs)
    assert heights(figure) == {"attack: badnets": [[75], [50]]}
    assert [75, 75] in [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert "n = 2 seeds for each attack, defense, alpha; digits, resnet8; 2 rounds of 4 clients" in caption(figure)


def test_accuracies_are_those_reported(tmp_path: Path) -> None:
    runs = [*of_seeds(tmp_path, 0, ma=0.8), *of_seeds(tmp_path, 0, ma=0.6, defense="flame_weights_only")]
    runs += of_seeds(tmp_path, 0, ma=0.7, attack="none")
    ma, ba = (FIGURES["accuracy"](runs).axes[k] for k in (1, 3))
    for ax, expected in ((ma, [80, 60]), (ba, [30, 10])):
        assert [bar.lines[0].get_ydata().item() for bar in ax.containers] == pytest.approx(expected)
    assert "no backdoor" in [text.get_text() for text in FIGURES["accuracy"](runs).axes[2].texts]


def test_xray_stacks_the_shares(tmp_path: Path) -> None:
    figure = draw_xray(of_seeds(tmp_path, 0, 1))
    bar = figure.axes[0].patches[0]
    assert bar.get_height() == 50  # 75 and 25 per cent in the two rounds
    assert "trunk" in figure.legends[0].get_texts()[0].get_text()


def test_the_phase_diagram_names_what_was_not_run(tmp_path: Path) -> None:
    runs = [
        *of_seeds(tmp_path, 0, 1, alpha=0.5, pdr=0.1, ma=0.9),
        *of_seeds(tmp_path, 0, 1, alpha=0.5, pdr=0.5, ma=1.0),
        *of_seeds(tmp_path, 0, 1, alpha=0.15, pdr=0.1, ma=0.7),
    ]
    figure = draw_phases(runs)
    assert [text.get_text() for text in figure.axes[0].texts] == ["40", "50", "20", "-"]
    with pytest.raises(ValueError, match="a map needs two at least"):
        draw_phases(runs[:2])


def test_skew_is_that_of_the_data_that_were_dealt(tmp_path: Path, tiny: Any) -> None:
    """Dealt out again from config.yaml: `label_groups` with q = 1 leaves each client a single label of ten."""
    cfg = tiny("partition=label_groups", "partition.q=1")
    sizes = build(cfg).task.shards.sizes[: cfg.clients].tolist()
    clients = "".join(f"0,{client},0,{size},1,1,1\n" for client, size in enumerate(sizes))
    write_run(tmp_path, summary={}, clients=clients)
    (tmp_path / CONFIG).write_text(yaml.safe_dump(OmegaConf.to_container(cfg, resolve=True)))
    skews = holdings(read_run(tmp_path)).skew
    assert skews.shape == (cfg.clients,) and sorted(1 - skews) == pytest.approx([0.1] * 10, abs=0.02)
    assert (1 - skews).sum() == pytest.approx(1)  # a client's own share of its label is that label's of all


def test_rejections_are_counted_by_client(tmp_path: Path, tiny: Any, history: list[Round]) -> None:
    write_run(tmp_path, summary={}, partition="iid")
    (tmp_path / CONFIG).write_text(yaml.safe_dump(OmegaConf.to_container(tiny("defense=fedavg"), resolve=True)))
    files = RunFiles(tmp_path, 0)
    for record in history:
        files.log(record)
    run = read_run(tmp_path)
    clients, skew, rejected = benign_rounds(run, "all_state")
    expected = sum(int((~r.shadows["all_state"].accepted & ~r.cohort.compromised).sum()) for r in history)
    assert rejected.sum() == expected and len(clients) == sum(int((~r.cohort.compromised).sum()) for r in history)
    assert (skew == holdings(run).skew[clients]).all()
    assert "n = 1 seed for" in caption(draw_rejections([run]))


def test_the_command_draws_what_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_seeds(tmp_path / "runs", 0)
    assert main(["figures", str(tmp_path / "runs"), "--out", str(tmp_path / "figures")]) == 0
    shown = capsys.readouterr()
    assert "phases is left out: " in shown.err and "the recorded config has no " in shown.err
    assert f"figure  {tmp_path / 'figures' / 'xray.png'}" in shown.out
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"accuracy", "benign_recall", "xray"}


# over the one setting that a recipe sweeps


def swept(folder: Path) -> list[RunRecord]:
    """Averaging and a FLAME at two PMRs, three seeds each: MA 60, 70, 80 at the first, 10 lower at the second."""
    runs = []
    for defense in ("fedavg", "flame_all_state"):
        for rate, low in ((0.0, 0.0), (0.4, 0.1)):
            for seed in range(3):
                (run,) = of_seeds(folder / f"{defense}-{rate}", seed, defense=defense, ma=0.6 + 0.1 * seed - low)
                runs.append(replace(run, config={**run.config, "poisoned_model_rate": rate}))
    return runs


def test_the_figure_shows_means_at_equal_steps(tmp_path: Path) -> None:
    figure = FIGURES["setting"](swept(tmp_path))
    ma = figure.axes[0]
    assert [tick.get_text() for tick in ma.get_xticklabels()] == ["0", "0.4"]
    for bar in ma.containers:
        assert np.asarray(bar.lines[0].get_ydata()) == pytest.approx([70, 60])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedavg", "flame_all_state"]
    assert "n = 3 seeds for each defense, poisoned_model_rate" in caption(figure)
    first = FIGURES["setting"](swept(tmp_path)[1:]).axes[0].containers[0].lines[0]  # a seed was not run
    assert np.asarray(first.get_ydata()) == pytest.approx([75, 60])


def test_the_figure_wants_one_setting(tmp_path: Path) -> None:
    runs = swept(tmp_path)
    with pytest.raises(ValueError, match="vary none of"):
        FIGURES["setting"](runs[:3])
    both = [replace(run, config={**run.config, "clients_per_round": 4 + i % 2}) for i, run in enumerate(runs)]
    with pytest.raises(ValueError, match="vary poisoned_model_rate, clients_per_round of"):
        FIGURES["setting"](both)
    with pytest.raises(ValueError, match=r"give those of a recipe with partition\.q"):
        FIGURES["setting"](runs, x="partition.q")
    with pytest.raises(ValueError, match=r"several runs have \('defense', 'poisoned_model_rate', 'seed'\) ="):
        FIGURES["setting"]([*runs, runs[0]])


def test_the_figures_of_the_recipes_are_there_and_of_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {name: spec for recipe in recipes().values() for name, spec in recipe.own.get("figures", {}).items()}
    assert {spec["like"] for spec in wanted.values()} == FIGURES.keys() and CURVES.keys() <= FIGURES.keys()
    assert {spec["x"] for spec in wanted.values() if "x" in spec} == AXES.keys() - {"alpha"}
    folder = Path(__file__).parents[2] / "results" / "figures"
    assert {path.stem for path in folder.iterdir()} == wanted.keys()
    of_seeds(tmp_path / "runs", 0)
    assert main(["figures", str(tmp_path / "runs"), "--recipe", "vector_question_digits", "--out", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == {"digits_benign_recall", "digits_accuracy"}
    assert main(["figures", str(tmp_path / "runs"), "--recipe", "none"]) == 1
    assert "there is no recipe none: known are" in capsys.readouterr().err
