"""Speeches and roles: each layout that occurs, and, where the plays are at hand, known speeches of known persons."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from flame.data.plays import speeches
from flame.data.roles import ALIASES, SUCCESSORS, roles
from flame.data.shakespeare import ALPHABET, SOURCE, read

PLAYS = Path(os.environ.get("FLAME_DATA", "data")) / "shakespeare"

CAPITALS = """The Project Gutenberg Etext of a play
*** START OF THIS PROJECT GUTENBERG EBOOK ***
A PLAY

by William Shakespeare

PERSONS REPRESENTED

ANNA, Queen of Nothing.
BEN.

SCENE: Nowhere



ACT I.

SCENE I. A room.

Dead March. Enter BEN
and others.

ANNA.
Good morrow, Ben.
   And to thee, world.

[Enter a Messenger, with
a letter.]

Who calls?

BEN. [Aside]
I call [Kneels.] not.

FIRST LORD.

Nor I.
                         SONG.
Under the _tree_
      II.
A bird. [Exit.}

ANNA. Nor thou, Ben.

BEN. Nor I.

ANNA and BEN.
We both.

BOTH.
Ay.

{They go, all
of them.]

ANNA: [Reads]
Thine,
                              BEN.

[A sennet. They sit, the Lords

take their places.]

LouIS.
Unknown.

AnnA.
Known, in part.

Ben.
Ay.Exit Ben

ALL. Amen.
[Exeunt [all] at once.]

THE END
End of Project Gutenberg's play
BEN.
No.
"""
NAMES = """ACT I.

Scene I. A platform.

[Francisco at his post.]

Ber.
Who's there?

Fran.
Nay, answer me: stand, and unfold yourself.

Ber. Long live the king!

1 Clown.
In youth, when I did love.

Romeo,
Be gone.

Lady Capulet.
Peace.

Mar. and Ber.
Both.

Lady Capulet
I said,

Peace, peace.
"""
BARE = """ACT I.

SCENE I. A wood.

THESEUS
Now, fair Hippolyta.

HIPPOLYTA
     Four days.

[Exit.]

Four nights.

