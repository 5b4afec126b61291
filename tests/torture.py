"""Kill runs, feed defenses hostile rounds and readers damaged files, and count what survives.

    python tests/torture.py --kills 50 --rounds 10000 --files 10000       # `make torture`
    python tests/torture.py --kills 4 --rounds 500 --files 500            # the sample that `make test` takes

A killed run is the real command, in a process that is sent SIGKILL after a random time or, for every third, while a
checkpoint is being written; it is then resumed, and must equal a run that was never interrupted: every bit of the last
checkpoint (the defense's and the attack's memory included), of acceptance.csv and of metrics.jsonl, timings aside.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from itertools import cycle
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # as a script; pytest has it already

from forks import run  # noqa: E402
from warm import leave, preheating  # noqa: E402

TINY = ("experiment=smoke", "tracker=files", "train_samples=200", "rounds=6", "clients=8", "clients_per_round=6")
OFTEN = ("poisoned_model_rate=0.34", "client.batch_size=16", "checkpoint.rounds=1")
WORDS = ("rare_word", "sentence", "sentence_constrain", "sentence_parts", "sentence_reddit", "sentence_replacement")
ON_OTHER_DATA = (*WORDS, "traffic_backdoor")  # attacks that cannot be made on the digits
PATIENCE = 300  # seconds until a run counts as hung


def start(runs: Path, *overrides: str) -> BaseProcess:
    """`python train.py OVERRIDES` in a process that has imported torch already; its output goes to runs/log."""
    runs.mkdir(parents=True, exist_ok=True)
    flags = [word for word in overrides if word.startswith("-")]  # argparse wants them first
    words = [*flags, *TINY, *OFTEN, f"paths.runs={runs}", *(word for word in overrides if word not in flags)]
    process = preheating().Process(target=_train, args=(runs / "log", words))
    process.start()
    return process


def succeed(runs: Path, *overrides: str) -> None:
    """The command, to its end; its last words if it fails."""
    if (code := finish(start(runs, *overrides))) != 0:
        raise AssertionError(f"{overrides} ended with {code}: {(runs / 'log').read_text()[-2000:]}")


def finish(process: BaseProcess) -> int:
    """The exit code, negative for a signal; a hung process is an error."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"process {process.pid} did not end within {PATIENCE} s")
    return process.exitcode


def run_folder(runs: Path) -> Path:
    """The one run under `runs`, beside what it may share with others."""
    (folder,) = (path for path in runs.iterdir() if path.is_dir() and not path.name.startswith("."))
    return folder


def fingerprint(runs: Path) -> dict[str, object]:
    """All of a finished run that must not depend on interruptions."""
    folder = run_folder(runs)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "checkpoint": max((folder / "checkpoints").iterdir()).read_bytes(),
        "acceptance": (folder / "acceptance.csv").read_bytes(),
        "metrics": [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines],
        "state": json.loads((folder / "summary.json").read_text())["state_sha256"],
    }


def interrupt(process: BaseProcess, runs: Path, after: float, writing: bool) -> bool:
    """SIGKILL after some seconds or (`writing`) when a checkpoint is half written after them; False if too late."""
    deadline = time.monotonic() + after
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    while writing and process.is_alive() and not any(runs.glob("*/checkpoints/.round_*")):
        pass
    alive = process.is_alive()
    process.kill()
    return finish(process) < 0 and alive


def killed_and_resumed(runs: Path, overrides: list[str], seconds: float, draw: random.Random, writing: bool) -> int:
    """Kill a run (now and then its resumption too) until it ends by itself; how often it was killed."""
    kills = 0
    while kills == 0 or draw.random() < 0.3:
        if run_done(runs):  # the moment was too late: once more from the start, and sooner
            seconds *= 0.7
            runs = runs.rename(runs.with_name(f"{runs.name}-late-{draw.getrandbits(32)}")).with_name(runs.name)
        kills += interrupt(start(runs, *overrides), runs, draw.uniform(0.2, 0.95) * seconds, writing)
    succeed(runs, *overrides)
    return kills


def run_done(runs: Path) -> bool:
    """Whether a run under `runs` has its summary."""
    return any(runs.glob("*/summary.json"))


def torture_runs(folder: Path, kills: int, cases: list[tuple[str, str]], seed: int) -> tuple[int, int, int]:
    """(resumed runs equal to the uninterrupted one, resumed runs, kills) over (defense, attack) cases in turn."""
    draw, references, seconds = random.Random(seed), {}, {}
    equal = total = killed = 0
    for (defense, attack), engine in zip(cycle(cases), cycle(["sequential", "pool", "sequential"])):
        if total >= kills:
            return equal, total, killed
        base = [f"defense={defense}", f"attack={attack}"]
        if (defense, attack) not in references:
            runs, begun = folder / f"{defense}-{attack}", time.monotonic()
            succeed(runs, *base, "engine=sequential")
            references[defense, attack], seconds[defense, attack] = fingerprint(runs), time.monotonic() - begun
        runs = folder / f"killed-{total}"
        overrides = [*base, f"engine={engine}", *(["engine.workers=2"] if engine == "pool" else [])]
        killed += killed_and_resumed(runs, overrides, seconds[defense, attack], draw, writing=total % 3 == 2)
        same = fingerprint(runs) == references[defense, attack]
        equal, total = equal + same, total + 1
        if not same:
            print(f"different: {overrides}, see {runs}", file=sys.stderr)
    return equal, total, killed


def all_cases() -> list[tuple[str, str]]:
    """Every defense that conf/ has, each with an attack, the attacks in turn."""
    defenses, attacks = names("defense"), [name for name in names("attack") if name not in ON_OTHER_DATA]
    return list(zip(defenses, cycle(attacks)))


def names(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def _train(log: Path, overrides: list[str]) -> None:
    """The command line, in this process; a session of its own, so that it can be killed with all its workers."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    os.chdir(ROOT)
    leave(run(["train.py", *overrides]))


def main() -> None:
    """Print the three counts; exit with 1 if one falls short."""
    from damaged import damaged_files
    from hostile import hostile_rounds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed and resumed")
    parser.add_argument("--rounds", type=int, default=10000, help="hostile rounds, shared by all defenses")
    parser.add_argument("--files", type=int, default=10000, help="damaged files, shared by all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--defense", nargs="*", help="only these")
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        cases = [case for case in all_cases() if not chosen.defense or case[0] in chosen.defense]
        equal, total, kills = torture_runs(Path(folder) / "runs", chosen.kills, cases, chosen.seed)
        print(f"{equal} of {total} resumed runs equal ({kills} kills, {min(len(cases), total)} defenses)", flush=True)
        survived = hostile_rounds(chosen.rounds, [case[0] for case in cases], chosen.seed)
        print(f"{survived} of {chosen.rounds} hostile rounds left a finite model", flush=True)
        refused = damaged_files(Path(folder), chosen.files, chosen.seed)
        print(f"{refused} of {chosen.files} damaged files refused in words or read as they were", flush=True)
    print(f"{time.monotonic() - begun:.0f} s")
    sys.exit((equal, survived, refused) != (chosen.kills, chosen.rounds, chosen.files))


if __name__ == "__main__":
    main()
