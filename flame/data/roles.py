"""Who is meant by a prefix: the persons of a play under one name, whatever the file calls them.

Joined is who is one person: `Ham.` and HAMLET, MARCIUS and CORIOLANUS, RICHARD and GLOSTER. Numbered ones (FIRST LORD)
and those known by their trade alone (MESSENGER, SERVANT) stay as the play has them, though several men may share a
name. Parts in a play within the play (PYRAMUS) are roles of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from flame.data.plays import speeches

ALIASES: Mapping[str, Mapping[str, str]] = {  # play -> prefix -> name
    "antony_and_cleopatra": {"THYMUS": "THYREUS"},
    "coriolanus": {"MARCIUS": "CORIOLANUS", "TITUS LARTIUS": "LARTIUS"},
    "hamlet": {
        **{"Ham": "HAMLET", "King": "CLAUDIUS", "Queen": "GERTRUDE", "Pol": "POLONIUS", "Oph": "OPHELIA"},
        **{"Hor": "HORATIO", "Laer": "LAERTES", "Ros": "ROSENCRANTZ", "Guil": "GUILDENSTERN", "Mar": "MARCELLUS"},
        **{"Osr": "OSRIC", "Ber": "BERNARDO", "Fran": "FRANCISCO", "Rey": "REYNALDO", "Volt": "VOLTIMAND"},
        **{"Fort": "FORTINBRAS", "For": "FORTINBRAS", "Capt": "CAPTAIN", "Gent": "GENTLEMAN", "Mess": "MESSENGER"},
        **{"I Play": "FIRST PLAYER", "I Player": "FIRST PLAYER", "P. King": "PLAYER KING", "P. Queen": "PLAYER QUEEN"},
        **{"Luc": "LUCIANUS", "Pro": "PROLOGUE", "1 Clown": "FIRST CLOWN", "2 Clown": "SECOND CLOWN"},
        **{"1 Priest": "PRIEST", "1 Ambassador": "FIRST AMBASSADOR", "I Sailor": "FIRST SAILOR"},
    },
    "henry_iv_part_1": {
        **{"PRINCE": "PRINCE HENRY", "KING": "KING HENRY", "FAL": "FALSTAFF", "HOT": "HOTSPUR", "WOR": "WORCESTER"},
        **{"GLEND": "GLENDOWER", "DOUG": "DOUGLAS", "GADS": "GADSHILL", "BARD": "BARDOLPH", "FRAN": "FRANCIS"},
        **{"VER": "VERNON", "MORT": "MORTIMER", "NORTH": "NORTHUMBERLAND", "WEST": "WESTMORELAND"},
        **{"LADY": "LADY PERCY", "LADY P": "LADY PERCY", "HOST": "HOSTESS", "ARCH": "ARCHBISHOP", "LAN": "LANCASTER"},
        **{"SIR M": "SIR MICHAEL", "CHAM": "CHAMBERLAIN", "MESS": "MESSENGER", "SHER": "SHERIFF", "SERV": "SERVANT"},
        **{"OST": "OSTLER", "VINT": "VINTNER", "1. CAR": "FIRST CARRIER", "2. CAR": "SECOND CARRIER"},
        **{"CAR": "FIRST CARRIER"},
    },
    "henry_iv_part_2": {"PRINCE": "PRINCE HENRY", "KING": "KING HENRY"},
    "henry_v": {"KING": "KING HENRY", "FIRST AMBASSADOR": "AMBASSADOR"},
    "henry_vi_part_1": {"PLANTAGENET": "YORK", "CARDINAL": "WINCHESTER", "JOHN": "JOHN TALBOT"},
    "henry_vi_part_2": {"KING": "KING HENRY", "QUEEN": "QUEEN MARGARET", "DUCHESS": "DUCHESS OF GLOSTER"},
    "henry_vi_part_3": {
        **{"EDWARD": "KING EDWARD", "RICHARD": "GLOSTER", "GEORGE": "CLARENCE", "LEWIS": "KING LEWIS"},
        "LADY GREY": "QUEEN ELIZABETH",
    },
    "henry_viii": {"KATHERINE": "QUEEN KATHERINE", "THE PROLOGUE": "PROLOGUE"},
    "john": {"CITIZEN": "FIRST CITIZEN"},
    "lear": {
        **{"Edg": "EDGAR", "Edm": "EDMUND", "Glou": "GLOUCESTER", "Gon": "GONERIL", "Reg": "REGAN", "Cor": "CORDELIA"},
        **{"Corn": "CORNWALL", "Alb": "ALBANY", "Osw": "OSWALD", "Bur": "BURGUNDY", "Cur": "CURAN", "Her": "HERALD"},
        **{"Gent": "GENTLEMAN", "Phys": "PHYSICIAN", "Doct": "PHYSICIAN", "Mess": "MESSENGER", "Capt": "CAPTAIN"},
        **{"Off": "OFFICER", "First Serv": "FIRST SERVANT", "Second Serv": "SECOND SERVANT"},
        "Third Serv": "THIRD SERVANT",
    },
    "merchant_of_venice": {"DUKE OF VENICE": "DUKE"},
    "midsummer_nights_dream": {"MOON": "MOONSHINE"},
    "pericles": {"PERACLES": "PERICLES", "HELICANE": "HELICANUS", "HELCANUS": "HELICANUS"},
    "richard_ii": {"HENRY PERCY": "PERCY"},
    "richard_iii": {"GLOSTER": "KING RICHARD"},
    "romeo_and_juliet": {"Friar": "FRIAR LAWRENCE", "Chor": "CHORUS"},
    "timon_of_athens": {"LUCULLIUS": "LUCULLUS"},
    "troilus_and_cressida": {"ANDARUS": "PANDARUS", "AGAME": "AGAMEMNON"},
    "twelfth_night": {"AGUE-CHEEK": "SIR ANDREW"},
}
SUCCESSORS = {("henry_iv_part_2", "KING"): (5, "PRINCE HENRY")}  # from that act on, another has the title


def roles(play: str, text: str) -> dict[str, str]:
    """Name -> all that the role says, speech after speech, of a play known by the name of its file."""
    said: dict[str, list[str]] = {}
    for act, who, speech in speeches(text):
        from_act, successor = SUCCESSORS.get((play, who), (None, ""))
        known = successor if from_act is not None and act >= from_act else ALIASES.get(play, {}).get(who, who)
        said.setdefault(known.upper(), []).append(speech)
    return {name: "\n".join(all_of) for name, all_of in said.items()}
