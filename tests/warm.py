"""The project's commands in a process that has imported torch already: a fork in the place of seconds of imports.

The child is what the interpreter would be: its own working directory, environment, arguments, exit hooks and exit code.
What depends on how an interpreter starts (time, imports, PYTHONSAFEPATH, signals) is tested with a real one.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from remember import remember

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240  # seconds; then SIGALRM ends the command


class Warm:
    """`Warm()(["train.py", "seed=1"])`: as `subprocess.run([sys.executable, "train.py", "seed=1"])` in the project."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload]

    def __call__(
        self, words: Sequence[str], env: Mapping[str, str] = os.environ, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        with TemporaryDirectory() as folder:
            asked = {"words": [*words], "env": {**env, "OMP_NUM_THREADS": "1"}, "cwd": str(cwd), "folder": folder}
            self._server.stdin.write(json.dumps(asked) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            output, errors = (Path(folder, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([*words], code, output, errors)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=60)


def serve() -> None:
    """Fork for each line, and answer with the exit code; the child returns from here and becomes the command."""
    gc.freeze()  # else a collection in a child writes to every page, which is then copied
    for line in sys.stdin:
        asked = json.loads(line)
        if not (child := os.fork()):
            leave(become(**asked))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


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
    sys.path[:1] = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep)] if env.get("PYTHONPATH") else [cwd]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [*words]
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


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
    Plugins.instance()  # looks for plugins
    load_digits()
    for words in (["seed=1"], ["experiment=smoke", "defense=flame_all_state", "engine=sequential", "tracker=files"]):
        composed(words, hydra=True)
    with own_settings():
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        figure.subplots().set(title="one", xlabel="two")
        figure.savefig(io.BytesIO(), format="png")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    warm_up()
    serve()
