"""What bad disks return: generators for test_hostile.py and torture.py."""

from __future__ import annotations

import importlib.util
import json
import pickle
import random
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch
from hostile import start_state
from torch import Tensor

from flame.data.packets import read as read_packets
from flame.data.synthetic import ADDRESS, EXCHANGES, drawn, write_capture, write_table
from flame.round.checkpoint import RunFolderError, read_checkpoint, write_checkpoint
from flame.round.seeding import generator
from flame.run.folder import claimed, read_json
from flame.run.trackers.files import RunFiles, read_metrics


def damage(content: bytes, draw: random.Random) -> bytes:
    """The file after a bad disk, a crash or an attacker."""
    spoilt, at = bytearray(content), draw.randrange(len(content))
    match draw.randrange(8):
        case 0:
            return content[:at]
        case 1:
            spoilt[at] ^= 1 << draw.randrange(8)
        case 2:
            spoilt[at : at + draw.randrange(64)] = draw.randbytes(draw.randrange(64))
        case 3:
            spoilt[:8] = draw.getrandbits(64).to_bytes(8, "little")  # a safetensors header that promises exabytes
        case 4:
            spoilt[at:] = bytes(len(spoilt) - at)  # blocks that never reached the disk
        case 5:
            return draw.randbytes(draw.randrange(200))
        case 6:
            return pickle.dumps(Path)
        case 7:
            lines = content.split(b"\n")
            draw.shuffle(lines)
            return b"\n".join(lines)
    return bytes(spoilt)


def damaged_files(folder: Path, count: int, seed: int) -> int:
    """Read `count` damaged files; how many were refused in words (or, undamaged in what matters, read as they were)."""
    folder = folder / "files"
    originals = sample_files(folder)
    refused, readers = 0, cycle(originals)
    for number in range(count):
        path = next(readers)
        content = damage(originals[path], random.Random(f"{seed}/{number}"))
        path.write_bytes(content)
        try:
            if not (fine := read(path, originals[path])):
                print(f"{path.name}, file {number} of seed {seed}: it was read, but as something else")
            refused += fine
        except Exception as error:  # counted, whatever it is
            print(f"{path.name}, file {number} of seed {seed}: {type(error).__name__}: {error}")
        path.write_bytes(originals[path])
    return refused


def sample_files(folder: Path) -> dict[Path, bytes]:
    """A small run folder's files, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = start_state(generator(0, "sample"))
    memory: dict[str, Tensor] = {"defense/history": torch.ones(4, 3), "attack/last": state.row}
    checkpoint = write_checkpoint(folder / "checkpoints", replace(state, memory=memory), "0123456789ab")
    contents = {
        "metrics.jsonl": "".join(f'{{"round": {r}, "eval/ma": 0.5, "train/loss": null}}\n' for r in range(4)),
        "acceptance.csv": "round,client,norm\n" + "".join(f"{r},{c},0.25\n" for r in range(4) for c in range(3)),
        "identity.json": '{"identity": "0123456789ab"}\n',
        "summary.json": '{"finished": true, "metrics": {"eval/ma": 0.5}}\n',
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    captures = sample_captures(folder)
    return {path: path.read_bytes() for path in (checkpoint, *(folder / name for name in contents), *captures)}


def sample_captures(folder: Path) -> list[Path]:
    """A device's packets as a table and, where dpkt is installed, as a capture."""
    packets = drawn(EXCHANGES["synthetic_plug"], 20, 0, 0)
    write_table(folder / "table.csv", packets)
    if importlib.util.find_spec("dpkt") is None:
        return [folder / "table.csv"]
    write_capture(folder / "capture.pcap", packets)
    return [folder / "table.csv", folder / "capture.pcap"]


def read(path: Path, original: bytes) -> bool:
    """Read one file as a resumed run does: True if it was refused with its name, or gave what it must."""
    folder = path.parent
    try:
        match path.name:
            case "metrics.jsonl":
                RunFiles(folder, 3)
                return [line["round"] for line in read_metrics(folder)] == [0, 1, 2]
            case "acceptance.csv":
                RunFiles(folder, 3)
                return path.read_bytes().count(b"\n") >= 4
            case "identity.json":
                with claimed(folder, "0123456789ab"):
                    return json.loads(path.read_bytes())["identity"] == "0123456789ab"
            case "table.csv" | "capture.pcap":
                return 0 < len(read_packets(path, ADDRESS)) <= 20  # no checksum: what the bytes still say
            case "summary.json":
                return read_json(path) == json.loads(path.read_bytes())  # no checksum: what the bytes still say
            case _:
                state, owner = read_checkpoint(path)
                write_checkpoint(folder, state, owner)
                return path.read_bytes() == original
    except RunFolderError as error:
        return str(folder) in str(error)
    except ValueError as error:
        return path.name in ("table.csv", "capture.pcap") and str(path) in str(error)
