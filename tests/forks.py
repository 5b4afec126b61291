"""For the tests: where a command starts an interpreter for its workers, the command is forked, with torch imported.

A fork server of `multiprocessing` and a worker of joblib begin with 2.5 s of imports; a command of the suite has them
behind it. The fork is what the interpreter would be: no open file but those it is given, default signals, no handler
of a log, no exit hook. Real ones are started where the environment has `REAL` (test_cli.py: a pool in a joblib worker),
by the suite itself (its own pools), and by real commands (test_engines.py kills one with a pool).
"""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing.util
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

SERVER = "from multiprocessing.forkserver import main"
REAL = "REAL_INTERPRETERS"  # a variable
WORKER = "joblib.externals.loky.backend.popen_loky_posix"


def fork_interpreters() -> None:
    """From now on, in this process and its children; harmless when called again."""
    if not hasattr(multiprocessing.util.spawnv_passfds, "real"):
        multiprocessing.util.spawnv_passfds = _spawned(multiprocessing.util.spawnv_passfds)
    try:
        from joblib.externals.loky.backend import fork_exec as loky
    except ImportError:
        return
    if not hasattr(loky.fork_exec, "real"):
        loky.fork_exec = _executed(loky.fork_exec)


def _spawned(real: Any) -> Any:
    def spawnv_passfds(path: Any, words: Sequence[Any], kept: Sequence[int]) -> int:
        if words[-2] == "-c" and words[-1].startswith(SERVER) and REAL not in os.environ:
            return _fork(words[-2:], kept)
        return real(path, words, kept)

    spawnv_passfds.real = real  # type: ignore[attr-defined]
    return spawnv_passfds


def _executed(real: Any) -> Any:
    def fork_exec(words: Sequence[str], kept: Sequence[int], env: Mapping[str, str] | None = None) -> int:
        if words[1:3] == ["-m", WORKER] and REAL not in os.environ:
            return _fork(words[1:], kept, env or {})
        return real(words, kept, env)

    fork_exec.real = real  # type: ignore[attr-defined]
    return fork_exec


def _fork(words: Sequence[str], kept: Sequence[int], env: Mapping[str, str] = os.environ) -> int:
    """The pid of a child that is `python WORDS` with the descriptors `kept`."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        _forget({0, 1, 2, *kept})
        os.environ.update(env)
        if words[0] == "-m":
            sys.modules.pop(words[1], None)  # or `runpy` warns
        code = run(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _forget(kept: set[int]) -> None:
    """What a new program would not have of this one."""
    atexit._clear()
    gc.freeze()
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - kept - {nowhere}:
        try:
            os.fstat(descriptor)
        except OSError:  # of the listing
            continue
        os.dup2(nowhere, descriptor, inheritable=False)  # not closed: its number would be given to another file
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)


def run(words: Sequence[str]) -> int:
    """What `python WORDS` does in a fresh interpreter; its exit code. Tracebacks are printed."""
    try:
        if words[0] == "-c":
            exec(words[1], {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = [*words[1:]]
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
