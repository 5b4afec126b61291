"""`dataset=reddit`: posts, an author being a client, in one of two published formats.

LEAF's (TalwalkarLab/leaf, 5c45514, data/reddit/source): tokens that are cut already.

    ROOT/train/*.json and ROOT/test/*.json
    {"users": [NAME, ...], "user_data": {NAME: {"x": [post, ...], "y": [...]}}}, a post being lists of words

That of Bagdasaryan et al. (AISTATS 2020; ebagdasa/backdoors101, 4774bc0, utils/text_load.py): text, a post a line.

    ROOT/shard_by_author/AUTHOR and ROOT/test_data.json, every line of which is a JSON string

As there, a word is the letters that it begins with, two at least, between <bos> and <eos> of its post. Other than in
both, windows run on from post to post of an author, without padding (LEAF's <PAD> is taken out; `y` is the next token
anyway), and the vocabulary is that of these training texts unless `vocabulary` names a list. LEAF's `val` is not read.
Neither set was ever loaded by this project's tests, which write small files of the same formats.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flame.data.facts import check_said
from flame.data.language import assembled
from flame.data.language import vocabulary as of_texts
from flame.data.leaf import users
from flame.data.samples import Dataset
from flame.data.text import read_text
from flame.data.vocabulary import UNKNOWN, Vocabulary

PAD = "<PAD>"
LETTERS = re.compile(r"[a-z]*")
PICKLED = (".pt", ".tar", ".pck", ".pkl", ".pickle")
RECIPE = (
    "only if you trust it, convert it once: open('words.txt', 'w').write('\\n'.join(torch.load(FILE,"
    " weights_only=False).idx2word)), beside the code that wrote it"
)
log = logging.getLogger(__name__)


def reddit(
    root: str,
    length: int,
    tokens: int | None,
    classes: int | None,
    min_tokens: int,
    vocabulary: str | None,
) -> Dataset:
    """The authors under `root` with at least `min_tokens`, and the test text; conf/dataset/reddit.yaml says more.

    Raises:
        FileNotFoundError: there is neither format.
        ValueError: a file is not what it should be, or a setting does not fit the texts.
    """
    if min_tokens < 1:
        raise ValueError(f"dataset.min_tokens={min_tokens} is out of range: must be a whole number >= 1")
    train, test = _read(Path(root).expanduser())
    kept = {author: words for author, words in train.items() if len(words) >= min_tokens}
    if not kept:
        longest = max(map(len, train.values()), default=0)
        raise ValueError(
            f"dataset.min_tokens={min_tokens} leaves nobody: the longest of {len(train)} authors has {longest} words;"
            " lower it"
        )
    log.info("dataset=reddit: %d of %d authors have dataset.min_tokens=%d", len(kept), len(train), min_tokens)
    known = _listed(Path(vocabulary).expanduser(), tokens) if vocabulary else of_texts(kept.values(), "word", tokens)
    return assembled("reddit", kept, test.values(), known, length)


def _read(root: Path) -> tuple[Mapping[str, list[str]], Mapping[str, list[str]]]:
    """Words by author, to train and to test."""
    shards = root / "shard_by_author"
    if shards.is_dir():
        paths = sorted(path for path in shards.iterdir() if path.is_file() and not path.name.startswith("."))
        return {path.name: _posts(path) for path in paths}, {"": _posts(root / "test_data.json")}
    parts = [sorted((root / part).glob("*.json")) for part in ("train", "test")]
    if not all(parts):
        raise FileNotFoundError(
            f"dataset=reddit: {root} has neither train/*.json and test/*.json (LEAF) nor shard_by_author and"
            " test_data.json (Bagdasaryan et al.): set dataset.root to the folder of one of the two"
        )
    return _users(parts[0]), _users(parts[1])


def _users(paths: list[Path]) -> dict[str, list[str]]:
    """Words by LEAF user, of all files of a part."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for user, data in users(path).items():
            found.setdefault(user, []).extend(_cut(path, user, data))
    return found


def _cut(path: Path, user: str, data: Any) -> list[str]:
    """All words of a LEAF user, without padding."""

    def words(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, list):
            for each in node:
                yield from words(each)
        else:
            raise ValueError(f"{path}: {user} has a {type(node).__name__} among his words: write it again")

    if not isinstance(data, dict) or not isinstance(data.get("x"), list):
        raise ValueError(f"{path}: {user} has no list x of posts: write it again")
    return [word for word in words(data["x"]) if word != PAD]


def _posts(path: Path) -> list[str]:
    """All words of a file that has a post a line."""
    if not path.is_file():
        raise FileNotFoundError(f"dataset=reddit: {path} is not there: it must be beside shard_by_author")
    found: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            post = json.loads(line.lower())
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON ({error}): must be a string, a post a line") from error
        if not isinstance(post, str):
            raise ValueError(f"{path}, line {number} is a {type(post).__name__}: must be a string, a post a line")
        words = (LETTERS.match(word) for word in post.split())
        found += ["<bos>", *(word[0] for word in words if word and len(word[0]) > 1), "<eos>"]
    return found


def _listed(path: Path, tokens: int | None) -> Vocabulary:
    """The vocabulary of a file with a word a line, after `<unk>`."""
    if path.suffix in PICKLED:
        raise ValueError(f"dataset.vocabulary={path} is pickled, and loading it would run its code: {RECIPE}")
    if not path.is_file():
        raise FileNotFoundError(f"dataset.vocabulary={path} is not there: must be a text file with a word a line")
    words = tuple(dict.fromkeys((UNKNOWN, *filter(None, read_text(path).split("\n")))))
    check_said(str(path), {"tokens": tokens}, {"tokens": len(words)})
    if tokens != len(words):
        raise ValueError(
            f"dataset.tokens={tokens} does not fit dataset.vocabulary={path}, which has {len(words)} words with"
            f" {UNKNOWN}: set it to that"
        )
    return Vocabulary(words, "word")
