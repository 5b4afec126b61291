"""`dataset=folder`: pixels as Pillow has them, one decoding however often and by how many jobs, refusals in words."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flame.data import cache, folder
from flame.data.check import checked
from flame.data.folder import look_up
from flame.data.pictures import UNREADABLE, Look
from flame.data.samples import Dataset

FACTS = {"classes": 2, "channels": 1, "image_size": 4}
SETTINGS = {
    **{"test_share": None, "split_seed": 0, "resize": "none", "corrupt": "refuse", "cache": None},
    **{"mean": None, "std": None, **FACTS},
}


def png(path: Path, level: int | np.ndarray, size: tuple[int, int] = (4, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size, level, np.uint8) if isinstance(level, int) else level
    Image.fromarray(pixels).convert(mode).save(path)


def load(place: Path, **changes: Any) -> Dataset:
    made = folder.folder(**{"root": str(place), **SETTINGS, **changes})
    return checked(made, {k: v for k, v in {**FACTS, **changes}.items() if k in FACTS})


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Folders train and test; every image one level, which tells it."""
    for part, name, levels in (
        *(("train", "2", (20, 21, 22)), ("train", "10", (100, 101))),
        *(("test", "10", (110,)), ("test", "2", (29,))),
    ):
        for level in levels:
            png(tmp_path / "mine" / part / name / f"{level}.png", level)
    return tmp_path / "mine"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Classes only: ten images of a, five of b."""
    for name, levels in (("a", range(10)), ("b", range(100, 105))):
        for level in levels:
            png(tmp_path / "mine" / name / f"{level:03d}.png", level)
    return tmp_path / "mine"


def levels(dataset: Dataset, part: str) -> list[int]:
    return getattr(dataset, part).x[:, 0, 0, 0].tolist()


def test_train_and_test_folders(apart: Path) -> None:
    """Classes that are whole numbers are in their order, as are the files of one."""
    made = load(apart)
    assert levels(made, "train") == [20, 21, 22, 100, 101] and made.train.y.tolist() == [0, 0, 0, 1, 1]
    assert levels(made, "test") == [29, 110] and made.test.y.tolist() == [0, 1]
    assert made.mean == (pytest.approx((20 + 21 + 22 + 100 + 101) / 5 / 255, abs=0),)
    assert made.std[0] == pytest.approx(float(torch.tensor([20.0, 21, 22, 100, 101]).std(correction=0)) / 255)


def test_a_class_that_test_lacks_keeps_its_number(apart: Path) -> None:
    shutil.rmtree(apart / "test/2")
    made = load(apart)
    assert levels(made, "test") == [110] and made.test.y.tolist() == [1]


def test_mean_and_std_that_are_given_stay(apart: Path) -> None:
    made = load(apart, mean=[0.5])
    assert made.mean == (0.5,) and made.std == load(apart).std


def test_a_share_of_each_class_is_drawn(whole: Path) -> None:
    made, again, other = (load(whole, test_share=0.2, split_seed=seed) for seed in (0, 0, 1))
    assert made.test.y.bincount().tolist() == [2, 1] and made.train.y.bincount().tolist() == [8, 4]
    assert sorted(levels(made, "train") + levels(made, "test")) == [*range(10), *range(100, 105)]
    assert made.digest() == again.digest() != other.digest()
    assert load(whole, test_share=0.99).train.y.bincount().tolist() == [1, 1]  # nobody could learn what is not there


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "tif", "webp", "ppm", "jpg"])
def test_what_pillow_reads(tmp_path: Path, ending: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    path = tmp_path / f"image.{ending}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if ending == "webp" else {}))
    found = Look(3, 5, "none").of(path)
    expected = pixels.transpose(2, 0, 1)
    if ending in ("jpg", "gif"):
        expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_resizing_by_hand(tmp_path: Path) -> None:
    """8 x 4 pixels, black above and white below in the left half, grey in the right."""
    pixels = np.full((4, 8), 100, np.uint8)
    pixels[:2, :4], pixels[2:, :4] = 0, 255
    png(tmp_path / "wide.png", pixels)
    stretched = Look(1, 4, "stretch").of(tmp_path / "wide.png")[0]
    assert stretched[0].tolist()[0] == 0 and stretched[3].tolist()[0] == 255 and set(stretched[:, 3]) == {100}
    cropped = Look(1, 4, "crop").of(tmp_path / "wide.png")[0]  # columns 2 to 5, untouched
    assert np.array_equal(cropped, pixels[:, 2:6])
    with pytest.raises(ValueError, match=r"it has 4 x 8 pixels, and dataset\.resize=none"):
        Look(1, 4, "none").of(tmp_path / "wide.png")


def test_channels_are_as_declared(tmp_path: Path) -> None:
    png(tmp_path / "colour.png", np.array([[[200, 100, 50]]], np.uint8), mode="RGB")
    assert Look(1, 1, "none").of(tmp_path / "colour.png").item() == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    png(tmp_path / "grey.png", 7, (1, 1))
    assert Look(3, 1, "none").of(tmp_path / "grey.png").flatten().tolist() == [7, 7, 7]
    Image.fromarray(np.array([[40000]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        Look(1, 1, "none").of(tmp_path / "deep.png")


def test_decoded_once(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start reads the file. A change of content, or of what is made of it, is seen; a touched file is not."""
    made = load(apart)
    calls: list[int] = []
    monkeypatch.setattr(folder, "decoded", lambda paths, look: calls.append(len(paths)) or real(paths, look))
    os.utime(apart / "train/2/20.png", (1, 1))
    assert load(apart).digest() == made.digest() and not calls
    shutil.copytree(apart, apart.parent / "copy")
    assert load(apart.parent / "copy").digest() == made.digest() and not calls
    png(apart / "train/2/20.png", 19)  # of the same length
    assert levels(load(apart), "train")[0] == 19 and calls == [7]
    (apart / "train/2/21.png").rename(apart / "train/2/09.png")
    assert levels(load(apart), "train")[:2] == [21, 19] and calls == [7, 7]
    load(apart, channels=3)
    load(apart, image_size=2, resize="stretch")
    load(apart)
    assert calls == [7, 7, 7, 7]
    assert len([*(apart / ".tensors").glob("1x4-*.safetensors")]) == 1  # of files as they were nothing is kept


