"""The hash of the code changes with every line that a run can reach, the user's own included, and with no other."""

from __future__ import annotations

import importlib
import logging
import os
import py_compile
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from flame.round import code as subject
from flame.round.code import IMPORTED, code, project, short, targets, users_code

TEMPLATE = Path(__file__).parents[2] / "examples" / "yours"
TREE = ("flame/__init__.py", "flame/run/build.py", "attacks/dba.py", "models/cnn.py", "train.py")
BESIDE = (
    "flame/report/page.py",
    "flame/replay.py",
    "tests/test_x.py",
    "conf/config.yaml",
    "flame/notes.txt",
    "setup.py",
)
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """`write(name, text)`: a file in a folder that is on the path; what was read before is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        subject.own_content.cache_clear()
        subject.installed.cache_clear()
        return path

    yield written
    subject.own_content.cache_clear()
    subject.installed.cache_clear()


@pytest.fixture
def tree(write: Write, tmp_path: Path) -> Path:
    """A project in small."""
    for name in (*TREE, *BESIDE):
        write(f"project/{name}", f"# {name}\n")
    return tmp_path / "project"


@pytest.mark.parametrize("name", TREE)
def test_every_file_that_a_run_can_reach_counts(tree: Path, name: str) -> None:
    before = project(tree)
    (tree / name).write_text("# another\n")
    assert project(tree) != before


@pytest.mark.parametrize("name", BESIDE)
def test_files_that_no_run_reaches_do_not_count(tree: Path, name: str) -> None:
    before = project(tree)
    (tree / name).write_text("# another\n")
    assert project(tree) == before


def test_names_and_limits_of_files_count_but_not_where_the_project_lies(tree: Path, tmp_path: Path) -> None:
    before = project(tree)
    shutil.copytree(tree, tmp_path / "moved")
    assert project(tmp_path / "moved") == before
    (tree / "models/cnn.py").rename(tree / "models/other.py")
    assert project(tree) != before
    assert short("ab", "c") != short("a", "bc")


def test_an_installed_project_has_no_script(tree: Path) -> None:
    (tree / "train.py").unlink()
    assert len(project(tree)) == 12


def test_ours_alone_is_one_hash_whatever_the_parts() -> None:
    ours = {"defense": {"_target_": "flame.defenses.krum.Krum"}, "model": {"_target_": "models.cnn.CNN"}}
    assert code(ours) == code({}) == IMPORTED == project()
    assert code({"model": {"_target_": "torchvision.models.resnet18"}}) == IMPORTED


def test_every_target_is_found() -> None:
    config = {"attack": {"_target_": "a.B", "backdoor": {"_target_": "c.D"}, "triggers": [{"_target_": "e.F"}]}, "n": 1}
    assert list(targets(config)) == ["a.B", "c.D", "e.F"]


def test_the_user_s_own_files_count_with_all_that_they_import(write: Write) -> None:
    write(
        "mine.py", "import os, torch\nfrom helper import f\n\nclass Mine:\n    def late(self):\n        import later\n"
    )
    write("helper.py", "import mine\n")  # in a circle
    write("later.py", "")
    write("unrelated.py", "")
    part = {"defense": {"_target_": "mine.Mine"}}
    assert set(users_code(targets(part))) == {"mine", "helper", "later"}
    before = code(part)
    assert before != IMPORTED
    for name in ("mine.py", "helper.py", "later.py"):
        write(name, Path(sys.path[0], name).read_text() + "# another\n")
        assert code(part) != before
        before = code(part)
    write("unrelated.py", "# another\n")
    assert code(part) == before


@pytest.mark.parametrize("part", [path.stem for path in sorted(TEMPLATE.glob("*.py"))])
def test_a_part_of_each_kind_counts_with_what_it_imports(write: Write, part: str) -> None:
    """The template of docs/guides/yours.md, whose parts import nothing from beside them, and one that does."""
    config = {path.parent.name: yaml.safe_load(path.read_text()) for path in TEMPLATE.glob("conf/*/*.yaml")}
    texts = {path.stem: path.read_text() for path in TEMPLATE.glob("*.py")}
    for name, text in texts.items():
        write(f"{name}.py", text)
    write("beside.py", "")
    assert set(users_code(targets(config))) == set(texts) and len(texts) == 6
    hashes = [code(config)]
    for name, text in ((part, f"{texts[part]}\n\ndef late():\n    import beside\n"), ("beside", "a = 1\n")):
        write(f"{name}.py", text)
        hashes.append(code(config))
    assert len({IMPORTED, *hashes}) == 4


def test_packages_with_relative_imports_and_without_an_init(write: Write) -> None:
    write("own/__init__.py", "")
    write("own/parts/__init__.py", "from . import base\n")
    write("own/parts/base.py", "from ..tools.draw import line\nfrom .... import far\n")
    write("own/parts/mine.py", "from .base import *\n")
    write("own/tools/__init__.py", "")
    write("own/tools/draw.py", "")
    write("spread/a/b.py", "import spread.c\n")  # a namespace package
    write("spread/c.py", "")
    found = {"own", "own.parts", "own.parts.mine", "own.parts.base", "own.tools", "own.tools.draw"}
    assert set(users_code(["own.parts.mine.Class.method"])) == found
    assert set(users_code(["spread.a.b.Class"])) == {"spread.a.b", "spread.c"}


def test_nothing_is_imported_to_be_hashed(write: Write) -> None:
    write("loud/__init__.py", "raise RuntimeError('imported')\n")
    write("loud/part.py", "")
    assert set(users_code(["loud.part.X"])) == {"loud", "loud.part"} and "loud" not in sys.modules


def test_what_an_earlier_job_imported_does_not_count(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's jobs share processes: the hash follows from the config, not from the company."""
    write("first.py", "")
    write("second.py", "")
    before = code({"_target_": "second.X"})
    monkeypatch.setitem(sys.modules, "first", __import__("first"))
    assert code({"_target_": "second.X"}) == before


