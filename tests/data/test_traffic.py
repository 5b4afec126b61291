"""Devices' traffic: from packets to symbols and windows, alarms by hand, and bad files. Synthetic traffic only."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ranges import probes
from torch import Tensor, nn

from flame.data.__main__ import main
from flame.data.check import checked
from flame.data.packets import COLUMNS, Packet
from flame.data.samples import Dataset, Samples
from flame.data.symbols import Bins, divided_at, kind, windows
from flame.data.synthetic import write
from flame.data.traffic import Traffic, traffic
from flame.data.watched import Watched, balanced, watched
from flame.engine.exams import Exams
from flame.round.breakdown import alarm_rates
from flame.round.evaluate import evaluate, total
from flame.run.config import identity

PLAIN: dict[str, Any] = {
    **{"device": None, "attacker": "synthetic_scan", "length": 10, "lengths": 8, "pauses": [0.001, 0.05]},
    **{"test_share": 0.2, "sigma": 0.01, "gamma": 0.5, "tokens": 28, "classes": 28},
}
SPOKEN = Packet(5.0, True, 60, 2, "ip.tcp", 50900, 23)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three device types behind two gateways each, and three attacks, of 101 packets."""
    root = tmp_path_factory.mktemp("synthetic")
    write(root, seed=0, gateways=2, packets=101)
    return root


@pytest.fixture(scope="module")
def loaded(place: Path) -> Traffic:
    return traffic(str(place), **PLAIN)


def test_symbols_by_hand() -> None:
    """Of lengths 60, 60, 90, 40 the two most frequent are 60 and, of two that are there once, the shorter."""
    packets: list[Packet] = [SPOKEN._replace(length=length) for length in (60, 60, 90, 40)]
    bins = Bins.of([packets, ["a table's"]], 2, [0.5, 2.0])
    assert bins.lengths == (40, 60)
    replies = [
        SPOKEN,
        SPOKEN._replace(time=5.4, outgoing=False, length=90, flags=18),
        Packet(7.4, False, 40, 0, "arp", None, None),
        SPOKEN._replace(time=7.9, local_port=1024),
    ]
    assert bins.symbols(replies) == [
        "out|dynamic|system|L2|F02|ip.tcp|P2",
        "in|dynamic|system|L0|F12|ip.tcp|P0",
        "in|none|none|L1|F00|arp|P2",
        "out|user|system|L2|F02|ip.tcp|P1",
    ]
    assert bins.symbols(["a", "b"]) == ["a", "b"]
    assert [kind(port) for port in (None, 0, 1023, 1024, 49151, 49152, 65535)] == [
        *("none", "system", "system", "user", "user", "dynamic", "dynamic")
    ]


def test_windows_by_hand() -> None:
    number = {"a": 1, "b": 2, "c": 3}
    x, y = windows([list("abcab"), list("bb!ab"), list("abc")], 2, number)
    assert x.tolist() == [[1, 2], [3, 1], [2, 2], [0, 1], [1, 2]] and x.dtype == torch.int32
    assert y.tolist() == [[2, 3], [1, 2], [2, 0], [1, 2], [2, 3]] and y.dtype == torch.int64
    assert divided_at(21, 2, 0.2) == 16  # ten windows, two of them tested
    assert divided_at(22, 2, 0.01) == 18 and divided_at(21, 2, 0.99) == 2  # one, and not all


