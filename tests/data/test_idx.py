"""IDX files that the tests write: read back, damaged, searched for, unpacked from a package."""

import gzip
import hashlib
import shutil
import struct
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from flame.data import datasets as data
from flame.data import fetch
from flame.data.idx import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, IdxSource, locate, read_idx

FACTS = {"mean": [0.5], "std": [0.25], "classes": 3, "channels": 1, "image_size": 4}


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX encoding, written from the format's description."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny() -> tuple[IdxSource, dict[str, bytes]]:
    """A source of six training and three test images of 4 x 4, and the content of its files."""
    pixels = np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4)
    labels = np.array([0, 1, 2, 0, 1, 2, 2, 1, 0], dtype=np.uint8)
    arrays = {TRAIN_IMAGES: pixels[:6], TRAIN_LABELS: labels[:6], TEST_IMAGES: pixels[6:], TEST_LABELS: labels[6:]}
    files = {name: idx_bytes(array) for name, array in arrays.items()}
    return IdxSource("tiny", {name: sha256(content) for name, content in files.items()}, "Tiny"), files


def write(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


@given(array=npst.arrays(np.uint8, npst.array_shapes(min_dims=1, max_dims=4)), packed=st.booleans())
def test_idx_round_trip(tmp_path_factory, array, packed):
    content = idx_bytes(array)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(content) if packed else content)
    read = read_idx(path, array.ndim, sha256(content))
    assert read.dtype == torch.uint8 and read.is_contiguous()
    np.testing.assert_array_equal(read.numpy(), array)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD[:-1], "promises 24 bytes of data, the file has 23"),
        (GOOD + b"\0", "promises 24 bytes of data, the file has 25"),
        (GOOD[:9], "truncated: 9 bytes"),
        (b"", "truncated: 0 bytes"),
        (gzip.compress(GOOD, mtime=0)[:-12], "gzip says"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 40, "gzip says"),
        (b"\0\0\x0d\x03" + GOOD[4:], "magic number 0x00000d03, not 0x00000803"),
        (idx_bytes(np.zeros(40, np.uint8)), "magic number 0x00000801"),
        (b"<!doctype html><title>404</title>", "magic number"),
        (GOOD[:-1] + b"\xff", "another content than the expected one"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, content, problem):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(OSError, match=problem) as error:
        read_idx(path, 3, sha256(GOOD))
    assert str(path) in str(error.value) and "dataset.download=true" in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_cannot_make_the_reader_allocate(tmp_path, packed):
    bomb = struct.pack(">4I", 0x803, 60_000, 28_000, 28_000) + bytes(100)  # 47 TB promised
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(bomb) if packed else bomb)
    tracemalloc.start()
    with pytest.raises(OSError, match="promises 47040000000000 bytes"):
        read_idx(path, 3, sha256(bomb))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", [".", "Tiny/raw"])
def test_a_source_loads_what_was_written(tmp_path, tiny, folder, packed):
    source, files = tiny
    write(tmp_path / folder, files, packed=packed)
    train, test = source.load(locate(source, tmp_path, []))
    assert train.x.shape == (6, 1, 4, 4) and test.x.shape == (3, 1, 4, 4)
    assert train.x.dtype == torch.uint8 and train.y.dtype == torch.int64
    assert torch.cat([train.x, test.x]).flatten().tolist() == list(range(144))
    assert train.y.tolist() == [0, 1, 2, 0, 1, 2] and test.y.tolist() == [2, 1, 0]


def test_the_data_folder_comes_before_the_system_folder_and_both_before_fetching(tmp_path, tiny):
    source, files = tiny
    source = IdxSource(source.name, source.sha256, source.torchvision, "a-package", tmp_path / "system")
    order = []

    def broken(source: IdxSource, root: Path) -> None:
        order.append("broken")
        raise RuntimeError("no route")

    def working(source: IdxSource, root: Path) -> None:
        order.append("working")
        write(source.fetched(root), files)

    with pytest.raises(
        FileNotFoundError, match=r"(?s)dataset=tiny.*system.*make data.*download=true.*no route"
    ) as error:
        locate(source, tmp_path / "root", [broken])
    assert str(tmp_path / "root") in str(error.value)
    assert locate(source, tmp_path / "root", [broken, working, broken]) == tmp_path / "root/Tiny/raw"
    assert order == ["broken", "broken", "working"]
    system = write(tmp_path / "system", files)
    assert locate(source, tmp_path / "elsewhere", [broken]) == system
    assert locate(source, tmp_path / "root", [broken]) == tmp_path / "root/Tiny/raw"


def test_an_incomplete_folder_is_passed_over(tmp_path, tiny):
    source, files = tiny
    write(tmp_path / "Tiny/raw", {TRAIN_IMAGES: files[TRAIN_IMAGES]})
    assert source.find(tmp_path) is None
    assert source.find(write(tmp_path, files)) == tmp_path


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_debian_package_is_unpacked_into_the_data_folder(tmp_path, tiny):
    source, files = tiny
    write(tmp_path / "deb/usr/share/datasets/tiny", files, packed=True)
    (tmp_path / "deb/DEBIAN").mkdir()
    control = "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: test\n"
    (tmp_path / "deb/DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", "deb", "tiny.deb"], cwd=tmp_path, check=True, capture_output=True)
    fetch.unpack(source, tmp_path / "tiny.deb", tmp_path / "data")
    folder = tmp_path / "data/Tiny/raw"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    with pytest.raises(OSError, match="no other"):
        fetch.unpack(IdxSource("x", {"other": ""}, "X"), tmp_path / "tiny.deb", tmp_path / "data")


def test_a_missing_tool_is_an_error_that_names_it(tmp_path):
    with pytest.raises(OSError, match="no-such-tool is not installed"):
        fetch.run(["no-such-tool"], str(tmp_path))


@pytest.mark.parametrize("load", [data.fashion_mnist, data.mnist])
def test_files_of_another_data_set_are_refused(tmp_path, tiny, load):
    write(tmp_path, tiny[1])
    with pytest.raises(OSError, match="another content"):
        load(str(tmp_path), False, **FACTS)
