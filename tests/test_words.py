"""The documents for people: short sentences, short front pages, links that lead somewhere, each table on one page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 40
FRONT = [ROOT / "README.md", ROOT / "RESULTS.md"]
PAGES = FRONT + sorted((ROOT / "docs").glob("**/*.md"))
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
GENERATED = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end: \1 -->", flags=re.DOTALL)
FENCE = re.compile(r"^[ ]*(```|~~~).*?^[ ]*\1[ ]*$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]*)\)")
ITEM = re.compile(r"^\s*(?:[*+-]|\d+\.)\s+")
SHORT = re.compile(r"\b(e\.g|i\.e|et al|vs|cf|Fig|Sec|Eq)\.", flags=re.IGNORECASE)  # no ends of sentences


def stripped(text: str) -> str:
    """A page without generated blocks, code and comments."""
    text = FENCE.sub("\n", GENERATED.sub("\n", text))
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def paragraphs(text: str) -> Iterator[str]:
    """Running text: headings, tables, quotes' marks and lists' marks are gone; an item is a paragraph of its own."""
    lines: list[str] = []
    for line in [*stripped(text).splitlines(), ""]:
        line = line.strip().removeprefix(">").strip()
        apart = not line or line.startswith(("#", "|", "!!!", "???", "---")) or ITEM.match(line)
        if apart and lines:
            yield " ".join(lines)
            lines = []
        if not apart or ITEM.match(line):
            lines.append(ITEM.sub("", line))


def sentences(text: str) -> Iterator[str]:
    """Every sentence: it ends with a stop and a blank; a colon or semicolon ends none."""
    for paragraph in paragraphs(text):
        plain = re.sub(r"`[^`]*`", "Code", LINK.sub(r"\1", paragraph)).replace("*", "")
        plain = SHORT.sub(lambda found: found[1].replace(".", ""), plain)
        yield from re.split(r"(?<=[.!?])[\")]?\s+", plain)


def words(sentence: str) -> int:
    """Words and numbers; a dash between blanks is neither."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def anchors(path: Path) -> set[str]:
    """The names by which headings of a page can be linked to."""
    headings = re.findall(r"^#+ +(.*?)\s*$", FENCE.sub("\n", path.read_text()), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", LINK.sub(r"\1", heading)).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", heading) for heading in plain}


def test_sentences_by_hand() -> None:
    page = "\n".join(
        [
            "# A heading of many words that does not count",
            "One `a b c` two, e.g. three",
            "four [five six](seven.md). Eight?",
            "",
            "* nine [1.5, 2.5] ten",
            "* **Eleven.** Twelve: thirteen (n = 6). See it.",
            "| a | table |",
            "```bash",
            "python train.py  # Not. A. Sentence.",
            "```",
            "<!-- table: x -->",
            "In per cent. All of it.",
            "<!-- end: x -->",
        ]
    )
    expected = [8, 1, 4, 1, 4, 2]
    assert [words(sentence) for sentence in sentences(page)] == expected, list(sentences(page))


@pytest.mark.parametrize("name", NAMES)
def test_no_sentence_is_long(name: str) -> None:
    text = (ROOT / name).read_text()
    long = [f"{words(s)} words: {s}" for s in sentences(text) if words(s) > MOST_WORDS]
    assert not long, f"{name}: split these sentences, {MOST_WORDS} words are the most:\n" + "\n".join(long)


@pytest.mark.parametrize(("name", "most"), [("README.md", 9_000), ("RESULTS.md", 12_000)])
def test_a_front_page_is_short(name: str, most: int) -> None:
    size = len((ROOT / name).read_bytes())
    assert size <= most, f"{name} has {size:,} bytes, {most:,} are the most: move something to docs/"


def test_the_reply_is_short() -> None:
    count = words((ROOT / "docs/reply.md").read_text())
    assert count <= 350, f"docs/reply.md has {count} words, 350 are the most"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path, lost = ROOT / name, []
    for _, target in LINK.findall(stripped(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue  # an address on the network
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        generated = there.parent == ROOT / "docs/catalogue"  # `make docs` writes it
        if not generated and (not there.exists() or (anchor and anchor not in anchors(there))):
            lost.append(target)
    assert not lost, f"{name}: these links lead nowhere: {', '.join(lost)}"


@pytest.mark.parametrize("name", NAMES)
def test_configs_it_starts_exist(name: str) -> None:
    """`--config-name NAME` in a command is a file of conf/."""
    named = re.findall(r"--config-name ([\w/]+)", GENERATED.sub("", (ROOT / name).read_text()))
    lost = sorted({config for config in named if not (ROOT / "conf" / f"{config}.yaml").exists()})
    assert not lost, f"{name}: there is no conf/ file for {', '.join(lost)}"


@pytest.mark.parametrize("name", NAMES)
def test_results_it_names_exist(name: str) -> None:
    paths = re.findall(r"\bresults/[\w/-]+\.\w+", GENERATED.sub("", (ROOT / name).read_text()))
    lost = sorted({path for path in paths if not (ROOT / path).exists()})
    assert not lost, f"{name}: there is no {', '.join(lost)}"


def test_each_table_stands_on_one_page() -> None:
    homes: dict[str, list[str]] = {}
    for name in NAMES:
        text = (ROOT / name).read_text()
        opened, whole = re.findall(r"<!-- table: (\w+) -->", text), GENERATED.findall(text)
        assert opened == whole, f"{name}: the marks of {set(opened) ^ set(whole)} do not come in pairs"
        for table in opened:
            homes.setdefault(table, []).append(name)
    assert homes
    twice = {table: pages for table, pages in homes.items() if len(pages) > 1}
    assert not twice, f"a table stands on one page only: {twice}"
    misplaced = {table: pages for table, (pages,) in homes.items() if not pages.startswith("docs/")}
    assert not misplaced, f"tables stand in docs/evidence/, front pages link to them: {misplaced}"


def test_every_page_of_evidence_is_listed() -> None:
    folder = ROOT / "docs/evidence"
    listed = {target for _, target in LINK.findall((folder / "index.md").read_text())}
    lost = sorted(path.name for path in folder.glob("*.md") if path.name not in {*listed, "index.md"})
    assert not lost, f"docs/evidence/index.md does not list {', '.join(lost)}"
