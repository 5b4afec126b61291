"""A commit is told only where it is that of this code; other code, data or weights are said, and stop a resume."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from flame.data.datasets import digits
from flame.round.checkpoint import RunFolderError
from flame.run import provenance
from flame.run.build import ConfigError, build
from flame.run.config import plain
from flame.run.experiment import run
from flame.run.provenance import (
    PACKAGES,
    differences,
    environment,
    going_on,
    initial_digest,
    joined,
    origin_of,
    repetition,
    source,
)
from flame.run.revisit import skip
from flame.run.trackers.base import RunInfo
from flame.run.trackers.files import write_json

Compose = Callable[..., DictConfig]
A = {"code": "a", "data": "d", "initial": "i"}
asked = source.__wrapped__  # without what it remembers


def git(folder: Path, *words: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), "-c", "protocol.file.allow=always", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository that is a project in small."""
    root = tmp_path / "project"
    for name in ("flame/a.py", "attacks/b.py", "models/c.py", "conf/d.yaml", "train.py", "README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("1\n")
    git(tmp_path, "init", "-q", "project")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def test_environment() -> None:
    found = environment(threads=1, engine_workers=2, device="cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == 1 and found["engine_workers"] == 2 and found["device"] == "cpu"
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(found["versions"]) == set(PACKAGES) and all(found["versions"].values())
    if found["commit"] is not None:  # absent in an unpacked archive
        assert len(found["commit"]) == 40 and isinstance(found["dirty"], bool)
    assert {"python", "processor", "cores"} <= set(found)


def test_installed_packages_that_parts_come_from_are_told_by_their_version() -> None:
    found = environment(1, 1, "cpu", ["models.cnn.CNN", "torch.nn.Linear", "rich.text.Text", "nowhere.X"])["versions"]
    assert set(found) == {*PACKAGES, "rich"} and found["rich"]


def test_the_command_line_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.COMMAND, "python train.py seed=1")
    assert environment(1, 1, "cpu")["command"] == "python train.py seed=1"
    monkeypatch.delenv(provenance.COMMAND)
    monkeypatch.setattr("sys.argv", ["own.py", "a b"])
    assert environment(1, 1, "cpu")["command"] == "python own.py 'a b'"


def test_a_commit_amid_a_process_is_not_that_of_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment(threads=1, engine_workers=1, device="cpu")
    monkeypatch.setattr(provenance, "_git", lambda root, *arguments: ("f" * 40, ""))
    assert environment(threads=1, engine_workers=1, device="cpu") == before


def test_what_is_not_committed_is_told(project: Path) -> None:
    commit = git(project, "rev-parse", "HEAD")
    (project / "README.md").write_text("2\n")
    assert asked(project) == (commit, False)
    (project / "models/own.py").touch()
    assert asked(project) == (commit, True)


def test_the_commit_of_a_repository_around_it_is_not_its_own(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(project, project / "copy", ignore=shutil.ignore_patterns(".git"))
    git(project, "add", "-A")
    git(project, "commit", "-qm", "with a copy")
    assert asked(project / "copy") == (None, None)
    (message,) = caplog.messages
    assert f"it is a part of the repository {project}" in message and "no commit is known" in message


def test_an_unpacked_archive_has_no_commit_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert source(tmp_path) == (None, None)
    (message,) = caplog.messages
    assert "of this code no commit is known (fatal: not a git repository" in message


def test_a_repository_without_a_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    git(tmp_path, "init", "-q")
    assert asked(tmp_path) == (None, None) and len(caplog.messages) == 1


def test_a_worktree_and_a_submodule_are_whole_repositories(project: Path, tmp_path: Path) -> None:
    commit = git(project, "rev-parse", "HEAD")
    git(project, "worktree", "add", "-q", str(tmp_path / "tree"))
    git(tmp_path, "init", "-q", "outer")
    git(tmp_path / "outer", "submodule", "--quiet", "add", str(project), "inner")
    for root in (tmp_path / "tree", tmp_path / "outer/inner"):
        assert (root / ".git").is_file() and asked(root) == (commit, False)


def test_variables_of_git_do_not_lead_elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a hook, or a shell that works on another repository."""
    commit = git(project, "rev-parse", "HEAD")
    git(tmp_path, "init", "-q", "other")
    for name, value in (("GIT_DIR", "other/.git"), ("GIT_WORK_TREE", "other"), ("GIT_INDEX_FILE", "other/index")):
        monkeypatch.setenv(name, str(tmp_path / value))
    assert asked(project) == (commit, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_repository_that_somebody_else_owns(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that mounts it; git itself would refuse."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))  # without a safe.directory in it
    commit = git(project, "rev-parse", "HEAD")
    for path in (project, project / ".git"):
        os.chown(path, 12345, 12345)
    refused = subprocess.run(["git", "-C", str(project), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr
    assert asked(project) == (commit, False)


def test_a_repository_that_cannot_be_written(project: Path) -> None:
    commit, index = git(project, "rev-parse", "HEAD"), project / ".git/index"
    os.utime(project / "train.py", (1, 1))  # git status would like to note that
    before = index.read_bytes()
    assert asked(project) == (commit, False) and index.read_bytes() == before
    index.write_bytes(b"damaged")
    assert asked(project) == (commit, None)  # not: clean


def test_without_git(project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "")
    assert asked(project) == (None, None)
    assert "(git: No such file or directory)" in caplog.text


@pytest.mark.parametrize("key", A)
def test_a_run_goes_on_as_what_it_was(tmp_path: Path, key: str) -> None:
    words = provenance.ORIGIN[key]
    assert going_on(tmp_path, {**A, "commit": "c"}, A, True) == A
    message = rf"begun with other files \(commit c\): {words} {A[key]}, now z; resume=force goes on .* resume=false"
    with pytest.raises(RunFolderError, match=message):
        going_on(tmp_path, {**A, "commit": "c"}, {**A, key: "z"}, True)
    forced = going_on(tmp_path, A, {**A, key: "z"}, "force")
    assert forced == {**A, key: f"{A[key]}+z"}
    assert going_on(tmp_path, forced, {**A, key: "z"}, True) == forced
    with pytest.raises(RunFolderError, match=f"{words} z, now {A[key]}"):
        going_on(tmp_path, forced, A, True)


def test_an_older_record_says_nothing_and_that_is_no_yes(tmp_path: Path) -> None:
    assert (
        differences({}, {**A})
        == "code not recorded, now a; data not recorded, now d; initial weights not recorded, now i"
    )
    with pytest.raises(RunFolderError, match="code not recorded, now a"):
        going_on(tmp_path, {}, A, True)
    assert joined({}, A)["code"] == "?+a"


def test_a_repetition_is_compared_with_the_run(tmp_path: Path) -> None:
    def run(name: str, sha: str = "s", identity: str = "i", **environment: Any) -> Path:
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "summary.json", {"finished": True, "identity": identity, "state_sha256": sha})
        write_json(tmp_path / name / "environment.json", {**A, "commit": name, **environment})
        return tmp_path / name

    first = run("first")
    assert repetition(first, run("same")) == f"the final model is that of {first}, bit for bit"
    other = repetition(first, run("other", "t", code="b", python="4"))
    assert other == f"the final model is NOT that of {first}; since then changed: code, python"
    assert repetition(first, run("odd", "t")).endswith("changed: nothing on record")
    assert repetition(first, run("more rounds", "t", "j")) == "" == repetition(tmp_path, first)
    (first / "environment.json").write_text("{")
    assert f"{first} cannot be compared: {first / 'environment.json'} is damaged" in repetition(
        first, tmp_path / "same"
    )


def info(folder: Path, cfg: DictConfig, code: str = "a") -> RunInfo:
    return RunInfo("n", folder, "id", plain(cfg), {}, "n", code)


def said(folder: Path, recorded: Mapping[str, Any], cfg: DictConfig, caplog: pytest.LogCaptureFixture) -> str:
    """The one line about a finished run."""
    write_json(folder / "environment.json", recorded)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        skip(info(folder, cfg))
    (line,) = caplog.messages
    return line


def test_a_skipped_run_says_what_is_different_now(
    tmp_path: Path, tiny: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, parts = tiny(), build(tiny())
    known = {"code": "a", "data": parts.data[:12], "initial": initial_digest(parts.initial)}
    assert origin_of(plain(cfg), "a") == known
    line = f"{tmp_path} is finished; resume=false runs it again in a new folder"
    assert said(tmp_path, known, cfg, caplog) == line
    assert said(tmp_path, {**known, "code": "b"}, cfg, caplog) == f"{line}. It was made of: code b, now a"
    other = said(tmp_path, {**known, "data": "x", "initial": "y"}, cfg, caplog)
    assert other == f"{line}. It was made of: data x, now {known['data']}; initial weights y, now {known['initial']}"
    assert caplog.records[0].levelno == logging.WARNING


def test_a_finished_run_is_skipped_where_its_data_are_not(
    tmp_path: Path, compose: Compose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is fetched for the comparison."""
    monkeypatch.setattr("flame.data.datasets.torchvision_mirror", lambda *_: pytest.fail("fetched"))
    cfg = compose("dataset=mnist", "dataset.download=true", f"paths.data={tmp_path}/nowhere")
    line = said(tmp_path, A, cfg, caplog)
    assert "is finished; resume=false" in line and "is not known: dataset=mnist: no folder has" in line
    assert "\n" not in line


def test_a_thousand_finished_runs_are_compared_with_one_look_at_their_data(
    tmp_path: Path, tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(provenance, "load", lambda cfg: looks.append("data") or digits([0.3], [0.4], 10, 1, 8))
    provenance._data.cache_clear()
    config = plain(tiny())
    for seed in range(3):
        for _ in range(333):
            origin_of({**config, "seed": seed}, "a")
    assert looks == ["data"]
    provenance._data.cache_clear()


def test_content_of_data_and_not_its_place_is_compared(tmp_path: Path, tiny: Compose) -> None:
    made = digits([0.3], [0.4], 10, 1, 8)
    x = made.test.x.clone()
    x[3, 0, 2, 2] ^= 1
    others = [
        replace(made, test=replace(made.test, x=x)),
        replace(made, train=replace(made.train, y=made.train.y.flip(0))),
        replace(made, std=(0.5,)),
        replace(made, train=made.test, test=made.train),
    ]
    assert replace(made, name="elsewhere").digest() == digits([0.3], [0.4], 10, 1, 8).digest()
    assert len({made.digest(), *(other.digest() for other in others)}) == 5


def test_initial_weights_are_those_of_seed_and_model(tiny: Compose) -> None:
    """Whatever a model's `_target_` reads them from: the bits are compared, not its settings."""
    found = {initial_digest(build(tiny(*change)).initial) for change in ((), ("seed=1",), ("model=cnn",))}
    assert len(found) == 3 and initial_digest(build(tiny("client.lr=0.5")).initial) in found


def test_resume_is_one_of_three(tiny: Compose) -> None:
    with pytest.raises(ConfigError, match="resume=no is unknown: must be true, false or force"):
        run(tiny("resume=no"))
