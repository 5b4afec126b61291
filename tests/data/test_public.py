"""Public sets that nobody has here: their loaders on small files of the same format, with checksums of those."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as published
from omegaconf import DictConfig
from PIL import Image
from test_idx import idx_bytes

from flame.data import datasets, zipped
from flame.data.archive import ZipSource, climbs, opened
from flame.data.check import checked
from flame.data.emnist import EMNIST, emnist
from flame.data.leaf import femnist
from flame.data.samples import Dataset
from flame.run.build import dealt
from flame.run.config import identity, plain_node
from flame.run.weights import facts_of

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
LABELS = np.array([1, 2, 26, 1, 2, 26, 26, 2, 1], np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def packed(path: Path, files: Mapping[str, bytes]) -> ZipSource:
    """A zip file in a data folder, and its source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return ZipSource(str(path), "https://example.org", md5(path.read_bytes()))


def picture(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def facts(made: Dataset, **declared: Any) -> Dataset:
    return checked(made, declared)


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3 * 32 * 32), dtype=np.uint8)
    contents = {
        "train": {"data": pixels[:2], "fine_labels": [99, 0], "coarse_labels": [1, 2]},
        "test": {"data": pixels[2:], "fine_labels": [0], "coarse_labels": [3]},
        "meta": {"fine_label_names": list("ab"), "coarse_label_names": list("c")},
    }
    (tmp_path / "cifar-100-python").mkdir()
    sums = {}
    for name, content in contents.items():
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(content))
        sums[name] = md5(pickle.dumps(content))

    class Tiny(published.CIFAR100):
        train_list = [["train", sums["train"]]]  # noqa: RUF012
        test_list = [["test", sums["test"]]]  # noqa: RUF012
        meta = {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]}  # noqa: RUF012

    train, test = datasets._load_cifar("cifar100", Tiny, str(tmp_path), False)
    assert train.y.tolist() == [99, 0] and test.y.tolist() == [0]
    assert np.array_equal(torch.cat([train.x, test.x]).numpy(), pixels.reshape(3, 3, 32, 32))
    with pytest.raises(FileNotFoundError, match=r"dataset=cifar100: no intact .*cifar-100-python.*download=true"):
        datasets.cifar100(str(tmp_path), False, [0.5] * 3, [0.5] * 3, 100, 3, 32)  # these are not the published files


