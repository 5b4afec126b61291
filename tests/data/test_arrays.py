"""`dataset=arrays`: the same pixels from every layout, holders with them, and nothing guessed, nothing unpickled."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from flame.data.arrays import arrays, read
from flame.data.check import checked
from flame.data.facts import spread
from flame.data.samples import Dataset

SETTINGS = {"layout": "NHWC", "pixels": "uint8", "mean": None, "std": None}
FACTS = {"classes": 3, "channels": 2, "image_size": 4}
X = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 2), np.uint8)  # [N, H, W, C]
Y = np.arange(9) % 3
CONTENT: dict[str, Any] = {"x_train": X[:6], "y_train": Y[:6], "x_test": X[6:], "y_test": Y[6:]}


def written(folder: Path, ending: str = "npz", **changes: Any) -> Path:
    """CONTENT with changes; None leaves an array out."""
    content = {k: v for k, v in {**CONTENT, **changes}.items() if v is not None}
    path = folder / f"mine.{ending}"
    if ending == "npz":
        np.savez(path, **content)
    else:
        save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, path)
    return path


def load(file: Path, **changes: Any) -> Dataset:
    made = arrays(**{"path": str(file), **SETTINGS, **FACTS, **changes})
    return checked(made, {"path": file} | {k: v for k, v in {**FACTS, **changes}.items() if k in FACTS})


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("pixels", ["uint8", "unit"])
def test_the_same_images_whatever_the_file(tmp_path: Path, ending: str, layout: str, pixels: str) -> None:
    def stored(x: np.ndarray) -> np.ndarray:
        x = x.transpose(0, 3, 1, 2) if layout == "NCHW" else x
        return x if pixels == "uint8" else (x / 255).astype(np.float32)

    path = written(tmp_path, ending, x_train=stored(X[:6]), x_test=stored(X[6:]))
    made = load(path, layout=layout, pixels=pixels)
    assert np.array_equal(made.train.x.numpy(), X[:6].transpose(0, 3, 1, 2)) and made.train.x.is_contiguous()
    assert np.array_equal(made.test.x.numpy(), X[6:].transpose(0, 3, 1, 2))
    assert made.train.y.tolist() == [0, 1, 2, 0, 1, 2] and made.train.y.dtype == torch.int64
    assert made.mean == pytest.approx((X[:6] / 255).mean((0, 1, 2))) and made.holders is None
    assert made.std == pytest.approx((X[:6] / 255).std((0, 1, 2)))


def test_grey_images(tmp_path: Path) -> None:
    made = load(written(tmp_path, x_train=X[:6, ..., 0], x_test=X[6:, ..., 0]), layout="NHW", channels=1)
    assert made.train.x.shape == (6, 1, 4, 4) and np.array_equal(made.train.x[:, 0].numpy(), X[:6, ..., 0])


def test_any_height_and_width(tmp_path: Path) -> None:
    assert load(written(tmp_path, x_train=X[:6, :3], x_test=X[6:, :3]), image_size=None).train.x.shape == (6, 2, 3, 4)


@settings(max_examples=25)
@given(levels=st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_mean_and_spread_are_exact(levels: list[int]) -> None:
    mean, std = spread(torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1))
    assert mean[0] == sum(levels) / len(levels) / 255
    assert std[0] == pytest.approx(float(torch.tensor(levels, dtype=torch.float64).std(correction=0)) / 255)


@pytest.mark.parametrize(
    ("clients", "names", "of"),
    [
        (np.array([7, 30, 7, 7, 30, 10]), ("7", "10", "30"), [0, 2, 0, 0, 2, 1]),
        (np.array(["Zoë", "an", "Zoë", "an", "an", "bo"]), ("Zoë", "an", "bo"), [0, 1, 0, 1, 1, 2]),
    ],
)
def test_who_holds_what(tmp_path: Path, clients: np.ndarray, names: tuple[str, ...], of: list[int]) -> None:
    made = load(written(tmp_path, client_train=clients))
    assert made.holders is not None and made.holders.names == names and made.holders.of.tolist() == of


def test_what_is_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load(written(tmp_path, client_trian=Y[:6], x_val=X))
    assert "not read: client_trian, x_val" in caplog.text


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touched,)


@pytest.mark.parametrize("name", ["x_train", "y_test", "client_train"])
def test_pickles_are_refused_and_not_opened(tmp_path: Path, name: str) -> None:
    touched = tmp_path / "unpickled"
    path = written(tmp_path, **{name: np.array([Bomb(touched)], dtype=object)})
    with pytest.raises(ValueError, match=rf"mine\.npz: {name} holds pickled objects, which could run code .* never"):
        load(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"lacks y_test \(it has x_train, y_train, x_test\): save the arrays under these names"),
        (
            {"x_train": X[:6, ..., 0]},
            r"x_train has the shape \(6, 4, 4\), and dataset\.layout=NHWC says \[N, H, W, ",
        ),
        ({"x_train": X[:6].astype(int)}, r"x_train is int64, and dataset\.pixels=uint8: .* dataset\.pixels=unit if"),
        ({"y_train": Y[:6].astype(float)}, r"y_train is float64 of the shape \(6,\): must be whole numbers \[N\]"),
        ({"y_train": Y[:6, None]}, r"y_train is int64 of the shape \(6, 1\)"),
        (
            {"y_train": Y[:5], "client_train": Y[:5]},
            r"mine\.npz: x_train has 6 images and y_train 5 labels: must be as",
        ),
        ({"y_train": Y[:6] + 1}, r"dataset\.path=.*mine\.npz: train\.y has labels in \[1, 3\], dataset\.classes=3"),
        (
            {"y_train": Y[:6] // 2},
            r"dataset\.path=.*mine\.npz: test has the classes \[2\], of which train has no image",
        ),
        ({"x_test": X[6:, :3]}, r"mine\.npz: x_test has images of the shape \(2, 3, 4\) .*, x_train of \(2, 4, 4\)"),
        ({"x_train": X[:0], "y_train": Y[:0]}, r"x_train has no image"),
        ({"client_train": Y[:5]}, r"client_train is int64 of the shape \(5,\): must be .* \(6,\), one for each"),
        ({"client_train": Y[:6] / 2}, r"client_train is float64"),
        ({"client_train": np.array(["a,b", *"bcdef"])}, r"client_train of .*mine\.npz has 'a,b': must be printable"),
    ],
)
def test_arrays_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (1.0001, r"pixels outside \[0, 1\] .* and dataset\.pixels=unit"),
        (-0.0001, r"pixels outside \[0, 1\]"),
        (float("nan"), r"NaN in images 0 to 5: must be in \[0, 1\]; leave out"),
    ],
)
def test_unit_pixels_are_in_the_unit_interval(tmp_path: Path, value: float, problem: str) -> None:
    x = X / 255
    x[2, 1, 1, 1] = value
    with pytest.raises(ValueError, match=f"mine\\.npz: x_train has {problem}"):
        load(written(tmp_path, x_train=x[:6], x_test=x[6:]), pixels="unit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": None}, r"dataset\.path=null: dataset=arrays needs an \.npz or \.safetensors"),
        ({"layout": "HWC"}, r"dataset\.layout=HWC is unknown: must be one of NHW, NHWC, NCHW"),
        ({"pixels": "float"}, r"dataset\.pixels=float is unknown: must be one of uint8, unit"),
        ({"pixels": "unit"}, r"x_train is uint8, and dataset\.pixels=unit asks for floats"),
        ({"classes": None}, r"dataset\.classes=null must be said.*has dataset\.classes=3 dataset\.channels=2"),
        ({"classes": 2}, r"labels in \[0, 2\], dataset\.classes=2 allows"),
        ({"channels": 1}, r"dataset\.channels=1 with dataset\.image_size=4 does not fit arrays"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path), **settings)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: there is no such file"):
        load(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match=r": it is a folder: name an \.npz"):
        load(tmp_path)
    for name, message in (
        ("mine.npy", r"ends in \.npy: must be an \.npz or \.safetensors"),
        ("mine.npz", r"is no \.npz file"),
        ("mine.safetensors", r"is not a whole safetensors file"),
    ):
        (tmp_path / name).write_bytes(b"\x80\x04K\x01.")  # a pickle
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("x_train.npy", r" at x_train \(it is no \.npy array\)"),
        ("../../evil.npy", r" \(it has names that lead out of its own folder, \['\.\./\.\./evil'\]\)"),
    ],
)
def test_a_member_that_is_no_array_or_climbs(tmp_path: Path, name: str, problem: str) -> None:
    with zipfile.ZipFile(written(tmp_path, x_train=None), "a") as file:
        file.writestr(name, b"garbage")
    with pytest.raises(ValueError, match=rf"mine\.npz is damaged{problem}: write it again with numpy\.savez"):
        read(tmp_path / "mine.npz", ("x_train",))


def test_an_array_that_promises_more_than_there_is(tmp_path: Path) -> None:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (2000000000, 1000, 1000), }".ljust(117) + "\n"
    with zipfile.ZipFile(written(tmp_path, x_train=None), "a") as file:
        file.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(ValueError, match=r"mine\.npz is damaged at x_train"):
        load(tmp_path / "mine.npz")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 5000), value=st.integers(0, 255), cut=st.integers(0, 3000))
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, at: int, value: int, cut: int) -> None:
    """Or read: not every byte counts."""
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content[: max(1, len(content) - cut)])
    try:
        load(path)
    except ValueError as error:
        assert "mine.npz" in str(error) or "arrays" in str(error)
