"""What a GPU makes of this project, in one JSON file and one Markdown table, within ten minutes on one card.

    python tests/bench_gpu.py [--device cuda:0] [--minutes 9] [--out FOLDER]       # `make gpu`
    python tests/bench_gpu.py --device cpu --tiny                                  # is the script itself in order?

No network, no data files: digits, and noise of CIFAR-10's shape. The sections, each cut off when its time is over (what
was left out is listed):

* `smoke`: two runs of `experiment=smoke` on the device, and one with two workers: equal to the bit?
* `accuracy`: MA of 20 rounds on digits, three seeds on the CPU and on the device: further apart than seeds are?
* `verdict`: FLAME on n = 10 and 100 updates of 11.2 million numbers, on the host and on the device: the same decision?
* `rounds`: seconds a round, of 10 clients with 500 images and two epochs, utilisation and peak memory of the GPU; the
  engines beside loops without a federation (`tests/loops.py`).

TF32 is asked of torch here, for the engines in this process alone: no key of a run switches it on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from bench_aggregation import MODELS, a_round, timed  # noqa: E402
from gpu_session import Gauge, Session, arithmetic  # noqa: E402
from loops import LOOPS  # noqa: E402

from flame.defenses.base import Defense, defend  # noqa: E402
from flame.engine.workbench import prepare_process  # noqa: E402
from flame.federation import play  # noqa: E402
from flame.round.device import check_device  # noqa: E402
from flame.round.types import ServerState, Updates, Verdict, digest  # noqa: E402
from flame.run.build import Parts, build, composed  # noqa: E402


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    models: Sequence[str] = ("resnet18", "resnet18_light", "resnet8")
    workers: Sequence[int] = (1, 2, 4, 8)
    round: Sequence[str] = ("clients=10", "clients_per_round=10", "client.epochs=2", "client.batch_size=64")
    data: Sequence[str] = ()
    digits: Sequence[str] = ()
    repeats: int = 3
    seeds: int = 3
    rounds: int = 20
    verdicts: tuple[str, Sequence[int]] = ("resnet18", (10, 100))


TINY = Size(
    models=("resnet8",),
    workers=(),
    round=("clients=2", "clients_per_round=2", "client.epochs=1", "client.batch_size=5", "attack=none"),
    digits=("clients_per_round=3", "train_samples=300", "attack=none"),
    data=("dataset.image_size=8", "+dataset.train=20", "+dataset.test=10"),
    repeats=1,
    seeds=2,
    rounds=1,
    verdicts=("linear", (10,)),
)


def played(overrides: Sequence[str], rounds: int) -> tuple[str, list[float]]:
    """The digest of the last state, and MA of each round."""
    parts = build(composed(["experiment=smoke", "tracker=files", *overrides]))
    accuracies, state = [], parts.initial
    with closing(parts.start_engine(parts.task)) as engine:
        for _ in range(rounds):
            record = play(parts.federation(engine), state)
            accuracies.append(record.metrics["eval/ma"])
            state = record.after
    return digest(state), accuracies


def smoke(session: Session) -> None:
    """The same bits again?"""
    engines = {"once": "sequential", "again": "sequential", "two workers": "pool"}
    found: dict[str, str] = {}
    for name in session.cases("smoke", list(engines)):
        few = [f"engine={engines[name]}", *(["engine.workers=2"] if engines[name] == "pool" else [])]
        words = [f"device={session.device}", *few, *session.size.digits]
        found[name], _ = played(words, min(3, session.size.rounds))
        equal = found[name] == found["once"]
        session.note("smoke", name, f"{found[name][:12]}, {'equal' if equal else 'DIFFERENT'}", equal=equal)


def accuracy(session: Session) -> None:
    """Means of the last five rounds over seeds; apart by more than twice the standard error of their difference?"""
    found: dict[str, list[float]] = {"cpu": [], session.device: []}
    names = [f"seed {seed}" for seed in range(session.size.seeds)]
    for name in session.cases("accuracy", names):
        for device, means in found.items():
            overrides = [f"device={device}", f"seed={name.split()[1]}", "engine=sequential"]
            overrides += ["attack=none", *session.size.digits]
            means.append(statistics.mean(played(overrides, session.size.rounds)[1][-5:]))
    host, there = found["cpu"], found[session.device]
    if len(host) > 1:
        apart = abs(statistics.mean(host) - statistics.mean(there))
        noise = 2 * ((statistics.variance(host) + statistics.variance(there)) / len(host)) ** 0.5
        text = f"{100 * apart:.2f} points apart, seeds {100 * noise:.2f}: {'within' if apart <= noise else 'OUTSIDE'}"
        session.note("accuracy", f"{len(host)} seeds", text, within=apart <= noise, cpu=host, device=there)


def verdict(session: Session) -> None:
    """Seconds of one verdict, the copy to the device included."""
    name, cohorts = session.size.verdicts
    defense = build(composed(["defense=flame_weights_only", "experiment=smoke", "tracker=files"])).defense
    for case in session.cases("verdict", [f"n = {n}" for n in cohorts]):
        n = int(case.split()[-1])
        state, updates = a_round(MODELS[name](), n)
        host = judged(defense, state, updates, None)
        for where, device in (("host", None), ("device", torch.device(session.device))):
            equal = torch.equal(host.accepted, judged(defense, state, updates, device).accepted)
            times = [timed(partial(judged, defense, state, updates, device)) for _ in range(session.size.repeats)]
            seconds = statistics.median(times)
            text = f"{seconds:.3f} s, {'same clients' if equal else 'OTHER CLIENTS'}"
            session.note("verdict", f"{name}, {case}, {where}", text, seconds=seconds, equal=equal)


def judged(defense: Defense, state: ServerState, updates: Updates, device: torch.device | None) -> Verdict:
    """With nothing of an earlier verdict at hand."""
    fresh = replace(updates.first(len(updates)), aggregate_on=device)
    return defend(defense, state, fresh, torch.Generator().manual_seed(1))


def contenders(size: Size) -> dict[str, tuple[str, bool, Sequence[str]]]:
    """name -> (a loop's name or engine, TF32, overrides); the most telling first, for time may be short."""
    pools = {
        f"pool, {w} workers": ("pool", False, [f"engine.per_gpu={w}", f"engine.workers={w}"]) for w in size.workers
    }
    bf16 = {f"{n}, bf16": (e, tf32, [*more, "precision=bf16"]) for n, (e, tf32, more) in pools.items()}
    alone: dict[str, tuple[str, bool, Sequence[str]]] = {
        "bare loop": ("bare", False, []),
        "sequential": ("sequential", False, []),
        "stacked": ("stacked", False, []),
        **pools,
        "loop of zhmzm/FLAME": ("zhmzm", True, []),
        "loop of BackFed": ("backfed", True, []),
        "sequential, TF32": ("sequential", True, []),
        "stacked, TF32": ("stacked", True, []),
        "bare loop, TF32": ("bare", True, []),
        "sequential, bf16": ("sequential", False, ["precision=bf16"]),
        "stacked, bf16": ("stacked", False, ["precision=bf16"]),
    }
    return alone | bf16


def rounds(session: Session) -> None:
    """Every contender with every model."""
    every = contenders(session.size)
    for case in session.cases("rounds", [f"{model}, {name}" for model in session.size.models for name in every]):
        model, _, name = case.partition(", ")
        kind, tf32, more = every[name]
        base = ["dataset=cifar10", "dataset._target_=loops.synthetic", *session.size.data, "partition=iid"]
        engine = f"engine={'sequential' if kind in LOOPS else kind}"
        words = [
            *base,
            *session.size.round,
            f"model={model}",
            f"device={session.device}",
            engine,
            "tracker=files",
            *more,
        ]
        parts = build(composed(words))
        seconds, gauge = measured(session, parts, kind, tf32)
        session.note("rounds", case, f"{seconds:.3f} s", seconds=seconds, **gauge)


def measured(session: Session, parts: Parts, kind: str, tf32: bool) -> tuple[float, dict[str, float | None]]:
    """Median seconds of a round, after one to warm up, and what the GPU did meanwhile."""
    gauge = Gauge(session.device)

    def repeated(step: Callable[[], object]) -> float:
        step()
        with gauge:
            return statistics.median(timed(step) for _ in range(session.size.repeats))

    with arithmetic(tf32, deterministic=kind not in LOOPS):
        if kind in LOOPS:
            return repeated(lambda: LOOPS[kind](parts, torch.device(session.device))), gauge.found
        with closing(parts.start_engine(parts.task)) as engine, arithmetic(tf32, deterministic=True):
            fed = parts.federation(engine)
            return repeated(lambda: play(fed, parts.initial)), gauge.found


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if bits or decisions are not what they must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cpu, cuda:0, cuda:1, ...; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="seconds, and numbers that mean nothing")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing more begins; default: 9")
    parser.add_argument("--out", type=Path, default=ROOT / "results", metavar="FOLDER", help="default: results")
    chosen = parser.parse_args(arguments)
    try:
        check_device(chosen.device)
    except ValueError as error:
        parser.error(str(error))
    prepare_process(threads=1)  # as in a run
    chosen.out.mkdir(parents=True, exist_ok=True)
    size = TINY if chosen.tiny else Size()
    session = Session(chosen.device, size, time.monotonic() + 60 * chosen.minutes)
    for section in (smoke, accuracy, verdict, rounds):
        section(session)
        session.write(chosen.out)
    return int(any(row.get("equal") is False or row.get("within") is False for row in session.rows))


if __name__ == "__main__":
    sys.exit(main())
