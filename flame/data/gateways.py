"""Where the traffic of devices lies: a folder for each device type, in it a file or a folder for each gateway.

`flame/data/traffic.py` has the picture. Names that begin with a dot are not looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from flame.data.packets import CAPTURES, ENDINGS, Packet, Record, read

ATTACK = "attack"  # the folder that is no device type
Found = Mapping[str, Sequence[Path]]  # name -> its files, in the order of their names
log = logging.getLogger(__name__)


def benign(root: Path, device: str | None) -> Found:
    """TYPE/GATEWAY -> its files, of one type or of all.

    Raises:
        ValueError: there is no such type, or one without gateways.
    """
    types = [path.name for path in _entries(root) if path.is_dir() and path.name != ATTACK]
    if not types:
        raise ValueError(
            f"dataset.root={root} has no device type: must have a folder for each, with a file for each gateway"
        )
    if device is not None and device not in types:
        raise ValueError(f"dataset.device={device}: {root} has no such folder: must be one of {', '.join(types)}")
    found: dict[str, Sequence[Path]] = {}
    for name in types if device is None else [device]:
        gateways = _recorded(root / name)
        if not gateways:
            raise ValueError(
                f"{root / name} has no gateway: must have a file for each ({', '.join(ENDINGS)}), or a folder of such"
                " files; put some there, or delete it"
            )
        found |= {f"{name}/{gateway}": paths for gateway, paths in gateways.items()}
    return found


def attacks(root: Path, attacker: str | None) -> Found:
    """NAME -> its files, of all attacks; the attacker's own is one of them, if there is one, and not the only one.

    Raises:
        ValueError: it is not so.
    """
    found = _recorded(root / ATTACK) if (root / ATTACK).is_dir() else {}
    if attacker is not None and attacker not in found:
        raise ValueError(
            f"dataset.attacker={attacker}: {root / ATTACK} has no such attack: must be"
            f" {' or '.join(found) or 'the name of a file that you put there'}, or null"
        )
    if not set(found) - {attacker}:
        beside = f" beside dataset.attacker={attacker}" if attacker else ""
        raise ValueError(
            f"{root / ATTACK} has no attack{beside}, and so there is no MA, half of which is the share of attacks that"
            f" raise an alarm: put a file ({', '.join(ENDINGS)}) of another attack there"
        )
    return found


def recorded(name: str, paths: Sequence[Path], least: int) -> Record:
    """All packets of a gateway or an attack, file after file.

    Raises:
        ValueError: there are less than `least`, or as `flame.data.packets.read`.
    """
    parts = [read(path, _address(path)) for path in paths]
    packets = [each for part in parts for each in part if isinstance(each, Packet)]
    symbols = [each for part in parts for each in part if isinstance(each, str)]
    if packets and symbols:
        raise ValueError(f"{paths[0].parent}: {name} has tables of packets and of symbols: must have one kind")
    whole: Record = packets or symbols
    if len(whole) < least:
        raise ValueError(
            f"{paths[0]}: {name} has {len(whole)} packets: must have {least} or more, for windows of dataset.length;"
            " lower that, or delete the file"
        )
    return whole


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _recorded(folder: Path) -> dict[str, list[Path]]:
    """Name -> files, of the files and folders in a folder; files of other kinds are a warning."""
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    for entry in _entries(folder):
        inside = _entries(entry) if entry.is_dir() else [entry]
        files = [path for path in inside if path.suffix.lower() in ENDINGS and path.is_file()]
        others += [path for path in inside if path not in files]
        name = (entry.name if entry.is_dir() else entry.stem).partition("@")[0]
        if entry.is_dir() and not files:
            raise ValueError(f"{entry} has no capture ({', '.join(ENDINGS)}): put some there, or delete it")
        if name in found and files:
            raise ValueError(f"{folder} has {name} twice, {entry.name} is one of them: give each a name of its own")
        if files:
            found[name] = files
    if others:
        log.warning("%d files in %s are no captures by their names, and left out: %s", len(others), folder, others[0])
    return found


def _address(path: Path) -> str | None:
    """Of the device, from behind an @ in a capture's name, else in that of its folder; a table needs none."""
    names = [path.stem, path.parent.name] if path.suffix.lower() in CAPTURES else []
    return next((name.rpartition("@")[2] for name in names if "@" in name), None)
