"""Data sets, recorded facts against the real images, normalise against float64."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor
from torchvision.datasets import CIFAR10

from flame.data import datasets as data
from flame.data.datasets import FASHION_MNIST
from flame.data.reading import normalise

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FLAME_DATA", ROOT / "data"))
needs_fashion_mnist = pytest.mark.skipif(
    FASHION_MNIST.find(DATA) is None, reason="Fashion-MNIST is not here: run `make data`"
)


def conf(name: str) -> dict:
    """The facts that a dataset YAML states."""
    raw = yaml.safe_load((ROOT / "conf/dataset" / f"{name}.yaml").read_text())
    return {key: value for key, value in raw.items() if key not in ("_target_", "root", "download")}


def test_digits():
    dataset = data.digits(**conf("digits"))
    counts = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])  # scikit-learn's documentation
    held_out = counts // 5
    assert dataset.train.y.bincount().tolist() == (counts - held_out).tolist()
    assert dataset.test.y.bincount().tolist() == held_out.tolist()
    for images in (dataset.train, dataset.test):
        assert images.x.shape == (len(images), 1, 8, 8) and images.x.is_contiguous()
        assert images.x.dtype == torch.uint8 and images.y.dtype == torch.int64
    grey = {round(255 * level / 16) for level in range(17)}
    assert set(dataset.train.x.unique().tolist()) == grey
    again = data.digits(**conf("digits"))
    assert torch.equal(dataset.train.x, again.train.x) and torch.equal(dataset.test.y, again.test.y)
    assert_statistics(dataset.train.x, conf("digits"))


@needs_fashion_mnist
def test_fashion_mnist():
    dataset = data.fashion_mnist(str(DATA), False, **conf("fashion_mnist"))
    assert dataset.train.x.shape == (60_000, 1, 28, 28) and dataset.test.x.shape == (10_000, 1, 28, 28)
    assert dataset.train.y.bincount().tolist() == [6_000] * 10 and dataset.test.y.bincount().tolist() == [1_000] * 10
    assert_statistics(dataset.train.x, conf("fashion_mnist"))


def assert_statistics(x: Tensor, facts: dict) -> None:
    """The mean and std in the YAML are those of the pixels, to the four digits that it gives."""
    pixels = x.double() / 255
    assert facts["mean"] == [pytest.approx(float(pixels.mean()), abs=5e-5)]
    assert facts["std"] == [pytest.approx(float(pixels.std(correction=0)), abs=5e-5)]


@pytest.fixture
def tiny_cifar(tmp_path) -> tuple[type[CIFAR10], np.ndarray]:
    """torchvision's class for three records in the layout of CIFAR-10, as CIFAR100 is for another set."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3 * 32 * 32), dtype=np.uint8)
    folder = tmp_path / "tiny-batches"
    folder.mkdir()
    contents = {
        "first": {"data": pixels[:1], "labels": [7]},
        "second": {"data": pixels[1:2], "labels": [0]},
        "test": {"data": pixels[2:], "labels": [9]},
        "meta": {"label_names": list("abcdefghij")},
    }
    md5 = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    class TinyCIFAR(CIFAR10):
        base_folder = "tiny-batches"
        train_list = [["first", md5["first"]], ["second", md5["second"]]]  # noqa: RUF012
        test_list = [["test", md5["test"]]]  # noqa: RUF012
        meta = {"filename": "meta", "key": "label_names", "md5": md5["meta"]}  # noqa: RUF012

    return TinyCIFAR, pixels.reshape(3, 3, 32, 32)


def test_cifar_batches(tmp_path, tiny_cifar):
    source, pixels = tiny_cifar
    train, test = data._load_cifar("cifar10", source, str(tmp_path), False)
    np.testing.assert_array_equal(torch.cat([train.x, test.x]).numpy(), pixels)
    assert train.x.is_contiguous() and train.x.dtype == torch.uint8 and train.y.dtype == torch.int64
    assert train.y.tolist() == [7, 0] and test.y.tolist() == [9]


def test_a_changed_cifar_batch_is_not_unpickled(tmp_path, tiny_cifar):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "tiny-batches/second").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(FileNotFoundError, match=r"tiny-batches.*dataset.download=true"):
        data._load_cifar("cifar10", tiny_cifar[0], str(tmp_path), False)
    assert not (tmp_path / "executed").exists()


def test_missing_cifar_names_the_folder_and_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py.*dataset.download=true") as error:
        data.cifar10(str(tmp_path), False, **conf("cifar10"))
    assert str(tmp_path) in str(error.value)


@given(
    x=npst.arrays(np.uint8, npst.array_shapes(min_dims=4, max_dims=4, max_side=9)),
    mean=st.floats(0, 1),
    std=st.floats(0.05, 1),
)
def test_normalise_equals_its_float64_twin(x, mean, std):
    channels = x.shape[1]
    means = tuple(mean * (c + 1) / channels for c in range(channels))
    stds = tuple(std * (c + 1) / channels for c in range(channels))
    got = normalise(torch.from_numpy(x), means, stds)
    want = (x / 255 - np.reshape(means, (1, -1, 1, 1))) / np.reshape(stds, (1, -1, 1, 1))
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    largest = 1 / min(stds)  # of |x / (255 std)| and |mean / std|; four roundings, each of at most half an ulp
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=4 * largest * 2**-24)


def test_normalise_by_hand():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    got = normalise(x, (0.5, 0.2, 0.5), (0.5, 0.1, 0.25)).flatten()
    torch.testing.assert_close(got, torch.tensor([-1.0, 0.0, 2.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 7)])
def test_a_pixel_gets_the_same_bits_in_every_batch(channels, side):
    x = torch.randint(0, 256, (37, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    facts = ((0.4914, 0.4822, 0.4465)[:channels], (0.2470, 0.2435, 0.2616)[:channels])
    whole = normalise(x, *facts)
    for size in (1, 5, 32):
        assert torch.equal(torch.cat([normalise(part, *facts) for part in x.split(size)]), whole)
    assert whole.stride() == (channels * side**2, 1, channels * side, channels)
    for channel in range(channels):
        pixels, values = x[:, channel].flatten(), whole[:, channel].flatten()
        assert all(len(values[pixels == level].unique()) == 1 for level in (0, 1, 128, 255))


def test_the_command_fails_clearly(tmp_path, command):
    missing = command(["-m", "flame.data", "mnist", "--root", str(tmp_path)])
    assert missing.returncode == 1 and str(tmp_path) in missing.stderr and "Traceback" not in missing.stderr


@needs_fashion_mnist
def test_the_command_finds_what_is_there(command):
    found = command(["-m", "flame.data", "fashion_mnist", "--root", str(DATA)])
    assert found.returncode == 0 and "60,000 training and 10,000 test images" in found.stdout


def test_importing_the_module_imports_no_data_library():
    libraries = ("torchvision", "sklearn", "hydra")
    probe = f"import sys, flame.data.datasets; print([m for m in {libraries} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
