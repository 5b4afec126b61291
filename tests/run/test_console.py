"""Output that nobody reads any more ends nothing and says nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import logging, sys
from flame.run.console import keep_going
keep_going(); keep_going()
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
for number in range(5000):
    print("line", number)
    logging.info("line %d", number)
sys.stderr.write("whole\\n")
"""


def ran(redirection: str) -> tuple[int, str]:
    """Exit code and standard error of the script in a shell."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f'"$0" -c "$1" {redirection}; exit ${{PIPESTATUS[0]}}'
    shell = ["bash", "-c", command, sys.executable, SCRIPT]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("redirection", ["| head -1", ">&-", "<&- >&-"])
def test_a_closed_standard_output(redirection: str) -> None:
    assert ran(redirection) == (0, "whole\n")


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-"])
def test_a_closed_standard_error(redirection: str) -> None:
    assert ran(redirection) == (0, "")


def test_a_full_disk_is_not_silent() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    code, said = ran("> /dev/full")
    assert code != 0 and "No space left" in said


def test_everything_is_written_to_who_reads() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 10_000 and done.stdout.endswith("INFO:root:line 4999\n")
