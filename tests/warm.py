"""The project's commands in a process that has imported torch already: a fork in the place of seconds of imports.

The child is what the interpreter would be: its own working directory, environment, arguments, exit hooks and exit code.
What depends on how an interpreter starts (time, imports, PYTHONSAFEPATH, signals) is tested with a real one.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

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
    for line in sys.stdin:
        asked = json.loads(line)
        if not (child := os.fork()):
            become(**asked)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(words: list[str], env: dict[str, str], cwd: str, folder: str) -> None:
    """What `python WORDS` does in a fresh interpreter."""
    signal.alarm(LIMIT)
    for descriptor, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        file = os.open(name if descriptor == 0 else os.path.join(folder, name), flags | os.O_CREAT, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:1] = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep)] if env.get("PYTHONPATH") else [cwd]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [*words]
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    import hdbscan  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch._dynamo  # noqa: F401  # which torch.optim imports when it is first used
    from hydra.core.plugins import Plugins

    import flame.run.experiment  # noqa: F401

    Plugins.instance()  # looks for plugins, once
    serve()
