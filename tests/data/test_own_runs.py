"""Runs on data of one's own: the same bits in every engine, names in the record, and other files are another run."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from flame.federation import rounds
from flame.run.build import build, data_digest
from flame.run.config import identity
from flame.run.provenance import origin_of
from flame.run.record import read_acceptance
from flame.run.weights import facts_of

WRITERS = ("Zoë", "writer 2", "03", "iv", "five")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as floats, written by five hands."""
    bunch = load_digits()
    x, y = (bunch.images[:300] / 16).astype(np.float32), bunch.target[:300]
    path = tmp_path_factory.mktemp("own") / "digits.npz"
    writers = np.array([WRITERS[i % 5] for i in range(250)])
    np.savez(path, x_train=x[:250], y_train=y[:250], x_test=x[250:], y_test=y[250:], client_train=writers)
    return path


@pytest.fixture
def own(archive: Path) -> list[str]:
    return [
        *("experiment=smoke", "rounds=1", "clients=4", "clients_per_round=4", "tracker=files", "train_samples=240"),
        *("dataset=arrays", f"dataset.path={archive}", "dataset.layout=NHW", "dataset.pixels=unit"),
        *("dataset.classes=10", "dataset.channels=1", "dataset.image_size=8", "partition=natural"),
    ]


def test_the_record_has_the_names(own: list[str], train: Callable[..., Any], tmp_path: Path) -> None:
    done = train(*own, "defense=fltrust", "defense.root_samples=20", "engine=sequential", f"paths.runs={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("arrays-natural-*/acceptance.csv")
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert read_acceptance(path)["name"].tolist() == [row["name"] for row in rows]
    names = {int(row["client"]): row["name"] for row in rows}
    found = [names[i] for i in range(4)]
    assert found == [name for name in sorted(WRITERS) if name in found]
    assert sum(int(row["samples"]) for row in rows) <= 220


def test_other_lists_in_the_same_file_are_other_data(tmp_path: Path, tiny: Callable[..., DictConfig]) -> None:
    """The folder of a run is named before there are lists, so that its record has to know them."""
    path, digests = tmp_path / "mine.json", []
    cfg = tiny("partition=file", f"partition.path={path}", "train_samples=null", "clients=5", "clients_per_round=5")
    for shift in (0, 1, 0):
        path.write_text(json.dumps([[*range((i + shift) % 5, 1442, 5)] for i in range(5)]))
        digests.append(data_digest(cfg, "any"))
    assert digests[0] == digests[2] != digests[1]
    parts, plain = build(cfg), OmegaConf.to_container(cfg, resolve=True)
    assert parts.task.shards.sizes.tolist() == [289, 289, 288, 288, 288, 0]
    assert isinstance(plain, dict) and origin_of(plain, "any")["data"] == parts.data[:12]  # type: ignore[arg-type]


def test_folders_elsewhere_are_other_data(tiny: Callable[..., DictConfig]) -> None:
    """Of sets whose content is known the place does not matter; where decoded images are kept never does."""
    here, there, kept = (
        tiny("dataset=folder", *words)
        for words in (["dataset.root=/a"], ["dataset.root=/b"], ["dataset.root=/a", "dataset.cache=/c"])
    )
    assert identity(here) == identity(kept) != identity(there)
    assert facts_of(here.dataset) == facts_of(kept.dataset) != facts_of(there.dataset)


def test_a_folder_of_images_is_learnt(tmp_path: Path, tiny: Callable[..., DictConfig], start: Callable) -> None:
    """As the data set that they were made of: one round ends with the same bits."""
    sha = []
    words = ("train_samples=null", "clients=5", "clients_per_round=5", "attack=none", "partition=iid")
    bunch = load_digits()
    for i, (image, label) in enumerate(zip(bunch.images[:200], bunch.target[:200], strict=True)):
        folder = tmp_path / "mine" / ("train" if i < 150 else "test") / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).save(folder / f"{i:03d}.png")
    order = np.concatenate(
        [np.argsort(bunch.target[part], kind="stable") + part.start for part in (slice(0, 150), slice(150, 200))]
    )
    x = np.rint(bunch.images[order] * 255 / 16).astype(np.uint8)
    y = bunch.target[order]
    np.savez(tmp_path / "same.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    facts = ("dataset.classes=10", "dataset.channels=1", "dataset.image_size=8")
    for data in (
        ("dataset=folder", f"dataset.root={tmp_path}/mine"),
        ("dataset=arrays", f"dataset.path={tmp_path}/same.npz", "dataset.layout=NHW"),
    ):
        with start(tiny(*words, *data, *facts)) as (fed, state):
            sha.append(next(rounds(fed, state, 1)).after.row)
    assert torch.equal(*sha) and os.listdir(tmp_path / "mine/.tensors")
