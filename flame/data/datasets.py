"""The data sets of images, whole and in memory.

`channels` and `image_size` stand in the YAML for models to read; `flame/data/check.py` compares both with the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from flame.data.fetch import torchvision_mirror
from flame.data.idx import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, IdxSource, locate
from flame.data.samples import Dataset, Samples

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, SVHN

FASHION_MNIST = IdxSource(
    name="fashion_mnist",
    sha256={
        TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    torchvision="FashionMNIST",
    package="dataset-fashion-mnist",
    system=Path("/usr/share/datasets/fashion-mnist"),
)
MNIST = IdxSource(
    name="mnist",
    sha256={
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    torchvision="MNIST",
)


def fashion_mnist(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], classes: int, channels: int, image_size: int
) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747): 60,000 and 10,000 images of 28 x 28.

    Looked for under `root`, then where the Debian package installs it, then, with `download`, on torchvision's mirror.
    Raises FileNotFoundError if it is nowhere, OSError if a file is damaged.
    """
    train, test = _load_idx(FASHION_MNIST, root, download)
    return Dataset(FASHION_MNIST.name, train, test, tuple(mean), tuple(std), classes)


def mnist(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], classes: int, channels: int, image_size: int
) -> Dataset:
    """MNIST (LeCun et al., Proc. IEEE 1998): 60,000 and 10,000 images of 28 x 28; errors as for Fashion-MNIST."""
    train, test = _load_idx(MNIST, root, download)
    return Dataset(MNIST.name, train, test, tuple(mean), tuple(std), classes)


def cifar10(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], classes: int, channels: int, image_size: int
) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 and 10,000 images of 3 x 32 x 32, in torchvision's `cifar-10-batches-py`.

    Raises FileNotFoundError if it is not there or damaged.
    """
    from torchvision.datasets import CIFAR10  # here, because it takes seconds to import

    train, test = _load_cifar("cifar10", CIFAR10, root, download)
    return Dataset("cifar10", train, test, tuple(mean), tuple(std), classes)


def cifar100(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], classes: int, channels: int, image_size: int
) -> Dataset:
    """CIFAR-100 (Krizhevsky, 2009) with its 100 fine labels, in torchvision's `cifar-100-python`; as CIFAR-10."""
    from torchvision.datasets import CIFAR100  # here, because it takes seconds to import

    train, test = _load_cifar("cifar100", CIFAR100, root, download)
    return Dataset("cifar100", train, test, tuple(mean), tuple(std), classes)


def svhn(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], classes: int, channels: int, image_size: int
) -> Dataset:
    """SVHN (Netzer et al., 2011), cropped digits without the `extra` images: torchvision's two .mat files.

    The digit 0, whose stored label is 10, is class 0. Raises FileNotFoundError if a file is not there or damaged.
    """
    from torchvision.datasets import SVHN  # here, because it takes seconds to import

    train, test = _load_svhn(SVHN, root, download)
    return Dataset("svhn", train, test, tuple(mean), tuple(std), classes)


def digits(mean: Sequence[float], std: Sequence[float], classes: int, channels: int, image_size: int) -> Dataset:
    """The UCI handwritten digits (Alpaydin and Kaynak, 1998) that scikit-learn ships: 1,797 images of 8 x 8.

    The test set is the last fifth of each class (rounded down) in the order of the file: 1,442 and 355 images, the
    same in every run. Grey levels 0..16 become 0..255.
    """
    x, y = _digits()
    held_out = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        members = (y == label).nonzero().flatten()
        held_out[members[len(members) - len(members) // 5 :]] = True
    train, test = Samples(x[~held_out], y[~held_out]), Samples(x[held_out], y[held_out])
    return Dataset("digits", train, test, tuple(mean), tuple(std), classes)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """[N, 1, 8, 8] uint8 and [N], parsed once in a process."""
    from sklearn.datasets import load_digits  # here, because it takes seconds to import

    bunch = load_digits()
    levels, y = torch.from_numpy(bunch.images).long(), torch.from_numpy(bunch.target).long()  # [N, 8, 8], [N]
    return ((levels * 255 + 8) // 16).to(torch.uint8).unsqueeze(1), y  # + 8 rounds to the nearest


def _load_idx(source: IdxSource, root: str, download: bool) -> tuple[Samples, Samples]:
    """Train and test set of an IDX source; `download` allows torchvision's mirror."""
    return source.load(locate(source, Path(root).expanduser(), [torchvision_mirror] if download else []))


def _load_cifar(name: str, source: type[CIFAR10], root: str, download: bool) -> tuple[Samples, Samples]:
    """Train and test set of torchvision's class, whose files are pickles.

    Unpickling runs code, so it must not meet a file of unknown origin: torchvision's constructor compares the md5 of
    every batch with the published one before it opens any, and the hashes make these files fixed, known data.
    """

    def split(train: bool) -> Samples:
        images = source(
            Path(root).expanduser(), train=train, download=download
        )  # .data [N, H, W, C] uint8, .targets list
        x = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
        return Samples(x, torch.tensor(images.targets))

    try:
        return split(True), split(False)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"dataset={name}: no intact {Path(root) / source.base_folder} ({error}); get it with "
            f"dataset.download=true, or unpack {source.filename} under paths.data={root}"
        ) from error


def _load_svhn(source: type[SVHN], root: str, download: bool) -> tuple[Samples, Samples]:
    """Train and test set of torchvision's class, which compares the md5 of a file before it opens it."""

    def split(part: str) -> Samples:
        images = source(Path(root).expanduser(), split=part, download=download)  # .data [N, C, H, W] uint8, a view
        return Samples(torch.from_numpy(images.data).contiguous(), torch.from_numpy(images.labels))

    try:
        return split("train"), split("test")
    except (RuntimeError, OSError) as error:
        files = " and ".join(source.split_list[part][1] for part in ("train", "test"))
        raise FileNotFoundError(
            f"dataset=svhn: no intact {files} in {root} ({error}); get them with dataset.download=true, or set"
            " paths.data"
        ) from error


def subset(dataset: Dataset, count: int | None, stream: Generator) -> Dataset:
    """With `count` training images drawn without replacement; as it is if None."""
    if count is None:
        return dataset
    images = len(dataset.train)
    if not 1 <= count <= images:
        raise ValueError(f"train_samples={count} is out of range: must be in [1, {images}], or null for all")
    return dataset.narrowed(torch.randperm(images, generator=stream)[:count])
