"""The project's commands in a process that has imported torch already: a fork in the place of seconds of imports.

The child is what the interpreter would be: its own working directory, environment, arguments, exit hooks and exit code.
What depends on how an interpreter starts (time, imports, PYTHONSAFEPATH, signals) is tested with a real one.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import get_context, process
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from forks import fork_interpreters, run
from remember import remember

from flame.engine import PRELOADED

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240  # seconds; then SIGALRM ends the command
BEGUN: dict[str, Any] = {}  # of the fork server, as it began: its `path`, and itself as the `main` process


def preheating() -> ForkServerContext:
    """Whose processes, and all others of this one's fork server, begin with `warm_up` behind them."""
    if "tests.preheated" not in PRELOADED:  # a path from the project's folder: servers of Python 3.11 know no other
        PRELOADED.insert(0, "tests.preheated")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Warm:
    """`Warm()(["train.py", "seed=1"])`: as `subprocess.run([sys.executable, "train.py", "seed=1"])` in the project."""

    def __init__(self) -> None:
        context = preheating()
        self._connection, far = context.Pipe()
        self._server = context.Process(target=serve, args=(far,), daemon=True)
        self._server.start()
        far.close()  # so that the server's death reads as end of file here

    def __call__(
        self, words: Sequence[str], env: Mapping[str, str] = os.environ, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        with TemporaryDirectory() as folder:
            self._connection.send(([*words], {**env, "OMP_NUM_THREADS": "1"}, str(cwd), folder))
            code = self._connection.recv()
            output, errors = (Path(folder, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([*words], code, output, errors)

    def close(self) -> None:
        self._connection.close()
        self._server.join(60)


def serve(connection: Connection) -> None:
    """Fork for each command, and answer with the exit code; the child becomes the command."""
    assert BEGUN, "the fork server has not imported `preheated`: every command would wait for torch"
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        if not (child := os.fork()):
            connection.close()
            leave(become(*asked))
        _, status = os.waitpid(child, 0)
        connection.send(os.waitstatus_to_exitcode(status))


def become(words: list[str], env: dict[str, str], cwd: str, folder: str) -> int:
    """What `python WORDS` does in a fresh interpreter; its exit code."""
    signal.alarm(LIMIT)
    for descriptor, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        file = os.open(name if descriptor == 0 else os.path.join(folder, name), flags | os.O_CREAT, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    process.ORIGINAL_DIR = cwd
    process._current_process = BEGUN["main"]  # it is nobody's worker
    process._parent_process = None
    sys.path[:] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *BEGUN["path"]]
    return run(words)


def leave(code: int) -> NoReturn:
    """The end of an interpreter, without taking its 2,700 modules apart: 1.5 s."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def warm_up() -> None:
    """What every command does at first, once for all: imports, the plugins, the YAMLs, the fonts."""
    import hdbscan  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    from hydra.core.plugins import Plugins
    from sklearn.datasets import load_digits

    import flame.report.__main__
    import flame.run.experiment  # noqa: F401
    from flame.run.compose import composed
    from flame.run.figure import own_settings

    remember()
    fork_interpreters()
    Plugins.instance()  # looks for plugins
    load_digits()
    for words in (["seed=1"], ["experiment=smoke", "defense=flame_all_state", "engine=sequential", "tracker=files"]):
        composed(words, hydra=True)
    with own_settings():
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        figure.subplots().set(title="one", xlabel="two")
        figure.savefig(io.BytesIO(), format="png")