1 KEEPER
A deer.
"""


def said(text: str) -> list[tuple[str, str]]:
    return [(who, speech) for _, who, speech in speeches(text)]


def test_prefixes_in_capitals() -> None:
    assert said(CAPITALS) == [
        ("ANNA", "Good morrow, Ben.\nAnd to thee, world.\nWho calls?"),
        ("BEN", "I call not."),
        ("FIRST LORD", "Nor I.\nUnder the tree\nA bird."),
        ("ANNA", "Nor thou, Ben."),
        ("BEN", "Nor I."),
        ("ANNA", "Thine,\nBEN.\nLouIS.\nUnknown."),
        ("ANNA", "Known, in part."),
        ("BEN", "Ay."),
    ]


def test_prefixes_like_names() -> None:
    assert said(NAMES) == [
        ("Ber", "Who's there?"),
        ("Fran", "Nay, answer me: stand, and unfold yourself."),
        ("Ber", "Long live the king!"),
        ("1 Clown", "In youth, when I did love.\nRomeo,\nBe gone."),
        ("Lady Capulet", "Peace."),
        ("Lady Capulet", "I said,\nPeace, peace."),
    ]


def test_prefixes_without_a_stop() -> None:
    assert said(BARE) == [
        ("THESEUS", "Now, fair Hippolyta."),
        ("HIPPOLYTA", "Four days.\nFour nights."),
        ("1 KEEPER", "A deer."),
    ]


def test_persons_with_several_prefixes_are_joined() -> None:
    play = "ACT I.\n\nMARCIUS.\nOne.\n\nBRUTUS.\nTwo.\n\nACT II.\n\nCORIOLANUS.\nThree.\n"
    assert roles("coriolanus", play) == {"CORIOLANUS": "One.\nThree.", "BRUTUS": "Two."}
    assert roles("another", play)["MARCIUS"] == "One."


def test_a_title_has_its_bearer() -> None:
    """The king of the fourth act has died in the fifth."""
    acts = "\n\n".join(f"ACT {n}.\n\nSCENE I. London.\n\nKING.\nI, the {n}." for n in ("I", "II", "III", "IV", "V"))
    found = roles("henry_iv_part_2", acts)
    assert found == {"KING HENRY": "I, the I.\nI, the II.\nI, the III.\nI, the IV.", "PRINCE HENRY": "I, the V."}


def test_no_text_has_no_roles() -> None:
    assert said("") == said("Shall I compare thee to a summer's day?\n") == said("ACT I.\n\n[Enter BEN.]\n") == []


@pytest.fixture(scope="module")
def everything() -> Mapping[str, str]:
    """play/NAME -> all that is said."""
    if not PLAYS.is_dir():
        pytest.skip("the plays are not here: `make data-text`")
    texts = {path.name.removesuffix(SOURCE.ending): text for path, text in read(PLAYS).items()}
    return {f"{play}/{name}": said for play, text in texts.items() for name, said in roles(play, text).items()}


SPEECHES = {  # the files' own spelling
    "To be, or not to be,--that is the question": "hamlet/HAMLET",
    "Neither a borrower nor a lender be": "hamlet/POLONIUS",
    "lady protests too much": "hamlet/GERTRUDE",
    "Something is rotten": "hamlet/MARCELLUS",
    "Good night, sweet prince": "hamlet/HORATIO",
    "To-morrow, and to-morrow, and to-morrow": "macbeth/MACBETH",
    "Out, damned spot": "macbeth/LADY MACBETH",
    "By the pricking of my thumbs": "macbeth/SECOND WITCH",
    "Friends, Romans, countrymen": "julius_caesar/ANTONY",
    "Not that I loved Caesar less": "julius_caesar/BRUTUS",
    "The fault, dear Brutus": "julius_caesar/CASSIUS",
    "lean and hungry look": "julius_caesar/CAESAR",
    "All the world's a stage": "as_you_like_it/JAQUES",
    "The quality of mercy is not strain": "merchant_of_venice/PORTIA",
    "Hath not a Jew eyes": "merchant_of_venice/SHYLOCK",
    "what light through yonder window": "romeo_and_juliet/ROMEO",
    "wherefore art thou": "romeo_and_juliet/JULIET",
    "A plague o' both": "romeo_and_juliet/MERCUTIO",
    "Now is the winter of our discontent": "richard_iii/KING RICHARD",
    "We few, we happy few": "henry_v/KING HENRY",
    "If music be the food of love": "twelfth_night/DUKE",
    "Some are born great": "twelfth_night/MALVOLIO",
    "The course of true love never did": "midsummer_nights_dream/LYSANDER",
    "Lord, what fools these mortals be": "midsummer_nights_dream/PUCK",
    "Our revels now are ended": "tempest/PROSPERO",
    "O brave new world": "tempest/MIRANDA",
    "Blow, winds, and crack your cheeks": "lear/LEAR",
    "Put out the light": "othello/OTHELLO",
    "green-ey'd monster": "othello/IAGO",
    "this scepter'd isle": "richard_ii/GAUNT",
    "The better part of valour": "henry_iv_part_1/FALSTAFF",
    "Uneasy lies the head": "henry_iv_part_2/KING HENRY",
    "I know thee not, old man": "henry_iv_part_2/PRINCE HENRY",
    "The barge she sat in": "antony_and_cleopatra/ENOBARBUS",
    "kill all the lawyers": "henry_vi_part_2/DICK",
    "Time hath, my lord, a wallet": "troilus_and_cressida/ULYSSES",
}


@pytest.mark.parametrize("speech", SPEECHES)
def test_known_speeches_are_whose_they_are(everything: Mapping[str, str], speech: str) -> None:
    assert [name for name, text in everything.items() if speech in text] == [SPEECHES[speech]]


def test_what_is_said_is_all_that_is_said(everything: Mapping[str, str]) -> None:
    """No bracket, no heading, no prefix of capitals alone; all characters are of the alphabet, but for a slash."""
    assert len({name.partition("/")[0] for name in everything}) == 37
    for name, text in everything.items():
        assert not set(text) - set(ALPHABET) - {"/"}, name
        assert not [line for line in text.split("\n") if line.startswith(("ACT ", "SCENE ")) or line != line.strip()]


def test_roles_are_counted(everything: Mapping[str, str]) -> None:
    assert len(everything) == 1287 and sum(map(len, everything.values())) == 4_260_294
    assert sum(len(text) >= 2000 for text in everything.values()) == 439
    assert sum("\n" in text for text in everything.values()) == 1191


def test_every_alias_occurs(everything: Mapping[str, str]) -> None:
    texts = {path.name.removesuffix(SOURCE.ending): text for path, text in read(PLAYS).items()}
    assert set(ALIASES) | {play for play, _ in SUCCESSORS} <= set(texts)
    for play, names in ALIASES.items():
        prefixes = {who for _, who, _ in speeches(texts[play])}
        assert set(names) <= prefixes, play
        assert all(f"{play}/{name}" in everything for name in names.values())
