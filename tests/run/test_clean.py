"""`start=trained`: clean rounds to the bit, whoever computes them, and once for all that share them."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torture import fingerprint, killed_and_resumed, run_folder, succeed

from flame.federation import rounds
from flame.round.checkpoint import RunFolderError
from flame.round.code import LENGTH
from flame.round.seeding import generator
from flame.round.server import OWN, statistics_span
from flame.round.types import ServerState, digest
from flame.run.build import build
from flame.run.classes import CLASSES
from flame.run.clean import STORE, Clean, begun
from flame.run.config import fingerprint as config_hash
from flame.run.config import plain
from flame.run.experiment import loop
from flame.run.folder import CHECKPOINTS, waited
from flame.run.stop import Stop
from flame.run.trackers.files import METRICS, read_metrics
from flame.run.weights import MODEL

Tiny = Callable[..., DictConfig]
SMALL = ("model=cnn", "train_samples=100", "clients=5", "clients_per_round=4", "start=trained", "start.rounds=3")
SHARED = (  # twelve runs of a sweep
    "defense=fedavg",
    "defense=fltrust defense.root_samples=10",
    "defense=krum server=adam",
    "defense=crfl",
    "defense=foolsgold poisoned_model_rate=0.4",
    "defense=median attackers=random",
    "defense=flshield shadow=[]",
    "attack=none",
    "attack=model_replacement rounds=7",
    "attack=iba evaluate_every=2 client/schedule=cosine",
    "attack=dba attack_rounds.start=1 attack_rounds.after_ma=0.5",
    "attack=constrain_and_scale checkpoint.rounds=1 spill.share=0",
)
OTHERS = ("seed=1", "partition=dirichlet", "client.lr=0.01", "train_samples=99", "clients=6", "clients_per_round=3")
OTHERS += ("start.rounds=2", "precision=bf16", "threads=2", "attack=edge_case", "dataset.mean=[0.5]", "model=resnet8")


class Counted:
    """What a run hands to `begun`, and how often it was needed."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, cfg: DictConfig, info: object, fed: object, state: ServerState, *rest: object) -> ServerState:
        self.calls.append(cfg.rounds - state.round)
        return loop(cfg, info, fed, state, *rest, stop=Stop())  # type: ignore[arg-type]


def play(cfg: DictConfig, finish: Counted | None = None) -> ServerState:
    return begun(cfg, build(cfg), finish or Counted())


