"""`dataset=text`: texts of one's own, a client for each .txt file.

    ROOT/anna.txt  ROOT/team/ben.txt    clients `anna` and `team/ben`

Files are UTF-8. A line ends with a newline, whatever the file has. Names that begin with a dot are not looked at.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flame.data.language import from_texts
from flame.data.samples import Dataset

log = logging.getLogger(__name__)


def text(
    root: str | None,
    task: str,
    length: int,
    tokens: int | None,
    classes: int | None,
    min_characters: int,
    test_share: float,
) -> Dataset:
    """The texts under `root`; conf/dataset/text.yaml says what the settings are.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no text, a file is no text, or a setting does not fit them.
    """
    if root is None:
        raise ValueError("dataset.root=null: dataset=text needs the folder that your .txt files are in")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset.root={root}: there is no such folder: name the one that your texts are in")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.txt"))
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise ValueError(f"dataset.root={root} has no .txt file: must have one for each client")
    said = {name.with_suffix("").as_posix(): read_text(folder / name) for name in names}
    if silent := [name for name, content in said.items() if not content.strip()]:
        log.warning("dataset.root=%s: %d files are empty, and left out: %s", root, len(silent), ", ".join(silent[:5]))
    spoken = {name: content for name, content in said.items() if content.strip()}
    return from_texts("text", spoken, task, length, tokens, min_characters, test_share)


def read_text(path: Path) -> str:
    """A file's text, without its byte order mark.

    Raises:
        ValueError: it is no text, or not UTF-8; the sentence has the command that converts it.
    """
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(f"{path} is no text, it has null bytes: take it away, or convert it to UTF-8")
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {content[error.start]:#04x} at {error.start}): if it is Latin-1, convert it"
            " with iconv -f LATIN1 -t UTF-8 FILE > NEW"
        ) from error
    return decoded.replace("\r\n", "\n").replace("\r", "\n")