def test_svhn(tmp_path: Path) -> None:
    """Stored [H, W, C, N] with labels [N, 1] from 1, the 10 being the digit 0."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), np.uint8)
    table = {}
    for part, cut in (("train", slice(0, 3)), ("test", slice(3, 5))):
        path = tmp_path / f"{part}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels[..., cut], "y": np.array([[10], [1], [9], [9], [10]], np.uint8)[cut]})
        table[part] = ["https://example.org", path.name, md5(path.read_bytes())]

    class Tiny(published.SVHN):
        split_list = table

    train, test = datasets._load_svhn(Tiny, str(tmp_path), False)
    assert train.y.tolist() == [0, 1, 9] and test.y.tolist() == [9, 0] and train.y.dtype == torch.int64
    assert np.array_equal(torch.cat([train.x, test.x]).numpy(), pixels.transpose(3, 2, 0, 1))
    assert train.x.is_contiguous() and train.x.dtype == torch.uint8
    with pytest.raises(FileNotFoundError, match=r"no intact train_32x32\.mat and test_32x32\.mat.*download=true"):
        datasets.svhn(str(tmp_path), False, [0.5] * 3, [0.5] * 3, 10, 3, 32)


def emnist_zip(root: Path, split: str, labels: np.ndarray = LABELS) -> ZipSource:
    arrays = {"train-images-idx3": PIXELS[:6], "train-labels-idx1": labels[:6]}
    arrays |= {"test-images-idx3": PIXELS[6:], "test-labels-idx1": labels[6:]}
    files = {f"gzip/emnist-{split}-{name}-ubyte.gz": gzip.compress(idx_bytes(a)) for name, a in arrays.items()}
    return packed(root / "EMNIST/raw/gzip.zip", files)


@pytest.mark.parametrize(("split", "first"), [("letters", 1), ("byclass", 0)])
def test_emnist_counts_from_zero(tmp_path: Path, split: str, first: int, compose: Callable[..., DictConfig]) -> None:
    cfg = compose("dataset=emnist", f"dataset.split={split}").dataset
    source = emnist_zip(tmp_path, split)
    of = (split, cfg.classes_of, None, None, cfg.classes, 1, 28)
    made = facts(emnist(str(tmp_path), False, *of, source=source), classes=cfg.classes, channels=1, image_size=28)
    assert made.classes == {"letters": 26, "byclass": 62}[split]
    assert (
        made.train.y.tolist() == (LABELS[:6] - first).tolist() and made.test.y.tolist() == (LABELS[6:] - first).tolist()
    )
    assert np.array_equal(made.train.x[:, 0].numpy(), PIXELS[:6])  # as they are stored, and as torchvision gives them
    assert made.mean == (pytest.approx(PIXELS[:6].mean() / 255),)
    with pytest.raises(OSError, match=r"gzip\.zip is damaged or not the right file: emnist-?.*|.*cannot be read"):
        emnist(str(tmp_path), False, "digits", *of[1:], source=source)
    with pytest.raises(ValueError, match=r"dataset\.split=upper is unknown: must be one of byclass, .*, mnist"):
        emnist(str(tmp_path), False, "upper", *of[1:], source=source)


def test_checksums_are_torchvision_s() -> None:
    assert (EMNIST.url, EMNIST.md5) == (published.EMNIST.url, published.EMNIST.md5)
    text = inspect.getsource(published.GTSRB.download)
    for source in zipped.GTSRB.values():
        assert f'md5="{source.md5}"' in text and source.url.rpartition("/")[2] in text


def test_emnist_has_torchvision_s_splits(compose: Callable[..., DictConfig]) -> None:
    ours = compose("dataset=emnist").dataset.classes_of
    theirs = {split: [c for c in names if c != "N/A"] for split, names in published.EMNIST.classes_split_dict.items()}
    assert dict(ours) == {split: len(names) for split, names in theirs.items()}


def gtsrb_zips(root: Path) -> tuple[dict[str, ZipSource], np.ndarray]:
    """Signs of unequal size, each of one level; classes 0 and 42."""
    levels = np.array([10, 20, 30, 40], np.uint8)
    files = [picture(np.full((15 + i, 20, 3), level, np.uint8), "ppm") for i, level in enumerate(levels)]
    train = {
        "GTSRB/Training/00042/00000_00000.ppm": files[1],
        "GTSRB/Training/00000/00000_00000.ppm": files[0],
        "GTSRB/Training/00000/GT-00000.csv": b"Filename;ClassId\n",
        "GTSRB/Training/Readme.txt": b"",
    }
    test = {"GTSRB/Final_Test/Images/00000.ppm": files[2], "GTSRB/Final_Test/Images/00001.ppm": files[3]}
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    truth = f"{head}\n00000.ppm;20;17;1;1;9;9;42\n00001.ppm;20;18;1;1;9;9;0\n".encode()
    return {
        "train": packed(root / "gtsrb/GTSRB-Training_fixed.zip", train),
        "test": packed(root / "gtsrb/GTSRB_Final_Test_Images.zip", test),
        "truth": packed(root / "gtsrb/GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": truth}),
    }, levels


def test_gtsrb(tmp_path: Path) -> None:
    sources, levels = gtsrb_zips(tmp_path)
    of = (str(tmp_path), False, "stretch", None, None, None, 43, 3, 32)
    made = facts(zipped.gtsrb(*of, sources=sources), classes=43, channels=3, image_size=32)
    assert made.train.y.tolist() == [0, 42] and made.test.y.tolist() == [42, 0]
    assert torch.cat([made.train.x, made.test.x])[:, :, 5, 7].tolist() == [[int(level)] * 3 for level in levels]
    assert [*(tmp_path / ".tensors").glob("gtsrb-3x32-stretch-*.safetensors")]
    again = zipped.gtsrb(*of, sources=sources)
    assert again.digest() == made.digest()


def tiny_imagenet_zip(root: Path, **more: bytes) -> dict[str, ZipSource]:
    top, image = "tiny-imagenet-200", [picture(np.full((64, 64, 3), 50 * i, np.uint8), "png") for i in range(4)]
    grey = picture(np.full((64, 64), 77, np.uint8), "png")
    files = {
        f"{top}/wnids.txt": b"n02\nn01\n",
        f"{top}/train/n02/images/n02_0.JPEG": image[0],
        f"{top}/train/n02/n02_boxes.txt": b"",
        f"{top}/train/n01/images/n01_0.JPEG": image[1],
        f"{top}/train/n01/images/n01_1.JPEG": grey,
        f"{top}/val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n",
        f"{top}/val/images/val_0.JPEG": image[2],
        f"{top}/val/images/val_1.JPEG": image[3],
        f"{top}/test/images/test_0.JPEG": image[0],
    }
    return {"all": packed(root / "tiny-imagenet-200.zip", files | more)}


def test_tiny_imagenet(tmp_path: Path) -> None:
    """Pictures are PNG here, which keeps their levels."""
    sources = tiny_imagenet_zip(tmp_path)
    of = (str(tmp_path), False, "none", str(tmp_path / "kept"), None, None, 2, 3, 64)
    made = facts(zipped.tiny_imagenet(*of, sources=sources), classes=2, channels=3, image_size=64)
    assert made.train.x[:, :, 0, 0].tolist() == [[50] * 3, [77] * 3, [0] * 3] and made.train.y.tolist() == [0, 0, 1]
    assert made.test.x[:, 2, 63, 63].tolist() == [100, 150] and made.test.y.tolist() == [1, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-imagenet-200.zip", "kept"}  # nothing is unpacked


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("../evil", True),
        ("a/../../evil", True),
        ("/etc/passwd", True),
        ("..\\evil", True),
        ("C:\\evil", True),
        ("\\\\host\\evil", True),
        ("a/b..c/d", False),
        ("tiny-imagenet-200/train/", False),
        ("", False),
    ],
)
def test_names_that_climb(name: str, out: bool) -> None:
    assert climbs(name) is out


def test_a_zip_whose_names_climb_is_refused(tmp_path: Path) -> None:
    sources = tiny_imagenet_zip(tmp_path / "data", **{"tiny-imagenet-200/../../evil.txt": b"x"})
    of = (str(tmp_path / "data"), False, "none", None, None, None, 2, 3, 64)
    with pytest.raises(
        OSError, match=r"tiny-imagenet-200\.zip is .*lead out of its own folder \(.*evil\.txt\); delete"
    ):
        zipped.tiny_imagenet(*of, sources=sources)
    assert not [*tmp_path.rglob("evil.txt")]


def test_zip_files_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    with pytest.raises(FileNotFoundError, match=r"dataset=x: .*some\.zip is not there: .*download=true \(from http:"):
        opened("x", ZipSource("some.zip", "http://none", ""), tmp_path, False)
    path.write_bytes(b"no zip")
    with pytest.raises(OSError, match=r"its md5 is [0-9a-f]{32}, not 0000; delete it and get it again"):
        opened("x", ZipSource("some.zip", "", "0000"), tmp_path, False)
    with pytest.raises(OSError, match=r"some\.zip is damaged .*not a zip file"):
        opened("x", ZipSource("some.zip", "", md5(b"no zip")), tmp_path, False)


def leaf(folder: Path, part: str, users: Mapping[str, Any], number: int = 0) -> None:
    (folder / part).mkdir(parents=True, exist_ok=True)
    content = {"users": [*users], "num_samples": [len(data["y"]) for data in users.values()], "user_data": users}
    (folder / part / f"all_data_{number}_niid_0_keep_0_{part}_9.json").write_text(json.dumps(content))


def user(first: int, labels: list[int]) -> dict[str, Any]:
    """Images of 2 x 2 pixels, levels counted from `first` on."""
    levels = np.arange(first, first + 4 * len(labels)).reshape(-1, 4)
    return {"x": (levels / 255).tolist(), "y": labels}


@pytest.fixture
def writers(tmp_path: Path) -> Path:
    leaf(tmp_path, "train", {"f0001_41": user(0, [3, 0]), "f0000_14": user(100, [1])})
    leaf(tmp_path, "train", {"f0002_02": user(200, [0, 1, 2]), "f0003_03": {"x": [], "y": []}}, 1)
    leaf(tmp_path, "test", {"f0001_41": user(50, [3])})
    return tmp_path


def test_femnist_knows_its_writers(writers: Path, tiny: Callable[..., DictConfig]) -> None:
    made = facts(femnist(str(writers), None, None, 4, 1, 2), classes=4, channels=1, image_size=2)
    assert made.train.x.flatten().tolist() == [*range(8), *range(100, 104), *range(200, 212)]
    assert made.train.y.tolist() == [3, 0, 1, 0, 1, 2] and made.test.x.flatten().tolist() == [50, 51, 52, 53]
    assert made.holders is not None and made.holders.names == ("f0000_14", "f0001_41", "f0002_02")
    assert made.holders.of.tolist() == [1, 1, 0, 2, 2, 2]
    cfg = tiny("partition=natural", "partition.min_samples=2", "clients=2", "train_samples=null", "clients_per_round=2")
    _, shards = dealt(cfg, made, 0)
    assert shards.names == ("f0001_41", "f0002_02") and [sorted(shards[i].tolist()) for i in (0, 1)] == [
        [0, 1],
        [3, 4, 5],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"all\.json is not what LEAF writes, a JSON object with user_data"),
        ("[]", r"all\.json is not what LEAF writes"),
        ('{"user_data": [1]}', r"user_data is a list, not an object by writer"),
        ('{"user_data": {"ann": {"x": [[0, 0, 0, 0]]}}}', r"ann has no x and y"),
        ('{"user_data": {"ann": {"x": [[0, 0, 0], [1]], "y": [0, 1]}}}', r"ann has no x and y of numbers"),
        (
            '{"user_data": {"ann": {"x": [[0, 0, 0]], "y": [0]}}}',
            r"ann has x \(1, 3\) and y \(1,\).*4 pixels.*image_size=2",
        ),
        ('{"user_data": {"ann": {"x": [[0, 0, 0, 0]], "y": [0.5]}}}', r"ann has x .* of float64: must be .* whole"),
        ('{"user_data": {"ann": {"x": [[0, 0, 0, 255]], "y": [0]}}}', r"ann has pixels outside \[0, 1\]"),
        ('{"user_data": {"ann": {"x": [[0, 0, 0, NaN]], "y": [0]}}}', r"ann has pixels outside \[0, 1\]"),
        ('{"user_data": {}}', r"no writer with an image"),
    ],
)
def test_leaf_files_that_cannot_be(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train has no \.json file: make them with LEAF's .*dataset\.root"):
        femnist(str(tmp_path), None, None, 4, 1, 2)
    (tmp_path / "train/all.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        femnist(str(tmp_path), None, None, 4, 1, 2)


def test_cinic10_is_read_as_a_folder(tmp_path: Path, compose: Callable[..., DictConfig]) -> None:
    """Folders train, valid and test; those of `valid` are left alone."""
    from flame.run.build import load

    for part, count in (("train", 2), ("valid", 3), ("test", 1)):
        for label in range(10):
            folder = tmp_path / "CINIC-10" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(picture(np.full((32, 32, 3), 20 * label + i, np.uint8), "png"))
    made = load(compose("dataset=cinic10", f"dataset.root={tmp_path}/CINIC-10"))
    assert len(made.train) == 20 and len(made.test) == 10 and made.train.x[19, 0, 0, 0] == 181


def known(cfg: DictConfig) -> dict[str, Any]:
    return facts_of(plain_node(cfg.dataset))


def test_places_do_not_tell_of_verified_data(tiny: Callable[..., DictConfig]) -> None:
    """LEAF's files have no published checksum, so that others elsewhere are other data."""
    for name, same in (("emnist", True), ("gtsrb", True), ("femnist", False)):
        here, there = (tiny(f"dataset={name}", f"dataset.root={root}") for root in ("/a", "/b"))
        assert (identity(here) == identity(there)) is (known(here) == known(there)) is same
    here, kept = (tiny("dataset=gtsrb", *words) for words in ([], ["dataset.cache=/c"]))
    assert identity(here) == identity(kept) and known(here) == known(kept)