real = folder.decoded


def test_what_a_killed_job_left_is_removed(apart: Path) -> None:
    (half := apart / ".tensors/1x4-none-0.safetensors.99999.part").parent.mkdir()
    half.touch()
    load(apart)
    assert not half.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_cache_is_made_again(apart: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    made = load(apart)
    (path,) = (apart / ".tensors").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"cut": content[:-3], "flipped": content, "empty": b"", "other": b"PK\x03\x04" * 9}[damage])
    assert load(apart).digest() == made.digest()
    assert "is damaged" in caplog.text and path.stat().st_size == len(content)


def test_a_folder_that_cannot_be_written_to(
    apart: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (apart / ".tensors").write_text("in the way of a folder")
    made = load(apart)
    assert "cannot be written" in caplog.text and "dataset.cache=DIR" in caplog.text
    elsewhere = apart.parent / "elsewhere"
    assert load(apart, cache=str(elsewhere)).digest() == made.digest() and [*elsewhere.glob("*.safetensors")]


def _digest(root: Path) -> str:
    return load(root).digest()


def test_jobs_that_start_together(apart: Path) -> None:
    """All read the same; one file is left, whole, and nothing beside it."""
    with ProcessPoolExecutor(2) as jobs:
        assert len(set(jobs.map(_digest, [apart] * 4))) == 1
    (left,) = (path.name for path in (apart / ".tensors").iterdir() if path.name != ".lock")
    assert left.endswith(".safetensors") and cache.read(apart / ".tensors" / left) is not None


def broken(apart: Path) -> None:
    (apart / "train/2/21.png").write_bytes((apart / "train/2/21.png").read_bytes()[:40])
    (apart / "test/10/000.jpg").write_text("not an image")
    (apart / "train/2/30.png").symlink_to("nowhere")


def test_images_that_cannot_be_read_are_refused(apart: Path) -> None:
    broken(apart)
    for _ in range(2):  # from the files, and from the cache
        with pytest.raises(
            ValueError, match=r"3 of 9 images cannot be read: train/2/21\.png \(.*30\.png \(.*test/10/000\.jpg \("
        ):
            load(apart)


def test_images_of_another_size_are_no_damage(apart: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"7 of 7 images are not of dataset\.image_size=8: .*; say dataset\.image_size=4 or dataset\.resize=",
    ):
        load(apart, image_size=8)
    png(apart / "train/2/23.png", 23, (4, 5))
    with pytest.raises(
        ValueError, match=r"1 of 8 images are not of .*4 x 5.*; say dataset\.resize=stretch \(or crop\)$"
    ):
        load(apart)
    broken(apart)
    with pytest.raises(ValueError, match=r"3 of 10 images cannot be read: .*; mend or delete them"):
        load(apart)


def test_or_left_out_with_a_warning(apart: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken(apart)
    made = load(apart, corrupt="skip")
    assert levels(made, "train") == [20, 22, 100, 101] and made.train.y.tolist() == [0, 0, 1, 1]
    assert levels(made, "test") == [29, 110] and made.test.y.tolist() == [0, 1]
    assert "3 of 9 images cannot be read" in caplog.text and "train/2/21.png" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the damage
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm"]),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    kept=st.floats(0.3, 1),
)
def test_whatever_a_file_holds_it_is_an_image_or_unreadable(
    tmp_path: Path, kind: str, changes: list[tuple[int, int]], kept: float
) -> None:
    path = tmp_path / f"image.{kind}"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path, format=kind)
    content = bytearray(path.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    path.write_bytes(content[: max(1, round(kept * len(content)))])
    try:
        assert Look(3, 4, "stretch").of(path).shape == (3, 4, 4)
    except UNREADABLE as error:
        assert str(error) or type(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, r"dataset\.root=null: dataset=folder needs"),
        ({"test_share": 0.2}, r"dataset\.test_share=0\.2, but .* has folders train and test"),
        ({"corrupt": "ignore"}, r"dataset\.corrupt=ignore is unknown: must be refuse or skip"),
        ({"resize": "pad"}, r"dataset\.resize=pad is unknown: must be one of stretch, crop, none"),
        ({"channels": 2}, r"dataset\.channels=2 is out of range: must be 1 \(grey\) or 3"),
        ({"image_size": 0}, r"dataset\.image_size=0 is out of range"),
        (
            {"image_size": None},
            r"dataset\.image_size=null must be said.*classes=2 dataset\.channels=1 dataset\.image_size=4",
        ),
        ({"classes": None}, r"dataset\.classes=null must be said"),
        ({"classes": 3}, r"dataset\.classes=3 does not fit folder, which has 2: set it to that"),
    ],
)
def test_settings_that_cannot_be(apart: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(apart, **changes)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_that_cannot_be(whole: Path, share: float) -> None:
    with pytest.raises(ValueError, match=r"dataset\.test_share=.* is out of range: must be in \(0, 1\)"):
        load(whole, test_share=share)


def test_folders_that_cannot_be(apart: Path, whole: Path, tmp_path: Path) -> None:
    """`apart` and `whole` are one folder here: it has classes, and train and test."""
    with pytest.raises(FileNotFoundError, match=r"dataset\.root=.*nowhere: there is no such folder"):
        load(tmp_path / "nowhere")
    png(apart / "test" / "5" / "0.png", 5)
    with pytest.raises(ValueError, match=r"test has the class folders 5, which train lacks"):
        load(apart)
    (apart / "train" / "5").mkdir()
    with pytest.raises(ValueError, match=r"train/5 has no image .*: put some there, or delete it"):
        load(apart)
    shutil.rmtree(apart / "train")
    with pytest.raises(ValueError, match=r"has no folders train and test: make them, or dataset\.test_share=0\.2"):
        load(apart)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"bare has no folder in it: must have one for each class"):
        load(tmp_path / "bare", test_share=0.5)


def test_files_that_are_no_images_are_named(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("notes.txt", ".hidden.png", "deeper/.thumbs/1.png"):
        (whole / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / "a" / name).write_text("?")
    png(whole / "a/deeper/011.PNG", 11)
    with caplog.at_level(logging.WARNING):
        found = look_up(whole)
    assert found.y.bincount().tolist() == [11, 5]
    assert "1 files" in caplog.text and "notes.txt" in caplog.text and "hidden" not in caplog.text
