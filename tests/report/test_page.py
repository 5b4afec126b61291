"""report.html: the numbers in it are those of the files, drawn and stepped through in a real browser."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Page, browser
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from test_report import write_run

from flame.federation import Round
from flame.geometry.clustering import majority_cluster
from flame.report.__main__ import main
from flame.report.comparison import row
from flame.report.page import rounded
from flame.round.breakdown import class_rows
from flame.round.evaluate import Evaluation
from flame.round.types import ServerState, Updates
from flame.run.classes import CLASSES, class_lines
from flame.run.record import find_runs, gather, read_run
from flame.run.recording import Recorder, packed
from flame.run.trackers.files import ENVIRONMENT, SUMMARY, RunFiles, write_json
from flame.run.trees import recorded_rounds, single_linkage

HOSTILE = "</script><img src=x onerror=alert(1)>&<b>"
in_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")
pytest.importorskip("plotly", reason="no Plotly: pip install 'plotly>=5'")


def folder_of(path: Path, seed: int = 0, finished: bool = True, ma: float = 0.8, **choices: str) -> Path:
    reported = {"eval/ma": ma, "eval/ba": 0.0625, "filter/benign_recall": 0.75, "filter/accepted": 2}
    shares = {"xray/trunk/distance_share": 0.75, "xray/head/distance_share": 0.25}
    rows = [{"eval/ma": 0.5, **shares}, {"eval/ma": ma, "eval/ba": 0.0625, **shares}]
    clients = "0,3,1,9,1,0,1\n0,7,0,9,1,1,1\n0,4,0,9,0,1,0\n"
    clients += "1,2,0,9,1,1,1\n1,5,0,9,1,1,1\n1,6,0,9,1,1,1\n"
    write_run(path, seed=seed, rows=rows, clients=clients, summary=reported if finished else None, **choices)
    write_json(path / ENVIRONMENT, {"commit": "1234567", "dirty": True, "processor": "P"})
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, history: list[Round]) -> Path:
    """Two seeds of a cell, one unfinished of another, one with a hostile name, and a real one with a recorded round."""
    folder = tmp_path_factory.mktemp("sweep")
    folder_of(folder / "a0", seed=0, ma=0.8)
    folder_of(folder / "a1", seed=1, ma=0.8125)
    folder_of(folder / "b0", finished=False, defense="krum")
    folder_of(folder / "c0", defense=HOSTILE)
    counted = {"clean": Evaluation(3, 1.0, 4, answers={(0, 0, 0): 3, (0, 0, 1): 1})}
    (folder / "a0" / CLASSES).write_text(class_lines(replace(history[1], classes=class_rows(counted, 2)), header=True))
    real = folder_of(folder / "real", defense="flame_weights_only", attack="none")
    files, recorder = RunFiles(real, 0), Recorder(real, rounds=[1], every=0, seed=0)
    for record in history:
        files.log(record)
        recorder.log(record)
    write_json(real / SUMMARY, files.summary(2, "hash", {}))
    return folder


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page, open in a window of usual width."""
    place = tmp_path_factory.mktemp("page")
    assert main(["html", str(runs), "--out", str(place / "new" / "report.html")]) == 0
    with browser(place / "profile") as opened:
        opened.open(place / "new" / "report.html")
        yield opened


