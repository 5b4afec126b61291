"""`dataset=hub`: a set that Hugging Face's library wrote to disk, read offline; nothing of a set is executed."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from flame.data.check import checked
from flame.data.hub import hub
from flame.data.samples import Dataset

SETTINGS = {
    **{"config": None, "revision": None, "train": "train", "test": "test", "image": None, "label": "kind"},
    **{"client": None, "resize": "none", "mean": None, "std": None, "classes": 3, "channels": 1, "image_size": 4},
}
LEVELS = [10, 20, 30, 40, 50]


def load(name: object, cache: Path, **changes: Any) -> Dataset:
    made = hub(**{"name": str(name), "cache": str(cache), **SETTINGS, **changes})
    return checked(made, {"classes": 3, "channels": 1, "image_size": 4})


@pytest.fixture(scope="module")
def library() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        yield pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def saved(library: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training images of one level each, two test images; who wrote them, by name and by class."""
    features = library.Features(
        {
            "picture": library.Image(),
            "kind": library.ClassLabel(names=["a", "b", "c"]),
            "writer": library.Value("string"),
            "site": library.ClassLabel(names=["north", "south"]),
            "size": library.Value("float32"),
        }
    )

    def split(levels: list[int], kinds: list[int]) -> Any:
        pictures = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in levels]
        columns = {"picture": pictures, "kind": kinds, "writer": [f"w{k}" for k in kinds]}
        more = {"site": [k % 2 for k in kinds], "size": [0.5] * len(kinds)}
        return library.Dataset.from_dict({**columns, **more}, features=features)

    folder = tmp_path_factory.mktemp("hub") / "mine"
    splits = {"train": split(LEVELS, [2, 0, 1, 0, 2]), "test": split([60, 70], [1, 0]), "open": split([1], [-1])}
    library.DatasetDict(splits).save_to_disk(folder)
    return folder


def test_columns_and_classes_come_from_the_features(saved: Path, tmp_path: Path) -> None:
    made = load(saved, tmp_path)
    assert made.train.x[:, 0, 0, 0].tolist() == LEVELS and made.train.y.tolist() == [2, 0, 1, 0, 2]
    assert made.test.x[:, 0, 3, 3].tolist() == [60, 70] and made.test.y.tolist() == [1, 0]
    assert made.classes == 3 and made.holders is None and made.mean == (pytest.approx(30 / 255),)
    assert len([*tmp_path.glob("*-mine-train-1x4-none-*.safetensors")]) == 1
    assert load(saved, tmp_path).digest() == made.digest()


def test_the_only_column_of_classes_need_not_be_said(library: Any, saved: Path, tmp_path: Path) -> None:
    library.load_from_disk(str(saved)).remove_columns(["site"]).save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one", tmp_path, label=None).train.y.tolist() == [2, 0, 1, 0, 2]


@pytest.mark.parametrize(
    ("client", "names", "of"),
    [("writer", ("w0", "w1", "w2"), [2, 0, 1, 0, 2]), ("site", ("north", "south"), [0, 0, 1, 0, 0])],
)
def test_who_holds_what(saved: Path, tmp_path: Path, client: str, names: tuple[str, ...], of: list[int]) -> None:
    held = load(saved, tmp_path, client=client).holders
    assert held is not None and held.names == names and held.of.tolist() == of


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label": None},
            r"dataset\.label=null: must be a column of .*mine of the kind ClassLabel; it has picture \(Im",
        ),
        ({"image": "kind"}, r"dataset\.image=kind: must be a column of .* of the kind Image"),
        ({"test": "validation"}, r"dataset\.test=validation: .* no such split: must be one of train, test, open"),
        ({"test": "open"}, r"open has images without a kind: name another split"),
        ({"client": "who"}, r"dataset\.client=who is no column of .*: must be one of picture, kind, writer, site"),
        ({"client": "size"}, r"dataset\.client=size: .* has float\d+ there: must be whole numbers or text"),
        (
            {"classes": None},
            r"dataset\.classes=null must be said.*dataset\.classes=3 .*channels=1 dataset\.image_size=4",
        ),
        (
            {"image_size": 5},
            r"5 of 5 images are not of dataset\.image_size=5: train no\. 0 \(.*; say dataset\.image_size=4 or ",
        ),
        ({"name": None}, r"dataset\.name=null: dataset=hub needs a name on the hub, such as"),
    ],
)
def test_what_cannot_be(saved: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hub(**{"name": str(saved), "cache": str(tmp_path), **SETTINGS, **changes})


def test_a_set_that_is_not_there(library: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset\.name=.*/nowhere cannot be had \("):
        load(tmp_path / "nowhere", tmp_path)


def test_code_of_a_set_is_not_run(library: Any, tmp_path: Path) -> None:
    """A loading script, as older versions of the library ran it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(FileNotFoundError, match=r"cannot be had"):
        load(tmp_path / "mine", tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_library_that_may_run_code_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = types.ModuleType("datasets")
    old.__version__ = "3.6.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "datasets", old)
    with pytest.raises(
        ValueError, match=r"datasets 3\.6\.0 may run code of others: must be 4\.0 or newer; pip install"
    ):
        load("any", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"dataset=hub needs Hugging Face's datasets: pip install 'datasets>=4'"):
        load("any", tmp_path)


def test_its_settings_are_the_yaml(compose: Callable[..., DictConfig]) -> None:
    assert {str(key) for key in compose("dataset=hub").dataset} - {"_target_", "name", "cache"} == set(SETTINGS)
