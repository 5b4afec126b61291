"""`dataset=hub`: an image classification set of Hugging Face's hub, or one that their library wrote to disk.

Columns, classes and sizes are read from the set's features. Only data files are read: from version 4 on `datasets` runs
no code of a set's repository, and no older version is accepted (huggingface/datasets, release 4.0.0).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flame.data.cache import LENGTH, cached
from flame.data.facts import check_said, given_or_found
from flame.data.pictures import Look, complaints, decoded, seen
from flame.data.samples import Dataset, Holders, Samples

if TYPE_CHECKING:
    from datasets import Dataset as Table
    from datasets import Features

OLDEST = 4  # major version of `datasets` that runs no code of others


def hub(
    name: str | None,
    config: str | None,
    revision: str | None,
    train: str,
    test: str,
    image: str | None,
    label: str | None,
    client: str | None,
    resize: str,
    cache: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: int | None,
    channels: int | None,
    image_size: int | None,
) -> Dataset:
    """The set `name`, decoded once and kept in `cache`; conf/dataset/hub.yaml says what the settings are.

    Raises:
        ValueError: a setting is out of range, or the set is not what it says; the sentence names what it has.
        FileNotFoundError: there is no such set, or it cannot be reached.
    """
    if name is None:
        raise ValueError("dataset.name=null: dataset=hub needs a name on the hub, such as ylecun/mnist, or a folder")
    splits, parts = _all(name, config, revision), (train, test)
    tables = [_table(splits, name, key, part) for key, part in (("train", train), ("test", test))]
    features = tables[0].features
    image = _column(name, features, "image", image, "Image")
    label = _column(name, features, "label", label, "ClassLabel")
    known = features[label].num_classes
    stored = [_bytes(name, table, image) for table in tables]
    _check_facts(name, stored[0], known, classes, channels, image_size)
    assert channels is not None and image_size is not None
    look = Look(channels, image_size, resize)
    x = [_decoded(name, part, each, look, Path(cache)) for part, each in zip(parts, stored, strict=True)]
    y = [_labels(name, part, table, label) for part, table in zip(parts, tables, strict=True)]
    learnt, tested = (Samples(*each) for each in zip(x, y, strict=True))
    held = None if client is None else _holders(name, tables[0], client)
    return Dataset("hub", learnt, tested, *given_or_found(mean, std, learnt.x), known, held)


def _all(name: str, config: str | None, revision: str | None) -> Any:
    """All splits by name, from a folder that `save_to_disk` wrote, or from the hub or what is kept of it."""
    try:
        import datasets  # here, because it is an extra
    except ImportError as error:
        raise ValueError("dataset=hub needs Hugging Face's datasets: pip install 'datasets>=4'") from error
    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise ValueError(
            f"dataset=hub: datasets {datasets.__version__} may run code of others: must be {OLDEST}.0 or newer;"
            " pip install -U datasets"
        )
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(f"dataset.name={name} cannot be had ({' '.join(str(error).split()):.300})") from error


def _table(splits: Any, name: str, key: str, part: str) -> Table:
    if part not in splits:
        raise ValueError(f"dataset.{key}={part}: {name} has no such split: must be one of {', '.join(splits)}")
    table: Table = splits[part]
    return table


def _column(name: str, features: Features, key: str, said: str | None, kind: str) -> str:
    """The column that is said, or the only one of this kind of feature."""
    fitting = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if said is None and len(fitting) == 1:
        return fitting[0]
    if said is None or said not in fitting:
        has = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
        raise ValueError(
            f"dataset.{key}={'null' if said is None else said}: must be a column of {name} of the kind {kind}; it has"
            f" {has}"
        )
    return said


def _bytes(name: str, table: Table, column: str) -> list[bytes]:
    """The images as they are stored."""
    from datasets import Image

    rows = table.select_columns([column]).cast_column(column, Image(decode=False))[column]
    try:
        return [row["bytes"] or Path(row["path"]).read_bytes() for row in rows]
    except (TypeError, OSError) as error:
        raise ValueError(f"dataset.name={name}: an image of {column} is missing ({error}): leave it out") from error


def _check_facts(
    name: str, contents: Sequence[bytes], known: int, classes: int | None, channels: int | None, size: int | None
) -> None:
    said = {"classes": classes, "channels": channels, "image_size": size}
    if None in said.values():
        first = seen(partial(BytesIO, contents[0])) if contents else {}
        check_said(f"{name} (of the images, the first one)", said, {"classes": known, **first})


def _decoded(name: str, part: str, contents: Sequence[bytes], look: Look, cache: Path) -> Tensor:
    """[N, C, size, size] uint8."""
    h = hashlib.sha256(repr(look).encode())
    for each in contents:
        h.update(hashlib.sha256(each).digest())
    files = [partial(BytesIO, each) for each in contents]
    kind = f"{re.sub(r'[^A-Za-z0-9]+', '-', f'{name}-{part}').strip('-')}-{look.channels}x{look.size}-{look.resize}"
    images = cached(cache.expanduser(), kind, h.hexdigest()[:LENGTH], partial(decoded, files, look))
    for told, remedy in complaints(images, lambda number: f"{part} no. {number}", "leave them out of the set"):
        raise ValueError(f"dataset.name={name}: {told}; {remedy}")
    return images.x


def _labels(name: str, part: str, table: Table, column: str) -> Tensor:
    """[N] int64."""
    found = table[column][:]
    if None in found or -1 in found:  # how the library writes a label that is not known
        raise ValueError(f"dataset.name={name}: {part} has images without a {column}: name another split")
    return torch.tensor(found, dtype=torch.int64)


def _holders(name: str, table: Table, column: str) -> Holders:
    """Who holds which training image: the values of a column of whole numbers, text or classes."""
    if column not in table.features:
        raise ValueError(f"dataset.client={column} is no column of {name}: must be one of {', '.join(table.features)}")
    values = np.array(table[column][:])
    if values.dtype.kind not in "iuU" or values.ndim != 1:
        raise ValueError(f"dataset.client={column}: {name} has {values.dtype} there: must be whole numbers or text")
    found, of = np.unique(values, return_inverse=True)
    names = getattr(table.features[column], "names", None)
    return Holders(torch.from_numpy(of.astype(np.int64)), tuple(str(names[i] if names else i) for i in found.tolist()))