def test_an_edit_amid_a_process_changes_nothing(write: Write, tmp_path: Path) -> None:
    write("mine.py", "a = 1\n")
    before = code({"_target_": "mine.X"})
    (tmp_path / "mine.py").write_text("a = 2\n")
    assert code({"_target_": "mine.X"}) == before


def test_a_zip_file_counts(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    for i in range(2):
        with zipfile.ZipFile(tmp_path / f"{i}.zip", "w") as file:
            file.writestr("zipped/__init__.py", "from . import inner\n")
            file.writestr("zipped/inner.py", f"a = {i}\n")
        write("x.py", "")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [str(tmp_path / f"{i}.zip"), *sys.path])
            assert set(users_code(["zipped.X"])) == {"zipped", "zipped.inner"}
            hashes.append(code({"_target_": "zipped.X"}))
    assert hashes[0] != hashes[1]


def test_compiled_files_count_as_they_are(write: Write, tmp_path: Path) -> None:
    path = write("compiled.py", "a = 1\n")
    py_compile.compile(str(path), cfile=str(tmp_path / "compiled.pyc"))
    path.unlink()
    write("x.py", "")
    assert set(users_code(["compiled.X"])) == {"compiled"}


@pytest.mark.parametrize("installed", ["lib/site-packages", "target"])
def test_installed_packages_are_told_by_their_version(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str
) -> None:
    """In site-packages, or where `pip install --target` has put them."""
    write(f"{installed}/bought/__init__.py", "")
    if installed == "target":
        write(
            f"{installed}/bought-1.0.dist-info/RECORD", "bought/__init__.py,sha256=x,0\nbought-1.0.dist-info/RECORD,,\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path / installed))
    assert users_code(["bought.X"]) == {}


def test_a_user_s_files_beside_installed_ones_count(write: Write) -> None:
    """`pip install --target .` in the folder that PYTHONPATH names."""
    write("bought/__init__.py", "")
    write("bought-1.0.dist-info/RECORD", "bought/__init__.py,sha256=x,0\n")
    write("mine.py", "import bought\n")
    assert set(users_code(["mine.X"])) == {"mine"}


def test_what_a_target_only_fetches_counts(write: Write) -> None:
    config = {"model": {"_target_": "hydra.utils.get_method", "path": "mine.f"}}
    assert list(targets(config)) == ["hydra.utils.get_method", "mine.f"]
    write("mine.py", "def f(): ...\n")
    before = code(config)
    assert before != IMPORTED
    write("mine.py", "def f(): return 1\n")
    assert code(config) != before


def test_a_link_from_site_packages_is_an_editable_install(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("source/edited/__init__.py", "")
    write("env/site-packages/x.py", "")
    os.symlink(tmp_path / "source/edited", tmp_path / "env/site-packages/edited")
    monkeypatch.syspath_prepend(str(tmp_path / "env/site-packages"))
    assert set(users_code(["edited.X"])) == {"edited"}


def test_what_cannot_be_read_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write("mine.py", "")
    monkeypatch.setattr("importlib.machinery.SourceFileLoader.get_data", lambda self, path: Path("/no").read_bytes())
    with caplog.at_level(logging.WARNING):
        assert users_code(["mine.X"]) == {}
    assert "mine in " in caplog.text and "is not part of the record's `code`" in caplog.text


@pytest.mark.parametrize("name", ["__main__.X", "nowhere.X", "", ".x", "os.path.join", "builtins.dict"])
def test_what_has_no_file_of_the_user_s_is_left_out(name: str) -> None:
    assert users_code([name]) == {}
