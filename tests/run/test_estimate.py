"""`train.py --estimate`: the jobs that a sweep would run, costs worked by hand, and the real thing, tiny."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException, HydraException

from flame.run.config import register
from flame.run.estimate import Cost, Job, clean_rounds, estimate, planned, told
from flame.run.sweep import standing

TINY = ("experiment=smoke", "engine=sequential", "tracker=files", "train_samples=300", "rounds=24", "evaluate_every=24")
SWEPT = ("attack=none,badnets", "defense=fedavg,flame_all_state", "seed=0,1")
COST = Cost(start=10.0, round=2.0, evaluation=5.0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Eight jobs."""
    register()
    return list(planned("config", [*TINY, *SWEPT, f"paths.runs={tmp_path_factory.mktemp('runs')}"], multirun=True))


def test_kinds_are_what_costs_differently(found: list[Job]) -> None:
    assert [job.kind for job in found] == ["attack=none"] * 4 + ["attack=badnets"] * 4
    assert not any(job.finished for job in found)


def test_a_run_costs_its_rounds_and_evaluations(found: list[Job]) -> None:
    """24 rounds, of which the last two are reported and so evaluated."""
    assert COST.run(found[0].cfg) == 10 + 23 * 2 + 2 * 5 == 66


def test_options_found_by_a_pattern(tmp_path: Path) -> None:
    """Which they are, only Hydra's own loader knows."""
    register()
    words = [*TINY, "defense=glob([flame_a*,flame_w*])", f"paths.runs={tmp_path}"]
    chosen = [job.cfg.hydra.runtime.choices.defense for job in planned("config", words, multirun=True)]
    assert chosen == ["flame_all_state", "flame_weights_only"]


def test_a_pattern_that_matches_nothing() -> None:
    register()
    with pytest.raises(CompactHydraException, match=r"^defense=glob\(flam_\*\) matches no option"):
        list(planned("config", ["experiment=smoke", "defense=glob(flam_*)"], multirun=True))


def test_a_list_of_seeds_for_one_run() -> None:
    """Hydra's own sentence."""
    register()
    with pytest.raises(HydraException, match="add --multirun"):
        list(planned("config", ["experiment=smoke", "seed=0,1"], multirun=False))


def test_seeds_as_hydra_takes_them() -> None:
    register()
    assert [job.cfg.seed for job in planned("config", ["experiment=smoke", "seed='7',8"], multirun=True)] == [7, 8]


def test_what_is_finished_costs_nothing(found: list[Job]) -> None:
    """Six runs of 66 s, one after the other."""
    text = told([replace(job, finished=i in (0, 5)) for i, job in enumerate(found)], {"attack=none": COST})
    assert text.startswith("8 runs, 2 of them finished in ") and "; 144 rounds to go" in text
    assert "attack=none           3    10.00     2.00          5.00   66 s" in text
    assert "3 runs of kinds that were not measured, as the others" in text
    assert text.endswith("About 7 min left, 1 at a time.")


def test_clean_rounds_are_counted_once_for_all_that_share_them(tmp_path: Path) -> None:
    """Two starts of 30 rounds, one for each seed, whatever attack and defense: 120 s, after eight runs of 66 s."""
    words = [*TINY, *SWEPT, "start=trained", "start.rounds=30", f"paths.runs={tmp_path}"]
    found = list(planned("config", words, multirun=True))
    assert clean_rounds(found) == [30, 30]
    text = told(found, {"attack=none": COST})
    assert "\n60 clean rounds are played once, about 2 min; those on disk are not." in text
    assert text.endswith("About 11 min left, 1 at a time.")


def test_a_run_that_waits_for_ma_is_evaluated_in_every_round(found: list[Job]) -> None:
    cfg = found[0].cfg.copy()
    cfg.attack_rounds.after_ma = 0.7
    assert COST.run(cfg) == 10 + 23 * 2 + 24 * 5


def test_nothing_is_left_of_a_finished_sweep(found: list[Job]) -> None:
    text = told([replace(job, finished=True) for job in found], {})
    assert text.startswith("8 runs, 8 of them finished in ") and text.endswith("; 0 rounds to go")


def test_measured_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run is found under the name that the sweep would give it, and nothing is written."""
    words = [*TINY, "seed=0,1", f"paths.runs={tmp_path}"]
    assert estimate(["--estimate", "-m", *words]) == 0
    before = capsys.readouterr().out
    assert before.startswith("2 runs, 0 of them finished") and "\nall  " in before and not list(tmp_path.iterdir())
    first = next(planned("config", words, multirun=True)).cfg
    first.seed = 0
    folder = Path(first.hydra.run.dir)
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"finished": True}))
    assert [job.finished for job in planned("config", words, multirun=True)] == [True, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attack.speed=3"], "speed"),
        (["rounds=many"], "rounds='many' has the wrong type: must be a whole number"),
        (["seed=some"], "seed='some' has the wrong type: must be a whole number"),
        ([*TINY, "threads=0"], "threads=0 is out of range: must be a whole number >= 1"),
        ([*TINY, "engine=ray"], "engine=ray needs the extra `ray`"),
    ],
)
def test_what_a_run_would_refuse_is_told_in_words(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert estimate(["--estimate", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("notes", "text"),
    [
        ("s", "sweep: 1 of 10 runs, 2 min elapsed"),
        ("srr", "sweep: 3 of 10 runs, 2 min elapsed, about 7 min left"),  # 60 s each, 7 to go
        ("srrrrrrrrr", "sweep: 10 of 10 runs, 2 min elapsed, about 0 s left"),
    ],
)
def test_the_standing_of_a_sweep(notes: str, text: str) -> None:
    """After 120 s; s: skipped or failed, r: ran."""
    assert standing([{"ran": note == "r"} for note in notes], 10, 120.0) == text
