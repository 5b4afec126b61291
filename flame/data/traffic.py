"""`dataset=traffic`: what devices send and are sent, as symbols, of which a model predicts the next.

    ROOT/TYPE/GATEWAY.csv           benign: a device of this type behind this gateway, a client of the federation
    ROOT/TYPE/GATEWAY@ADDRESS.pcap  likewise, a capture; or a folder GATEWAY@ADDRESS with captures
    ROOT/attack/NAME.csv            attacks, files or folders as above; dataset.attacker names the attacker's own

After Nguyen et al., "DIoT: A Federated Self-learning Anomaly Detection System for IoT", ICDCS 2019 (arXiv 1804.07474).
We have not had the paper at hand. As recalled, a packet's characteristics are its direction, the kinds of the local and
of the remote port (system, user, dynamic), its length (a bin for each of the eight most frequent, one for the rest),
TCP's flags, the protocols, and the pause since the packet before, in three bins. `Bins.symbol` joins the same seven.

Ours: protocols are network and transport, no application; the edges of the pauses, which are a thousandth there if our
memory is right; lengths are counted over all devices that are loaded, and `dataset.device` loads one type, for which
the paper has a model of its own; windows do not overlap, and the last of each gateway, in time, are the test set. The
vocabulary is what benign training traffic has; all else is `UNKNOWN`, which nobody benign trains on. Accuracy is that
of alarms (`flame/data/watched.py`), on as many benign windows as windows of attacks.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flame.data.facts import check_said
from flame.data.gateways import attacks, benign, recorded
from flame.data.samples import Dataset, Holders
from flame.data.symbols import Bins, divided_at, windows
from flame.data.vocabulary import SYMBOL, UNKNOWN, Vocabulary
from flame.data.watched import Watched, balanced, watched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Traffic(Dataset):
    """A data set that knows traffic of an attacker's own, which is in neither of its parts."""

    attacker: Watched | None = None  # in the order of time; alarms are wanted

    def digest(self) -> str:
        """As `Dataset.digest`, with the thresholds, the alarms that are wanted and the attacker's traffic."""
        assert isinstance(self.test, Watched)
        h = hashlib.sha256(super().digest().encode())
        h.update(repr((self.test.sigma, self.test.gamma)).encode())
        for tensor in (self.test.alarm, *((self.attacker.x, self.attacker.y) if self.attacker else ())):
            h.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            h.update(tensor.contiguous().numpy().data)
        return h.hexdigest()


def traffic(
    root: str | None,
    device: str | None,
    attacker: str | None,
    length: int,
    lengths: int,
    pauses: Sequence[float],
    test_share: float,
    sigma: float,
    gamma: float,
    tokens: int | None,
    classes: int | None,
) -> Traffic:
    """The traffic under `root`; conf/dataset/traffic.yaml says what the settings are.

    Raises:
        ValueError: a setting is out of range, or a file or folder is not what it must be; the sentence names it.
        FileNotFoundError: there is no such folder.
    """
    _check(length, lengths, pauses, test_share, sigma, gamma)
    place = _root(root)
    gateways, hostile = benign(place, device), attacks(place, attacker)
    records = [recorded(name, paths, 2 * length + 1) for name, paths in gateways.items()]
    ends = [divided_at(len(record), length, test_share) for record in records]
    bins = Bins.of([record[: end + 1] for record, end in zip(records, ends, strict=True)], lengths, pauses)
    quiet = [bins.symbols(record) for record in records]
    loud = {name: bins.symbols(recorded(name, paths, length + 1)) for name, paths in hostile.items()}
    learnt = [symbols[: end + 1] for symbols, end in zip(quiet, ends, strict=True)]  # the last one is only asked for
    tested = [symbols[end:] for symbols, end in zip(quiet, ends, strict=True)]
    known = sorted({symbol for part in learnt for symbol in part} - {UNKNOWN})
    vocabulary = Vocabulary((UNKNOWN, *known), SYMBOL)
    check_said(str(place), {"tokens": tokens}, {"tokens": len(vocabulary)})
    if tokens != len(vocabulary):  # classes follow from it
        raise ValueError(f"dataset.tokens={tokens} does not fit {place}, which has {len(vocabulary)}: set it to that")

    def cut(parts: Sequence[Sequence[str]], alarm: bool) -> Watched:
        return watched(*windows(parts, length, vocabulary.number), alarm, sigma, gamma)

    own = None if attacker is None else cut([loud.pop(attacker)], True)
    test = balanced(cut(tested, False), cut(list(loud.values()), True))
    holders = Holders(torch.arange(len(ends)).repeat_interleave(torch.tensor(ends) // length), tuple(gateways))
    log.info("dataset=traffic: %d gateways; MA counts %s, %d windows", len(ends), " and ".join(loud), len(test) // 2)
    facts = len(vocabulary), holders, None, vocabulary
    return Traffic("traffic", cut(learnt, False), test, (), (), *facts, own)


def _check(length: int, lengths: int, pauses: Sequence[float], test_share: float, sigma: float, gamma: float) -> None:
    rising = all(a < b for a, b in zip([0, *pauses], [*pauses, math.inf], strict=True))
    for key, value, fits, allowed in (
        ("length", length, length >= 1, "a whole number >= 1, packets in a window"),
        ("lengths", lengths, lengths >= 0, "a whole number >= 0 (0: lengths say nothing)"),
        ("pauses", list(pauses), rising, "ascending seconds > 0 (none: pauses say nothing)"),
        ("test_share", test_share, 0 < test_share < 1, "in (0, 1)"),
        ("sigma", sigma, 0 < sigma < 1, "in (0, 1), a probability"),
        ("gamma", gamma, 0 <= gamma < 1, "in [0, 1), a share of a window"),
    ):
        if not fits:  # nan, too
            raise ValueError(f"dataset.{key}={value} is out of range: must be {allowed}")


def _root(root: str | None) -> Path:
    if root is None:
        raise ValueError("dataset.root=null: dataset=traffic needs the folder of your captures")
    place = Path(root).expanduser()
    if not place.is_dir():
        raise FileNotFoundError(f"dataset.root={root}: there is no such folder: name the one that your captures are in")
    return place
