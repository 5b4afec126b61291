"""What a person at a terminal sees: whole lines above a bar."""

from __future__ import annotations

import logging
import os
import pty
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from flame.federation import Round
from flame.report.contrasts import CLIENTS
from flame.run.progress import Progress, headline
from flame.run.text import duration, one_digit

SCRIPT = """
import logging, sys
from flame.run.progress import Progress
handler = logging.StreamHandler(sys.stdout)  # as Hydra's: made before the bar
logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
stream = handler.stream
with Progress(3, 0) as progress:
    for number in range(3):
        progress._bar.refresh()
        logging.info("line %d", number)
assert handler.stream is stream is sys.stdout
"""


def test_log_lines_on_a_terminal_are_whole_and_the_bar_fits() -> None:
    """Drawn by a real terminal's rules: a line that does not start in column 0 was printed into the bar."""
    seen = on_terminal([sys.executable, "-c", SCRIPT])
    for number in range(3):
        before = seen[: seen.index(f"line {number}\r\n")]
        assert before.endswith(("\r\x1b[2K", "\n")), seen  # the bar was wiped, or the line is a new one
    assert "round" in seen and "0/3" in seen


def test_only_the_first_round_that_kept_the_model_warns(history: list[Round], caplog: pytest.LogCaptureFixture) -> None:
    kept = [replace(record, metrics={**record.metrics, "guard/kept_model": 1.0}) for record in history[1:]]
    with Progress(3, 0) as progress:
        for record in (history[0], *kept):
            progress.show(record)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.startswith("round 1: ") and warning.endswith("the global model stays as it was")


def test_only_the_first_round_of_idle_attackers_warns(history: list[Round], caplog: pytest.LogCaptureFixture) -> None:
    idle = [replace(record, metrics={**record.metrics, "attack/idle": 2.0}) for record in history[1:]]
    with Progress(3, 0) as progress:
        for record in (history[0], *idle):
            progress.show(record)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    said = "2 attackers sent what an honest client could have, or trained on nothing poisoned; attack/idle counts them"
    assert warning.startswith(f"round 1: {said}")


def test_the_line_of_a_round_says_what_is_left(history: list[Round], caplog: pytest.LogCaptureFixture) -> None:
    """Of a run that was resumed after its first round, so that the second is the only one timed."""
    with caplog.at_level(logging.INFO), Progress(3, 1) as progress:
        progress._began -= 20
        for record in history[1:]:
            progress.show(record)
    second, third = (record.getMessage() for record in caplog.records)
    assert second.startswith("round 1  MA ") and second.endswith(" s  2 of 3 done, 20 s left")
    assert third.startswith("round 2  MA ") and third.endswith(" s  3 of 3 done, 0 s left")


def test_the_words_of_a_line_are_true_when_read_alone() -> None:
    shown = {"eval/ma": 0.9125, "eval/ba": None, "filter/benign_recall": 0.75, "filter/malicious_recall": 1.0}
    assert headline({**shown, "filter/accepted": 6.0}) == (
        "MA  91.2 %  BA     - %  benign kept  75.0 %  attackers rejected 100.0 %  clients accepted  6.0"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(71.25, "71.2"), (71.75, "71.8"), (0.15, "0.1"), (71.25 + 1e-13, "71.2"), (-12.25, "-12.2"), (99.96, "100.0")],
)
def test_one_digit_is_the_same_wherever_it_is_written(value: float, text: str) -> None:
    """In the report's page, too: its own function, run by node where there is one."""
    assert one_digit(value) == text == CLIENTS.estimate(pd.Series([value]))
    if node := shutil.which("node"):
        source = (Path(__file__).parents[2] / "flame" / "report" / "page.html").read_text()
        function = source[source.index("const oneDigit = ") :].partition("\n};")[0] + "\n};"
        script = f"{function}\nconsole.log(oneDigit.format({value!r}))"
        assert subprocess.run([node, "-e", script], capture_output=True, text=True, check=True).stdout.strip() == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (100, "2 min"),
        (5940, "99 min"),
        (6000, "1 h 40 min"),
        (1e6, "277 h 47 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def on_terminal(command: list[str]) -> str:
    """All that a command prints on a terminal of 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "PYTHONPATH": os.getcwd()}
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:  # Linux says so when the other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0, seen.decode()
    return seen.decode()