def texts(page: Page, selector: str) -> list[str]:
    """What stands in the elements."""
    found: list[str] = page.evaluate(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")
    return found


def choose(page: Page, selector: str, index: int) -> None:
    """Choose one option of a list, as a hand would."""
    page.evaluate(
        f"(e => {{ e.selectedIndex = {index}; e.dispatchEvent(new Event('change')); }})"
        f"(document.querySelector({selector!r}))"
    )


def options(page: Page, selector: str) -> list[str]:
    return texts(page, f"{selector} option")


@in_browser
def test_the_table_is_that_of_the_command(page: Page, runs: Path) -> None:
    cells = gather(map(read_run, find_runs([runs])))
    rows = page.evaluate(
        "[...document.querySelectorAll('#cells tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    most = len(cells[0].labels) + 4  # the column that the command has no equal of
    assert [cells[:most] + cells[most + 1 :] for cells in rows] == [row(cell) for cell in cells]


@in_browser
def test_nothing_is_asked_of_the_network_and_nothing_fails(page: Page) -> None:
    urls = [event["request"]["url"] for event in page.happened("Network.requestWillBeSent")]
    assert [url for url in urls if not url.startswith("data:")] == [urls[0]] and urls[0].startswith("file:")
    assert not page.happened("Runtime.exceptionThrown") and not page.happened("Log.entryAdded")


@in_browser
def test_answers_by_class_are_shown_where_they_were_counted(page: Page) -> None:
    hidden, titles = "document.querySelector('#answers').hidden", "[...document.querySelectorAll('#classes > div')]"
    first = options(page, "#run")
    choose(page, "#run", next(i for i, text in enumerate(first) if "krum" in text))
    assert page.evaluate(hidden)
    for place in range(len(first)):
        choose(page, "#run", place)
        if not page.evaluate(hidden):
            break
    drawn = page.evaluate(f"{titles}.map(e => [e.data[0].y, e.data[0].z.map(row => [...row])])")
    assert drawn == [[["0: 75.0 %"], [[75, 25]]]]


@in_browser
def test_names_are_text_and_never_markup(page: Page) -> None:
    assert any(HOSTILE in text for text in options(page, "#run"))
    assert page.evaluate("document.querySelectorAll('body img').length") == 0


@in_browser
def test_filters_narrow_the_table_and_the_choice_of_runs(page: Page) -> None:
    position = options(page, "#filter-defense").index("fedavg")
    choose(page, "#filter-defense", position)
    assert len(texts(page, "#cells tbody tr")) == 1 and len(options(page, "#run")) == 2
    choose(page, "#filter-seed", options(page, "#filter-seed").index("1"))
    assert texts(page, "#cells tbody td:nth-child(4)") == ["81.2"]  # half to even, as in Python
    for name in ("#filter-defense", "#filter-seed"):
        choose(page, name, 0)
    assert len(texts(page, "#cells tbody tr")) == 4


@in_browser
def test_a_click_on_a_header_sorts_the_table_and_the_curves(page: Page) -> None:
    button = "[...document.querySelectorAll('#cells th button')].find(b => b.textContent === 'MA %')"
    for downwards in (True, False):
        page.evaluate(f"{button}.click()")
        shown = [float(text.split()[0]) for text in texts(page, "#cells tbody td:nth-child(4)") if text != "-"]
        assert shown == sorted(shown, reverse=downwards) and len(set(shown)) > 1
        assert texts(page, "#cells tbody tr:first-child td:nth-child(2)")[0] in texts(page, "#curves-legend > span")[0]


@in_browser
def test_a_round_shows_its_clients_and_verdicts(page: Page) -> None:
    choose(page, "#run", next(i for i, text in enumerate(options(page, "#run")) if "krum" in text))
    assert "unfinished: 2 of 2 rounds" in texts(page, "#about")[0]
    lines = page.evaluate(
        "[...document.querySelectorAll('#clients tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    yes, no = "✓ accepted", "✕ rejected"
    assert [line[:6] for line in lines] == [
        ["3", "malicious", "9", no, yes, yes],
        ["4", "benign", "9", yes, no, no],
        ["7", "benign", "9", yes, yes, yes],
    ]
    assert "No round of this run was recorded" in texts(page, "#tree-note")[0]
    page.evaluate("document.querySelector('#on').click()")
    assert texts(page, "#round-title") == ["Round 1"] and texts(page, "#clients tbody td:first-child") == [
        "2",
        "5",
        "6",
    ]
    assert page.evaluate("document.querySelector('#on').disabled")


@in_browser
def test_a_recorded_round_shows_distances_and_trees(page: Page, history: list[Round]) -> None:
    choose(page, "#run", next(i for i, text in enumerate(options(page, "#run")) if "flame_weights_only" in text))
    page.evaluate("document.querySelector('#round').value = 0; choosePlace(0)")
    assert "was not recorded; these were: 1." in texts(page, "#tree-note")[0]
    page.evaluate("choosePlace(1)")
    order = page.evaluate("DATA.runs.find(run => run.recorded[1]).recorded[1].weights_only.order")
    drawn = np.array(page.evaluate("document.querySelector('#trees').children[0].data[0].z"))
    expected = history[1].updates.geometry.cosine_distances("weights_only").numpy()[np.ix_(order, order)]
    assert drawn == pytest.approx(expected, rel=1e-3)
    assert page.evaluate("document.querySelector('#trees').children.length") == 4


@in_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out(page: Page, width: int) -> None:
    address = page.evaluate("location.href").removeprefix("file://")
    page.open(Path(address), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = "e => e.querySelector('.main-svg').clientWidth > e.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('.plots > div')].filter({outside}).length") == 0


@given(st.integers(0, 1000), st.integers(3, 12))
@settings(max_examples=30)
def test_the_accepted_are_a_branch_of_the_tree(seed: int, n: int) -> None:
    """Their links are one less than they are, and lower than those that the others join by."""
    distances = squareform(pdist(np.random.default_rng(seed).normal(size=(n, 3))))
    accepted = majority_cluster(torch.from_numpy(distances)).accepted.numpy()
    tree = single_linkage(distances, accepted)
    assert sorted(tree["order"]) == list(range(n)) and len(tree["joins"]) == n - 1
    assert sum(tree["joins"]) == accepted.sum() - 1


def test_a_tree_by_hand() -> None:
    """Points at 0, 1, 3 and 7: the first two join at 1, then 3 at 2, then 7 at 4."""
    tree = single_linkage(squareform(pdist(np.array([[0.0], [1], [3], [7]]))), np.array([True, True, True, False]))
    heights = [max(link) for link in tree["height"].tolist()]
    assert sorted(zip(heights, tree["joins"], strict=True)) == [(1, 1), (2, 1), (4, 0)]


def test_a_round_that_cannot_be_drawn_is_left_empty(
    tmp_path: Path, updates: Callable[..., tuple[ServerState, Updates]], caplog: pytest.LogCaptureFixture
) -> None:
    """A client with NaN is left out, a round of one client has no tree, and a damaged file is named."""
    folder = tmp_path / "recorded"
    folder.mkdir()
    for number, n in ((0, 4), (1, 1)):
        _, sent = updates(0, n)
        if n > 1:
            sent.rows[2, 0] = torch.nan
        (folder / f"round_{number:06d}.safetensors").write_bytes(
            packed(sent, torch.zeros(n, dtype=torch.bool), number, 0)
        )
    (folder / "round_000002.safetensors").write_bytes(b"torn")
    rounds = recorded_rounds(tmp_path)
    assert rounds[0]["all_state"]["clients"] == [0, 1, 3] and rounds[1] == {} and set(rounds) == {0, 1}
    assert "round_000002.safetensors is not a whole safetensors file" in caplog.text


def test_numbers_are_short_and_json() -> None:
    assert rounded(np.array([[0.123456, np.nan], [1e-7, np.inf]])) == [[0.1235, None], [1e-7, None]]


def test_without_plotly_there_is_a_remedy(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["html", str(runs), "--out", str(tmp_path / "report.html")]) == 1
    assert "pip install 'plotly>=5'" in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "good")
    (folder_of(tmp_path / "bad", seed=1) / "metrics.jsonl").write_text("not json\n")
    assert main(["html", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 1
    assert str(tmp_path / "bad") in capsys.readouterr().err
    data = (tmp_path / "report.html").read_text().rpartition('type="application/json">')[2].partition("</script>")[0]
    assert [run["folder"] for run in json.loads(data)["runs"]] == ["good"]