@pytest.fixture(scope="module")
def small(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """`small(*overrides)`: runs that share a folder, and in it a start of three rounds."""
    return partial(tiny, *SMALL, f"paths.runs={tmp_path_factory.mktemp('runs')}", "checkpoint.rounds=1")


@pytest.fixture(scope="module")
def whole(small: Tiny) -> ServerState:
    """That start, computed in one go."""
    finish = Counted()
    state = play(small(), finish)
    assert finish.calls == [3]
    return state


def test_it_is_clean_averaging_with_streams_of_its_own(small: Tiny, whole: ServerState) -> None:
    """The slow twin: what the options named in conf/start/trained.yaml do, with the other seed."""
    clean = ("attack=none", "defense=fedavg", "server=plain", "attackers=random", "start=scratch")
    parts = build(small(*(word for word in clean if word != "start=scratch")))
    seed = generator(0, "start").initial_seed()
    with closing(parts.start_engine(replace(parts.task, seed=seed))) as engine:
        fed = parts.federation(engine)
        fed = replace(fed, population=replace(fed.population, seed=seed), seed=seed, evaluate_at=())
        *_, last = rounds(fed, parts.initial, 3)
    assert digest(last.after) == digest(whole)
    assert whole.round == 0 and not whole.memory and digest(whole) != digest(parts.initial)


def test_twelve_runs_of_a_sweep_compute_it_once(small: Tiny, whole: ServerState) -> None:
    finish = Counted()
    for words in SHARED:
        assert digest(play(small(*words.split()), finish)) == digest(whole), words
    assert finish.calls == []


def test_a_client_s_schedule_begins_with_the_run(small: Tiny, whole: ServerState, tmp_path: Path) -> None:
    """Clean rounds have its full rate, however few rounds the run has."""
    finish = Counted()
    state = play(small(f"paths.runs={tmp_path}", "client/schedule=cosine", "rounds=2"), finish)
    assert digest(state) == digest(whole) and finish.calls == [3]


def test_what_is_recorded_of_it_follows_from_no_defense(small: Tiny, tmp_path: Path) -> None:
    """Whoever comes first: neither how its defense wants answers to count nor what it asks of them is in the record."""
    found = []
    for name, words in (
        ("flip", ("defense=flip", "defense.answer_confidence=0.9", "evaluate.per_class=true")),
        ("fedavg", ("defense=fedavg",)),
    ):
        cfg = small(f"paths.runs={tmp_path / name}", "start.rounds=1", *words)
        play(cfg)
        (folder,) = (tmp_path / name / STORE).iterdir()
        kept = {key: value for key, value in read_metrics(folder)[0].items() if not key.startswith("time/")}
        found.append((folder.name, kept, (folder / CLASSES).exists()))
    assert found[0] == found[1] and not found[0][2]


def test_it_lies_beside_the_runs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/here")
    cfg = tiny(*SMALL, "paths.runs='~/runs'")
    assert Clean(cfg, build(cfg)).folder.parent == Path("/here/runs") / STORE


@pytest.mark.parametrize("words", OTHERS)
def test_what_it_depends_on_is_in_its_identity(small: Tiny, words: str) -> None:
    one, other = (Clean(cfg, build(cfg)).identity for cfg in (small(), small(words)))
    assert one != other


def test_killed_it_goes_on_from_its_own_checkpoints(small: Tiny, whole: ServerState, tmp_path: Path) -> None:
    cfg = small(f"paths.runs={tmp_path}", "checkpoint.rounds=1")
    play(cfg)
    (folder,) = (tmp_path / STORE).iterdir()
    lines = read_metrics(folder)
    max((folder / CHECKPOINTS).iterdir()).unlink()  # killed before the last checkpoint, after the last round's lines
    finish = Counted()
    assert digest(play(cfg, finish)) == digest(whole)
    assert finish.calls == [1] and [line["round"] for line in read_metrics(folder)] == [0, 1, 2] and len(lines) == 3


@pytest.mark.parametrize(
    ("rounds", "content", "said"),
    [
        (3, "", " lacks rounds"),
        (3, "{}\n", "line 1 is damaged: it is not round 0"),
        (2, "{}\n", "line 1 is damaged: 'round'"),
        (2, "", " ends at round -1, the checkpoint at 1"),
    ],
)
def test_a_damaged_record_is_told_with_what_helps(
    rounds: int, content: str, said: str, small: Tiny, whole: ServerState, tmp_path: Path
) -> None:
    """Finished, or amid its rounds. `resume=false` would look into the same folder, whatever that is called."""
    runs = tmp_path / "new; resume=false runs"
    cfg = small(f"paths.runs='{runs}'")
    shutil.copytree(Path(small().paths.runs) / STORE, runs / STORE)
    (folder,) = [path for path in (runs / STORE).iterdir() if path.name == Clean(cfg, build(cfg)).identity]
    (folder / METRICS).write_text(content)
    if rounds == 2:
        max((folder / CHECKPOINTS).iterdir()).unlink()
    with pytest.raises(RunFolderError) as told:
        play(cfg)
    start, end = f"the start in {folder} is damaged: {folder / METRICS}", "; delete that folder, and its rounds are "
    assert re.fullmatch(f"{re.escape(start)},? ?{said}{end}played anew", str(told.value))
    shutil.rmtree(folder)
    assert digest(play(cfg)) == digest(whole)


def test_a_fault_in_its_rounds_is_no_damage(small: Tiny, tmp_path: Path) -> None:
    def fail(*_: object) -> ServerState:
        raise IndexError("Target 10 is out of bounds.")

    cfg = small(f"paths.runs={tmp_path}")
    with pytest.raises(IndexError, match="Target 10"):
        begun(cfg, build(cfg), fail)


def test_of_two_at_once_one_computes_and_one_waits(
    small: Tiny, whole: ServerState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configs = [small(f"paths.runs={tmp_path}", f"defense={name}") for name in ("median", "fedavg")]
    built, finish = [(cfg, build(cfg)) for cfg in configs], Counted()  # building draws from the process' own generator
    with ThreadPoolExecutor(2) as both, caplog.at_level("INFO"):
        states = list(both.map(lambda pair: begun(*pair, finish), built))
    assert [digest(state) for state in states] == [digest(whole)] * 2
    assert finish.calls == [3]


def test_who_waits_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as other, caplog.at_level("INFO"):
        with waited(tmp_path):
            second = other.submit(lambda: waited(tmp_path).__enter__())
            while "waiting for it" not in caplog.text:
                assert not second.done()
        second.result(timeout=10)
    assert caplog.text.count("is being written by another run") == 1


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """The real command, killed in its start or behind it, with an attack that waits for MA; its model is a start."""
    words = ["engine=sequential", "model=cnn", "start=trained", "start.rounds=4", "attack_rounds.after_ma=0.12"]
    succeed(tmp_path / "whole", *words)
    assert killed_and_resumed(tmp_path / "runs", words, 4.0, random.Random(3), writing=False)
    assert fingerprint(tmp_path / "runs") == fingerprint(tmp_path / "whole")
    ended, folder = (run_folder(tmp_path / name) for name in ("whole", "runs"))
    assert (ended / MODEL).read_bytes() == (folder / MODEL).read_bytes()
    attacked = [line["filter/malicious_recall"] is not None for line in read_metrics(folder)]
    assert attacked == sorted(attacked) and not attacked[0] and attacked[-1]
    succeed(tmp_path / "next", "model=cnn", "engine=sequential", "start=file", f"start.path={folder}")
    began = json.loads((run_folder(tmp_path / "next") / "environment.json").read_text())
    state = json.loads((folder / "summary.json").read_text())["state_sha256"]
    assert began["start"] == began["initial"] == state[:LENGTH]


def test_engines_give_the_same_bits(small: Tiny, whole: ServerState, tmp_path: Path) -> None:
    assert digest(play(small(f"paths.runs={tmp_path}", "engine=pool", "engine.workers=2"))) == digest(whole)


def test_what_the_server_keeps_begins_with_the_trained_model(small: Tiny, tmp_path: Path) -> None:
    cfg = small("model=resnet8", f"paths.runs={tmp_path}", "start.rounds=1", "server.statistics=local")
    parts = build(cfg)
    state = begun(cfg, parts, Counted())
    statistics = state.row[statistics_span(parts.task.layout)]
    assert torch.equal(state.memory[OWN], statistics.expand(5, -1))
    assert not torch.equal(statistics, parts.initial.row[statistics_span(parts.task.layout)])


def test_scratch_is_no_part_of_an_identity(tiny: Tiny) -> None:
    """Runs from before there was a choice stay finished."""
    scratch, file, waiting = (
        plain(tiny(*words)) for words in ((), ("start=file", "start.path=a.pt"), ("attack_rounds.after_ma=0.5",))
    )
    older = {key: value for key, value in scratch.items() if key != "start"}
    older["attack_rounds"] = {k: v for k, v in older["attack_rounds"].items() if k != "after_ma"}
    assert config_hash(scratch) == config_hash(older)
    assert len({config_hash(config) for config in (scratch, file, waiting)}) == 3
