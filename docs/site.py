"""What `mkdocs build` adds to this folder: the front pages, the figures, and catalogues made from conf/ and the code.

So nothing is said twice: a part's page is its YAML and the head of its module.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FRONT = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changes.md",
}  # in the tree -> in the site
FIGURES = "results/figures"
MADE = {  # what a page is made from, which is what a reader of the tree is sent to -> the page
    "conf/attack": "catalogue/attacks.md",
    "conf/defense": "catalogue/defenses.md",
    "conf/defense/flame_weights_only.yaml": "catalogue/presets.md",
    "conf": "catalogue/parts.md",
    "conf/recipe": "catalogue/recipes.md",
}
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^)\s]+)\)")
ENTRY = re.compile(r"^(?P<indent> *)(?P<key>[\w@/]+):(?: (?P<value>.*?))?(?: +# ?(?P<note>.*))?$")
PARTS = ("dataset", "partition", "model", "client", "engine", "tracker")
CATALOGUES = {
    "attacks": ("Attacks", ("attack", "attack/trigger"), lambda name: True),
    "defenses": ("Defenses", ("defense",), lambda name: not is_preset(name)),
    "presets": ("Presets of FLAME", ("defense",), lambda name: is_preset(name)),
    "parts": ("Data, partitions, models and the rest", PARTS, lambda name: True),
}  # page -> title, config groups, which of their options


def is_preset(name: str) -> bool:
    """Whether an option of `defense` is a public FLAME, or one of the two of the question."""
    return name.startswith("flame_")


@dataclass(frozen=True)
class Part:
    """One option of a config group, as its YAML and its module tell it."""

    group: str
    name: str
    head: str  # the comment at the top of the YAML
    bases: tuple[str, ...]  # options that it starts from
    keys: tuple[tuple[str, str, str], ...]  # key, value, note
    module: str  # path of what it instantiates; empty if the option that it starts from says so

    @property
    def first_sentence(self) -> str:
        """What it is, in one line."""
        stop = r"(?<!\bal)(?<!\bProc)(?<=[\w)\]])\.\s|(?<!\bal)\.$|:$"
        return re.split(stop, self.head, maxsplit=1)[0].rstrip(":")


def read_part(path: Path, group: str) -> Part:
    """Parse a YAML as text: the comments are what a catalogue is about."""
    lines = path.read_text().splitlines()
    top = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head = " ".join(line.lstrip("# ") for line in lines[:top] if not line.startswith("# @package"))
    target = next((line.split()[1] for line in lines if line.startswith("_target_: ")), "")
    starts = re.findall(r"^  - (?:override )?/?([\w/@]+(?:: \w+)?)", "\n".join(lines[top:]), flags=re.MULTILINE)
    module = f"{target.rpartition('.')[0].replace('.', '/')}.py" if target else ""
    return Part(group, path.stem, head, tuple(s for s in starts if s != "_self_"), tuple(keys(lines[top:])), module)


def keys(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Dotted key, value and note of each entry; comment lines above an entry belong to its note."""
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    for line in lines:
        if line.lstrip().startswith("#"):
            above.append(line.strip("# "))
            continue
        found = ENTRY.match(line)
        if found is None or found["key"] in ("defaults", "_self_"):
            above = []
            continue
        indent = len(found["indent"])
        stack = [(i, k) for i, k in stack if i < indent] + [(indent, found["key"])]
        dotted = ".".join(key for _, key in stack)
        if found["value"] and not found["key"].startswith("_"):
            yield dotted, found["value"], " ".join([*above, found["note"] or ""]).strip()
        above = []


def docstring(path: str) -> str:
    """The head of a module; empty if there is none."""
    return ast.get_docstring(ast.parse((ROOT / path).read_text())) or "" if path and (ROOT / path).exists() else ""


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "or")


def section(part: Part) -> list[str]:
    """A part's entry: what it is, what it starts from, its keys, and the head of its module."""
    lines = [f"### `{part.name}`", "", f"{part.head}", ""]
    if part.bases:
        lines += [f"Starts from {', '.join(f'`{base}`' for base in part.bases)}.", ""]
    if part.keys:
        lines += ["| key | value | meaning and origin |", "|---|---|---|"]
        lines += [f"| `{key}` | `{cell(value)}` | {cell(note)} |" for key, value, note in part.keys] + [""]
    if head := docstring(part.module):
        lines += [f'??? note "From the head of {part.module}"', ""]
        lines += [f"    {line}".rstrip() for line in head.splitlines()] + [""]
    return lines


def catalogue(name: str) -> str:
    """One page: an index of the parts, then an entry for each."""
    title, groups, wanted = CATALOGUES[name]
    lines = [
        f"# {title}",
        "",
        "This page is made from `conf/` and the heads of the modules. Nothing here is written by hand.",
        "",
    ]
    for group in groups:
        paths = sorted((ROOT / "conf" / group).glob("*.yaml"))
        parts = [part for path in paths if wanted(path.stem) for part in [read_part(path, group)]]
        lines += [f"## `{group}`", "", "| option | what it is |", "|---|---|"]
        lines += [f"| [`{part.name}`](#{part.name}) | {cell(part.first_sentence)} |" for part in parts] + [""]
        for part in parts:
            lines += section(part)
    return "\n".join(lines)


def recipes() -> str:
    """Every recipe with its command and what its file says of it."""
    lines = ["# Recipes", "", "A recipe is one YAML: a sweep, what was expected of it, and what came out.", ""]
    for path in sorted((ROOT / "conf/recipe").rglob("*.yaml")):
        name = path.relative_to(ROOT / "conf").with_suffix("").as_posix()
        head = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
        text = [line for line in head if not line.startswith(("@package", "python train.py"))]
        lines += [f"## `{name}`", "", " ".join(text), "", "```bash", f"python train.py --config-name {name}", "```", ""]
    return "\n".join(lines)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write out the navigation's folder of evidence."""
    index = (ROOT / "docs/evidence/index.md").read_text()  # a test holds that it names every page
    pages = [f"evidence/{name}" for name in dict.fromkeys(["index.md", *re.findall(r"\]\((\w+\.md)", index)])]

    def expanded(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {key: pages if value == "evidence/" else expanded(value) for key, value in entry.items()}
        return [expanded(each) for each in entry] if isinstance(entry, list) else entry

    config.nav = expanded(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of this folder."""
    for source, target in FRONT.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    for path in sorted((ROOT / FIGURES).glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    for name in CATALOGUES:
        files.append(File.generated(config, f"catalogue/{name}.md", content=catalogue(name)))
    files.append(File.generated(config, "catalogue/recipes.md", content=recipes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site; those to files that the site does not hold become text."""
    origin = {target: source for source, target in FRONT.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = os.path.dirname(page.file.src_uri) or "."

    def moved(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path, sign, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        there = site_path(os.path.normpath(os.path.join(os.path.dirname(origin), path)))
        return text if there is None else f"{mark}[{text}]({os.path.relpath(there, folder)}{sign}{anchor})"

    return LINK.sub(moved, re.sub(r"^<!-- (?:table|end): .*?-->$", "", markdown, flags=re.MULTILINE))


def site_path(path: str) -> str | None:
    """Where the site has a file of the tree; None if it has not."""
    if path in FRONT | MADE:
        return (FRONT | MADE)[path]
    if path.startswith(f"{FIGURES}/"):
        return path.replace(FIGURES, "figures")
    return path.removeprefix("docs/") if path.startswith("docs/") else None
