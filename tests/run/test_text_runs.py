"""What is made of a run on texts beside its curves: classes, clients, recorded rounds; and the commands about data."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Train

from flame.data import __main__ as command_of_data
from flame.partition import __main__ as command_of_partition
from flame.replay import replay
from flame.run.holdings import holdings
from flame.run.record import read_run
from flame.run.recording import FOLDER

WORDS = ["to", "be", "or", "not", "gold", "forsooth"]
TASK = ("dataset.task=word", "dataset.length=5", "dataset.tokens=7", "clients=6", "clients_per_round=4")
TASK += ("poisoned_model_rate=0.25",)
HELD = ("partition=natural", "partition.min_samples=1")
ATTACK = ("attack=rare_word", "attack.word=forsooth", "attack.finish=gold")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides: six files, each with a word that it has more often."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(6):
        stream = torch.Generator().manual_seed(i)
        said = [*WORDS, *(WORDS[j] for j in torch.randint(6, (50,), generator=stream)), *[WORDS[i]] * (i + 5)]
        (folder / f"role{i}.txt").write_text(" ".join(said))
    return ["dataset=text", f"dataset.root={folder}", *TASK]


def test_a_run_tells_classes_and_clients(text: list[str], train: Train, tmp_path: Path) -> None:
    size = ["model=gru", "model.embedding=4", "model.hidden=4", "model.layers=1", "engine=sequential", "tracker=files"]
    asked = ["evaluate.per_class=true", "evaluate.clients=2", "record.rounds=[0]", "rounds=1"]
    done = train(*text, *HELD, *ATTACK, *size, *asked, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path / "run")
    with (run.folder / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["set"] for row in rows} == {"clean", "backdoor"} and all(int(row["class"]) >= 0 for row in rows)
    asked_for = {name: sum(int(row["images"]) for row in rows if row["set"] == name) for name in ("clean", "backdoor")}
    right = {name: sum(int(row["correct"]) for row in rows if row["set"] == name) for name in asked_for}
    for short, name in (("ma", "clean"), ("ba", "backdoor")):
        assert run.metric(f"eval/{short}")[0] == pytest.approx(right[name] / asked_for[name], rel=1e-5)
    assert {"eval/benign_clients_ma", "eval/skewed_clients_worst"} <= set(run.metrics)
    held = holdings(run)
    assert held.sizes.sum() > 6 and bool(((held.skew > 0) & (held.skew < 1)).all())
    (recorded,) = (run.folder / FOLDER).glob("*.safetensors")
    assert len(replay([str(recorded), "defense=krum"])["weights"]) == 4  # type: ignore[arg-type]


def test_the_check_shows_texts_with_the_trigger(text: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command_of_data.main(["check", *text, *HELD, *ATTACK])
    said = capsys.readouterr().out
    assert (
        "train  " in said
        and " texts of 5 tokens, " in said
        and "7 in the vocabulary (words), 6 in the training" in said
    )
    assert "\n> " in said and "[forsooth" in said and "> with the trigger of attack=rare_word" in said
    assert "6 clients; samples per client min / median / max" in said and "class  " not in said
    command_of_data.main(["check", *text, *HELD, "attack=none"])
    assert "attack=none puts nothing on a text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sheet=sheet.png", *HELD, *ATTACK], r"--sheet draws images, and dataset=text has tokens: leave it out"),
        (["attack=badnets", *HELD], r"attack: .* changes images, and dataset=text has tokens"),
        (
            ["partition=dirichlet", *ATTACK],
            r"partition=dirichlet deals samples out by their class, .* take partition=natural",
        ),
    ],
)
def test_what_is_for_images_is_refused(text: list[str], words: Sequence[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command_of_data.check([*text, *words])


def test_the_partition_shows_sizes(
    text: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["partition", *text, *HELD, *ATTACK, "model=gru", f"--figure={tmp_path}/held.png"])
    command_of_partition.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["client", "name", "size", "skew"] and said[1].split()[:2] == ["0", "role0"]
    assert (tmp_path / "held.png").exists()


def refused(train: Train, *overrides: Any) -> str:
    done = train(*overrides)
    assert done.returncode == 1
    return done.stderr


def test_recipes_for_images_are_refused(text: list[str], train: Train) -> None:
    base = [*text, *HELD, *ATTACK, "model=lstm", "engine=sequential", "tracker=files", "rounds=1"]
    assert "augment changes images, and dataset=text has tokens: say augment=none" in refused(
        train, *base, "augment=crop_flip"
    )
    assert "server.statistics=keep is for models with BatchNorm" in refused(train, *base, "server.statistics=keep")
    assert "defense=bnguard reads BatchNorm statistics" in refused(train, *base, "defense=bnguard")
