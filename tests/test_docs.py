"""What the documents say exists and works: every command of a bash block runs, tiny; names, paths and counts hold."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from warm import Warm

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    "README.md",
    "docs/quickstart.md",
    *(f"docs/guides/{name}.md" for name in ("data", "library", "models", "replay", "reports", "start", "yours")),
]
TELLING = (
    "README.md",
    "docs/quickstart.md",
    "docs/guides/reports.md",
)  # of the same runs, and the same to do with them
TINY = ["experiment=smoke", "engine=sequential", "tracker=files", "train_samples=200"]
ALL = ["README.md", "RESULTS.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def commands(page: str) -> list[str]:
    """The lines of all bash blocks, without comments and blank lines, in order."""
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page) if line.startswith("make ")])
def test_make_target(line: str) -> None:
    target = shlex.split(line)[1]
    assert target in re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A folder for the pages that tell of the same runs, and the lines of reports that ran there before."""
    return tmp_path_factory.mktemp("told"), set()


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_order(page: str, tmp_path: Path, told: tuple[Path, set[str]], command: Warm) -> None:
    """In the page's order: one reads what another has written. Files of a page's own are written first.

    A line on reports that another page had, word by word and on the same runs, is not run again.
    """
    tmp_path, before = told if page in TELLING else (tmp_path, set())
    write_files(page, tmp_path)
    lines = commands(page)
    for at, line in enumerate(lines):
        if line.startswith("python -m flame.report "):
            assert any("train.py" in other for other in lines[:at]), f"{page}: {line} comes before any run"
            if line in before:
                continue
            before.add(line)
        if copied := re.fullmatch(r"cp -r (examples/\S+) (\S+)", line):
            shutil.copytree(ROOT / copied[1], tmp_path / copied[2])
            continue
        if not re.match(r"(PYTHONPATH=\S+ )?python ", line):
            assert re.match(r"make |pip install ", line), f"{page}: nobody tries {line}"
            continue
        found = re.fullmatch(r"(?:PYTHONPATH=(\S+) )?python (.*)", line)
        assert found is not None
        environment = {**os.environ, "FLAME_RUNS": str(tmp_path / "runs")}
        if found[1]:
            environment["PYTHONPATH"] = str(tmp_path / found[1])
        done = command(made_tiny(shlex.split(found[2]), tmp_path), environment)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def made_tiny(words: list[str], folder: Path) -> list[str]:
    """A documented command on digits and in a folder of the test's own."""
    if words[:2] == ["-m", "flame.data"] and words[2] != "check":
        return [*words[:2], "--help"]  # it would use the network
    if words[0] == "train.py" and not {"--help", "--cfg"} & set(words):
        given = any(word.startswith(("record", "rounds", "attack_rounds", "start")) for word in words)
        tiny = TINY if given else [*TINY, "rounds=1", "report_last=1"]
        words = [*words[:-1], *tiny, words[-1]] if words[-1] == "--estimate" else [*words, *tiny]
    if "model=torchvision" in words:  # large, however few the images
        words = [*words, "train_samples=20", "clients=2", "clients_per_round=2", "attack=none", "defense=fedavg"]
    words = ["seed=0,1" if word == "seed=0,1,2" else word for word in words]  # a sweep all the same
    if "--config-name" in words:  # of a recipe's cells, two
        words = [*words[:-1], "partition=iid", "attack=badnets", "defense=fedavg,flame_all_state", words[-1]]
    if "start=trained" in words:
        words = [*words, "start.rounds=2"]
    if words[:2] in (["-m", "flame.partition"], ["-m", "flame.data"]):
        words = [*words, *TINY]
    recorded = sorted(folder.glob("runs/*/recorded/*"))
    run = str(recorded[0].parents[1]) if recorded else str(next(folder.glob("runs/*/summary.json"), folder).parent)
    made = []
    for word in words:
        word = re.sub(r"^([\w.]+=)(?=mine/)", rf"\1{folder}/", word)
        word = re.sub(r"^(out=)?(?=[\w/-]+\.(?:png|html|json|tex|md|csv|safetensors)$)", rf"\1{folder}/", word)
        word = word.replace(f"{folder}/runs/NAME", run).replace("runs/NAME", run)
        word = word.replace("updates=FILE", f"updates={recorded[0]}" if recorded else word)
        if word in ("runs", "runs/demo"):
            word = str(folder / word.partition("/")[0])
        made += [*map(str, recorded)] if "*" in word else [str(folder / word) if word.startswith("mine/") else word]
    return made


def write_files(page: str, folder: Path) -> None:
    """The Python and YAML of a page whose first line names their file, as a reader would save them."""
    for text in (block for language in ("python", "yaml") for block in blocks(page, language)):
        named = re.match(r"# (mine/\S+)\n", text)
        if named:
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.mark.parametrize("page", ALL)
def test_the_files_it_names_exist(page: str) -> None:
    """But for the texts of links, which are followed elsewhere."""
    text = (ROOT / page).read_text()
    paths = re.findall(r"(?<!\[)`((?:flame|conf|attacks|models|tests|results|docs|examples)/[\w/.-]+)`", text)
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_figures_of_who_gets_in_are_of_the_tables() -> None:
    for answer in runpy.run_path(str(ROOT / "docs/answer.py"))["ANSWERS"]:
        assert len(answer.rows()) >= 10
        with Image.open(ROOT / answer.figure) as figure:
            assert figure.info["Source"] == answer.source(), "python docs/answer.py draws it again"


def test_the_counts_of_the_front_page() -> None:
    text = README.read_text()

    def count(group: str, *without: str) -> int:
        return len([path for path in (ROOT / "conf" / group).glob("*.yaml") if path.stem not in without])

    defenses, presets = count("defense"), len([*(ROOT / "conf/defense").glob("flame_*.yaml")])
    sizes = f"{count('dataset')}, {count('partition')}, {count('model')}"
    records = [pd.read_csv(path) for path in (ROOT / "results").rglob("*.csv")]
    lines = pd.concat([record[["identity", "commit"]] for record in records if "identity" in record])
    runs = len(lines.drop_duplicates())  # recipes share some
    assert f"| attacks, controls and variants | {count('attack', 'none')} |" in text
    assert f"| defenses | {defenses}, of which {presets} are FLAMEs |" in text
    assert f"| data sets, partitions, models | {sizes} |" in text
    assert f"| {len([*(ROOT / 'conf/recipe').rglob('*.yaml')])} | [recipes]" in text
    assert f"| published runs | {runs:,} |" in text
    assert f"| pages of evidence | {len([*(ROOT / 'docs/evidence').glob('*.md')])} |" in text


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"^(DEMO|TEST\w*|TODO)$", README.read_text(), flags=re.MULTILINE)