class Sure(nn.Module):
    """Gives the token that it reads the chance that is its number in a list, and the rest of it to token 0."""

    def __init__(self, *chances: float) -> None:
        super().__init__()
        self.chances = nn.Parameter(torch.tensor(chances))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] -> [B, classes, T], for labels that are what is read."""
        p = self.chances[x]
        own = nn.functional.one_hot(x, len(self.chances)).movedim(-1, 1) * p.unsqueeze(1)
        own[:, 0] += 1 - p
        return own.clamp(min=1e-30).log()


def test_alarms_by_hand() -> None:
    """An anomaly is below 0.01, and not at it; an alarm needs more than half of a window."""
    x = torch.tensor([[1, 1, 1, 1], [2, 2, 1, 1], [2, 2, 2, 1], [3, 3, 3, 1], [2, 2, 2, 2]], dtype=torch.int32)
    model = Sure(1.0, 0.5, 0.0078125, 0.015625)  # exact in float32
    samples = Watched(x, x.long(), torch.tensor([False, False, True, False, False]), 0.015625, 0.5)
    assert samples.raised(model(x.long())).tolist() == [False, False, True, False, True]
    found = evaluate(model, samples, Tensor.long)
    assert samples.asked == 5 and (found.correct, found.count) == (4, 5)
    parts = [evaluate(model, samples[part], Tensor.long) for part in (slice(0, 2), slice(2, 5))]
    assert (total(parts).correct, total(parts).count) == (4, 5)
    (attacks,) = samples.apart().values()
    rates = alarm_rates({"clean": found, "attacks": evaluate(model, attacks, Tensor.long)})
    assert rates == {"eval/true_alarms": 1.0, "eval/false_alarms": 0.25}
    assert not samples[:2].apart() and not attacks.apart() and not alarm_rates({"clean": found})
    assert replace(samples, sigma=0.02).raised(model(x.long())).tolist() == [False, False, True, True, True]
    assert replace(samples, gamma=0.4).raised(model(x.long())).tolist() == [False, True, True, False, True]


def test_a_chance_at_the_threshold_is_no_anomaly() -> None:
    even = watched(torch.zeros(1, 3).int(), torch.zeros(1, 3).long(), False, 0.25, 0.5)
    assert not bool(even.raised(torch.zeros(1, 4, 3))) and bool(even.raised(torch.zeros(1, 5, 3)))


def test_both_kinds_count_alike() -> None:
    at = torch.arange(8).view(8, 1)
    both = balanced(watched(at, at, False, 0.1, 0.3), watched(at[:3], at[:3], True, 0.1, 0.3))
    assert both.x.flatten().tolist() == [0, 2, 5, 0, 1, 2] and both.alarm.tolist() == [False] * 3 + [True] * 3
    assert (both.sigma, both.gamma) == (0.1, 0.3)


def test_what_is_loaded(place: Path, loaded: Traffic) -> None:
    """Ten windows of each gateway, of which two are tested; ten of each of two attacks beside twelve benign ones."""
    assert checked(loaded, {"length": 10, "tokens": 28, "classes": 28}).digest() == loaded.digest()
    assert loaded.kind == "tokens" and loaded.train.x.shape == (48, 10) and loaded.test.x.shape == (24, 10)
    assert loaded.holders is not None and loaded.holders.of.bincount().tolist() == [8] * 6
    assert loaded.holders.names[:3] == tuple(
        f"synthetic_{name}" for name in ("camera/gateway_00", "camera/gateway_01", "hub/gateway_00")
    )
    assert isinstance(loaded.test, Watched) and loaded.test.alarm.tolist() == [False] * 12 + [True] * 12
    assert loaded.attacker is not None and len(loaded.attacker) == 10 and bool(loaded.attacker.alarm.all())
    assert not bool((loaded.train.x == 0).any()) and bool((loaded.attacker.x == 0).any())  # unknown
    assert loaded.vocabulary is not None
    text = loaded.vocabulary.decode(loaded.train.x[0])
    assert torch.equal(loaded.vocabulary.require(text, "attack.text").int(), loaded.train.x[0])
    one = traffic(str(place), **PLAIN | {"device": "synthetic_plug", "tokens": 9, "attacker": None})
    assert one.vocabulary is not None and len(one.vocabulary) == 9
    assert len(one.train) == 16 and one.attacker is None and len(one.test) == 8


def test_windows_go_on_where_training_ends(place: Path, loaded: Traffic) -> None:
    """The symbol that training asks for last is the first that the test reads; the attacks are in no training."""
    train, test = loaded.train[:8], loaded.test[:2]
    assert torch.equal(train.y[:-1, -1], train.x[1:, 0].long()) and int(train.y[-1, -1]) == int(test.x[0, 0])
    assert torch.equal(train.x[:, 1:].long(), train.y[:, :-1])


def test_the_digest_knows_what_alarms_are_made_of(loaded: Traffic) -> None:
    assert isinstance(loaded.test, Watched) and loaded.attacker is not None
    test, own = loaded.test, loaded.attacker
    others = [{"test": replace(test, **change)} for change in ({"sigma": 0.02}, {"gamma": 0.4}, {"alarm": ~test.alarm})]
    changed = [*others, {"attacker": own[:5]}, {"attacker": None}, {}]
    assert len({replace(loaded, **change).digest() for change in changed}) == 6
    assert replace(loaded).digest() == loaded.digest()
    assert loaded.narrowed(torch.arange(5)).attacker is own  # type: ignore[attr-defined]


def test_watched_windows_are_cut_and_shared_whole(loaded: Traffic) -> None:
    some = loaded.test[torch.tensor([3, 20])].mapped(Tensor.share_memory_)
    assert isinstance(some, Watched) and some.alarm.tolist() == [False, True] and some.alarm.is_shared()
    again = pickle.loads(pickle.dumps(some))
    assert isinstance(again, Watched) and (again.sigma, again.gamma) == (0.01, 0.5) and again.asked == 2


def test_a_table_of_symbols_is_taken_as_it_is(tmp_path: Path) -> None:
    for name, text in (
        ("lamp/a.csv", "xyxyxyxyx"),
        ("attack/b.csv", "zzzzz"),
        ("attack/mine.csv", "yyyyy"),
        ("lamp/c/1.csv", "xyxyx"),
        ("lamp/c/2.csv", "yxyx"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("symbol\n" + "\n".join(text) + "\n")
    found = traffic(str(tmp_path), **PLAIN | {"length": 2, "tokens": 3, "attacker": "mine"})
    assert found.vocabulary is not None and found.vocabulary.tokens == ("<unk>", "x", "y")
    assert found.train.x.tolist() == [[1, 2], [1, 2], [1, 2]] * 2 and found.test.x.tolist() == [
        [1, 2],
        [1, 2],
        [0, 0],
        [0, 0],
    ]
    assert found.holders is not None and found.holders.names == ("lamp/a", "lamp/c")
    assert found.attacker is not None and found.attacker.x.tolist() == [[2, 2], [2, 2]]  # and no part of the test


def test_the_command_says_what_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["synthetic_traffic", str(tmp_path / "new"), "--gateways", "1", "--packets", "5"])
    assert capsys.readouterr().out.startswith("synthetic traffic, of no device, in ")
    names = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.csv"))
    assert len(names) == 6 and all("synthetic" in name for name in names)
    with pytest.raises(SystemExit, match=r"new has something in it: name a folder that is empty"):
        main(["synthetic_traffic", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match=r"--gateways 0 is out of range: must be a whole number >= 1"):
        main(["synthetic_traffic", str(tmp_path / "none"), "--gateways", "0"])


RANGES = {"length": "whole >= 1", "lengths": "whole >= 0", "test_share": "(0, 1)", "sigma": "(0, 1)", "gamma": "[0, 1)"}


@pytest.mark.parametrize("key", RANGES)
def test_settings_at_the_bounds_of_their_ranges(key: str) -> None:
    inside, outside = probes(RANGES[key])
    for value in inside:
        with pytest.raises(FileNotFoundError, match=r"dataset\.root=/none: there is no such folder"):
            traffic("/none", **PLAIN | {key: value})
    for value in outside:
        with pytest.raises(ValueError, match=rf"dataset\.{key}=.* is out of range: must be"):
            traffic("/none", **PLAIN | {key: value})


@pytest.mark.parametrize("pauses", [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [float("nan")], [float("inf")]])
def test_pauses_ascend(pauses: list[float]) -> None:
    with pytest.raises(ValueError, match=r"dataset\.pauses=.* is out of range: must be ascending seconds > 0"):
        traffic("/none", **PLAIN | {"pauses": pauses})


def table(**changes: Any) -> str:
    """A line of packets as CSV, and another that differs."""
    line: dict[str, Any] = dict(zip(COLUMNS, (0.5, "out", 60, 2, "ip.tcp", 50900, 23), strict=True))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows([line, line | changes])
    return text.getvalue()


BAD = {  # file -> what it holds -> the sentence
    "empty": (
        "",
        r"gw\.csv lacks the columns time, .* \(it has nothing\): must have time, direction, .*, or symbol alone",
    ),
    "header": (",".join(COLUMNS), r"gw\.csv has no packet: must have some; delete it"),
    "columns": ("time,length\n1,2\n", r"lacks the columns direction, flags, .* \(it has 'time', 'length'\)"),
    "latin": ("symbol\n\xe9\n".encode("latin-1"), r"gw\.csv is no text in UTF-8 \(.*\): save it so"),
    "quote": ('symbol\n"a\n', r"gw\.csv is no CSV, line \d .*: write it again"),
    "short": (table() + "1,in\n", r"gw\.csv, line 4: length=None must be bytes, a whole number in"),
    "time": (table(time="nan"), r"gw\.csv, line 3: time='nan' must be seconds, a finite number; mend the line"),
    "way": (table(direction="up"), r"line 3: direction='up' must be in or out"),
    "length": (table(length=-1), r"line 3: length='-1' must be bytes, a whole number in \[0, 2147483647\]"),
    "flags": (table(flags=256), r"line 3: flags='256' must be TCP's flags, a whole number in \[0, 255\]"),
    "protocol": (table(protocol="i p"), r"line 3: protocol='i p' must be a name without blanks"),
    "port": (table(local_port=65536), r"line 3: local_port='65536' must be a whole number in \[0, 65535\], or empty"),
    "blank": ("symbol\na b\n", r"line 2: symbol='a b' must be printable text without blanks"),
    "few": (
        "symbol\n" + "a\n" * 20,
        r"gw\.csv: synthetic_lamp/gw has 20 packets: must have 21 or more, for windows of",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_in_a_sentence(case: str, place: Path, tmp_path: Path) -> None:
    content, sentence = BAD[case]
    (tmp_path / "attack").symlink_to(place / "attack")
    (tmp_path / "synthetic_lamp").mkdir()
    (tmp_path / "synthetic_lamp/gw.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=sentence):
        traffic(str(tmp_path), **PLAIN)


def test_bad_folders_are_refused_in_a_sentence(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def says(sentence: str, root: Path = tmp_path, **changes: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            traffic(str(root), **PLAIN | changes)

    says(r"dataset\.tokens=null must be said, .* has dataset\.tokens=28; say so", place, tokens=None)
    says(r"dataset\.tokens=27 does not fit .*synthetic0, which has 28: set it to that", place, tokens=27)
    says(r"dataset\.device=oven: .* has no such folder: must be one of synthetic_camera, ", place, device="oven")
    says(
        r"dataset\.attacker=mirai: .*attack has no such attack: must be synthetic_ack_flood or", place, attacker="mirai"
    )
    says(r"dataset\.root=.* has no device type: must have a folder for each")
    (tmp_path / "synthetic_camera").mkdir()
    says(r"synthetic_camera has no gateway: must have a file for each \(\.pcap, \.pcapng, \.cap, \.csv\)")
    (tmp_path / "synthetic_camera/notes.txt").write_text("")
    (tmp_path / "synthetic_camera/gw").mkdir()
    says(r"synthetic_camera/gw has no capture \(\.pcap, .*\): put some there, or delete it")
    (tmp_path / "synthetic_camera/gw/1.csv").write_text("symbol\n" + "a\nb\n" * 20)
    says(r"attack has no attack, and so there is no MA, half of which .*: put a file \(.*\) of another", attacker=None)
    assert "1 files in" in caplog.text and "notes.txt" in caplog.text
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack/scan.csv").write_text("symbol\n" + "a\n" * 20)
    says(r"attack has no attack beside dataset\.attacker=scan, and so there is no MA", attacker="scan")
    (tmp_path / "synthetic_camera/gw.csv").write_text(table())
    says(r"synthetic_camera has gw twice, gw\.csv is one of them: give each a name of its own", attacker=None)
    (tmp_path / "synthetic_camera/gw.csv").rename(tmp_path / "synthetic_camera/gw/2.csv")
    says(r"synthetic_camera/gw has tables of packets and of symbols: must have one kind", attacker=None)


def test_answers_are_not_asked_for_where_alarms_are(loaded: Traffic) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.per_class=true counts answers by class, and dataset=traffic is"):
        Exams.of(True, 0, None, loaded, loaded.train, None, None)  # type: ignore[arg-type]


def test_traffic_elsewhere_is_other_data(tiny: Callable) -> None:
    here, there = (tiny("dataset=traffic", "model=gru", f"dataset.root={root}") for root in ("/a", "/b"))
    assert identity(here) != identity(there)


def test_other_data_have_no_parts(loaded: Traffic) -> None:
    plain: Dataset = replace(loaded, test=Samples(loaded.test.x, loaded.test.y))
    assert plain.test.apart() == {} and loaded.test.apart().keys() == {"attacks"}
