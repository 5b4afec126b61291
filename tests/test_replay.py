"""Recorded rounds, written by a run or by other code: read back, replayed, refused in words when they do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.recorded import recorded_round
from oracles.rounds import random_round
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flame.recording import packed, read_round, state_order
from flame.replay import comparison, jaccard, main, replay
from models.cnn import CNN
from models.resnet8 import ResNet8
from models.resnet18 import ResNet18

ROOT = Path(__file__).parent.parent
Fields = dict[str, object]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A round of ten, as the project writes it."""
    path = tmp_path / "round.safetensors"
    updates = recorded_round(0, 10).updates
    path.write_bytes(packed(updates, torch.zeros(10, dtype=torch.bool), round_=12, seed=3))
    return path


def foreign(path: Path, edit: Callable[[dict[str, Tensor], Fields], None] | None = None) -> Path:
    """The same round as other code would write it from the description: no `keys`."""
    plain = random_round(0, 10)
    tensors = {f"global/{k}": v for k, v in plain.global_state.items()}
    tensors |= {f"clients/{k}": torch.stack([w[k] for w in plain.client_states]) for k in plain.global_state}
    fields: Fields = {"trainable": plain.trainable, "samples": plain.samples, "client_ids": list(range(40, 50))}
    fields |= {"compromised": [i in plain.malicious for i in range(10)], "round": 12, "seed": 3}
    if edit:
        edit(tensors, fields)
    save_file(tensors, path, metadata={k: json.dumps(v) for k, v in fields.items()})
    return path


def test_a_written_round_reads_back_bit_for_bit(file: Path) -> None:
    before, after = recorded_round(0, 10), read_round(file)
    assert after.updates.layout == before.updates.layout
    assert (after.state.round, after.seed) == (12, 3)
    for name in ("base", "base_counters", "rows", "counters", "samples", "ids", "models"):
        assert torch.equal(getattr(after.updates, name), getattr(before.updates, name)), name


def test_a_foreign_file_is_the_same_round(file: Path, tmp_path: Path) -> None:
    mine, theirs = read_round(file), read_round(foreign(tmp_path / "foreign.safetensors"))
    assert theirs.updates.layout == mine.updates.layout
    assert torch.equal(theirs.updates.models, mine.updates.models)
    assert theirs.updates.ids.tolist() == list(range(40, 50))


MODELS = (ResNet8(1, 10, "batch"), ResNet18(3, 10, [4, 4, 4, 4], "batch"), CNN(1, 10, 8), nn.GRU(4, 5))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_order_is_restored_from_the_names(model: nn.Module) -> None:
    keys = list(model.state_dict())
    assert state_order(sorted(keys), [name for name, _ in model.named_parameters()]) == keys


def test_replay_answers_and_writes_the_new_model(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    answer = replay([f"updates={file}", "defense=flame_guncuke", "defense.noise.factor=0", f"out={out}"])
    assert list(answer) == ["accepted", "clip_bound", "noise_std", "weights", "xray"]
    assert answer["noise_std"] == 0
    assert [i for i, w in enumerate(answer["weights"]) if w > 0] == answer["accepted"]  # type: ignore[arg-type]
    state, start = load_file(out), random_round(0, 10).global_state
    assert {k: (v.dtype, v.shape) for k, v in state.items()} == {k: (v.dtype, v.shape) for k, v in start.items()}
    assert state["bn1.num_batches_tracked"] > start["bn1.num_batches_tracked"]


def test_replay_has_the_noise_of_the_run(file: Path, tmp_path: Path) -> None:
    """The stream is that of the recorded seed and round, so a replay repeats itself."""
    for name in ("a", "b"):
        replay([f"updates={file}", "defense=flame_weights_only", f"out={tmp_path / name}"])
    a, b = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_recurrent_net_in_half_precision_keeps_its_dtypes(tmp_path: Path) -> None:
    """An architecture the project does not know: two layers without BatchNorm, the last without a bias, and a mask."""
    net = nn.ModuleDict({"rnn": nn.GRU(4, 5), "out": nn.Linear(5, 2, bias=False)}).half()
    net.register_buffer("mask", torch.tensor([True, False, True]))
    start = net.state_dict()
    stream = torch.Generator().manual_seed(0)
    tensors = {f"global/{k}": v for k, v in start.items()}
    tensors |= {f"clients/{k}": v + 0.1 * torch.randn(6, *v.shape, generator=stream).half() for k, v in start.items()}
    tensors["clients/mask"] = start["mask"].repeat(6, 1)
    metadata = {"trainable": json.dumps([name for name, _ in net.named_parameters()]), "samples": "[1, 1, 1, 1, 1, 1]"}
    save_file(tensors, tmp_path / "in", metadata=metadata)
    record = read_round(tmp_path / "in")
    assert [e.key for e in record.updates.layout.entries if e.block == "head"] == ["out.weight"]
    replay([f"updates={tmp_path / 'in'}", "defense=flame_3dfed", f"out={tmp_path / 'out'}"])
    after = load_file(tmp_path / "out")
    assert after.pop("mask").tolist() == [True, False, True]
    assert {v.dtype for v in after.values()} == {torch.float16}


def test_an_unusable_client_is_left_to_the_guard(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors["clients/fc.weight"][4, 0, 0] = torch.nan

    answer = replay([f"updates={foreign(tmp_path / 'x', spoil)}", "defense=flame_zhmzm"])
    assert 4 not in answer["accepted"]  # type: ignore[operator]
    assert len(answer["weights"]) == 10  # type: ignore[arg-type]


def drop(name: str) -> Callable[[dict[str, Tensor], Fields], None]:
    def edit(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors.pop(name, None)
        fields.pop(name, None)

    return edit


def put(name: str, value: object) -> Callable[[dict[str, Tensor], Fields], None]:
    def edit(tensors: dict[str, Tensor], fields: Fields) -> None:
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            fields[name] = value

    return edit


def both(name: str, value: Tensor) -> Callable[[dict[str, Tensor], Fields], None]:
    """The tensor of the global model and of all ten clients."""

    def edit(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors |= {f"global/{name}": value, f"clients/{name}": torch.stack([value] * 10)}

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop("clients/fc.bias"), r"the same keys.*missing: \['clients/fc.bias'\]"),
        (drop("global/fc.bias"), r"the same keys.*missing: \['global/fc.bias'\]"),
        (put("clients/fc.bias", torch.zeros(9, 10)), r"same n >= 1 clients.*9: 'clients/fc.bias'"),
        (put("clients/fc.bias", torch.zeros(10, 11)), r"clients/fc.bias is \(10, 11\), must be \(10, 10\)"),
        (put("clients/fc.bias", torch.zeros(10, 10, dtype=torch.float64)), "float64.*float32"),
        (put("global/fc.bias", torch.full((10,), torch.inf)), "global/fc.bias is not finite"),
        (both("mask", torch.full((3,), 1e300, dtype=torch.float64)), "global/mask is not finite in float32"),
        (both("mask", torch.ones(3, dtype=torch.complex64)), "global/mask is torch.complex64: must be"),
        (both("mask", torch.ones(3).to(torch.float8_e4m3fn)), "global/mask is torch.float8_e4m3fn: must be"),
        (drop("trainable"), "metadata trainable is missing: it must be a JSON list"),
        (put("trainable", []), "trainable is empty"),
        (put("trainable", ["fc.weight", "nowhere"]), "nowhere"),
        (put("trainable", ["bn1.num_batches_tracked"]), "not float tensors"),
        (put("samples", [3]), r"samples=\[3\] must be a JSON list of 10 int"),
        (put("samples", [0] * 10), "at least one training image"),
        (put("samples", [10**30] * 10), "64 bits"),
        (put("client_ids", ["a"] * 10), r"client_ids=\['a'.* must be"),
        (put("round", "twelve"), "round='twelve'"),
        (put("keys", ["fc.weight"]), "keys differs"),
    ],
)
def test_what_does_not_fit_is_named(
    edit: Callable[[dict[str, Tensor], Fields], None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        read_round(foreign(tmp_path / "x", edit))


@pytest.mark.parametrize("name", ["trainable", "samples", "round"])
def test_metadata_that_is_no_json_is_named(name: str, tmp_path: Path) -> None:
    path = foreign(tmp_path / "x")
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(path), path, metadata=metadata | {name: "fc.weight,fc.bias"})
    with pytest.raises(ValueError, match=f"metadata {name}='fc.weight,fc.bias' is not JSON .*json.dumps"):
        read_round(path)


def header(size: int, text: bytes) -> bytes:
    return size.to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a safetensors file at all",
        header(2**60, b"{}"),
        header(80, b'{"global/w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'[:80]),
        header(85, b'{"global/w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
    ],
    ids=["empty", "text", "endless header", "torn header", "terabytes"],
)
def test_a_hostile_file_ends_in_a_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="not a whole safetensors file"):
        main([f"updates={path}", "defense=fedavg"])


def test_a_torn_copy_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="not a whole"):
        main([f"updates={tmp_path / 'torn'}", "defense=fedavg"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["defense=fedavg"], "updates=FILE and defense=NAME"),
        (["updates=nowhere", "defense=fedavg"], "no such file"),
        (["updates=FILE", "defence=fedavg"], "did you mean defense"),
        (["updates=FILE", "defense=none_such"], "none_such"),
        (["updates=FILE", "defense=fedavg", "defense.speed=1"], "speed"),
        (["updates=FILE", "defense=flame_zhmzm", "defense.clip.over=half"], "all, accepted"),
        (["updates=FILE", "defense=fltrust"], "defense=fltrust needs the server's own data.*: try it in a run"),
        (["updates=FILE", "defense=deepsight"], "defense=deepsight tries models on images.*: try it in a run"),
        (["updates=FILE", "defense=flshield"], "defense=flshield tries models on images"),
        (["updates=FILE", "defense=nnm", "defense@defense.rule=flshield"], "defense=nnm tries models"),
    ],
)
def test_wrong_settings_end_in_a_sentence(settings: list[str], words: str, file: Path) -> None:
    with pytest.raises(SystemExit, match=words):
        main([s.replace("FILE", str(file)) for s in settings])


def test_the_command_prints_one_json_object_and_nothing_else(file: Path) -> None:
    command = [sys.executable, "-m", "flame.replay", f"updates={file}", "defense=flame_zhmzm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"accepted", "clip_bound", "noise_std", "weights", "xray"}


def test_compare_tables_every_filter(file: Path) -> None:
    table = comparison([file, file], ["flame_weights_only", "flame_3dfed", "fedavg"])
    assert table.count("10 clients") == 2
    assert "everyone usable accepted in every round by: fedavg" in table
    assert "Jaccard index of accepted sets, mean of 2 round(s)" in table


def test_a_client_whom_the_guard_refuses_makes_no_filter_of_an_average(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors["clients/fc.weight"][4, 0, 0] = torch.nan

    table = comparison([foreign(tmp_path / "x", spoil)], ["flame_weights_only", "fedavg"])
    assert "x: 10 clients, 9 usable; accepted" in table
    assert "everyone usable accepted in every round by: fedavg" in table


def test_compare_refuses_a_defense_that_is_not_there(file: Path) -> None:
    with pytest.raises(SystemExit, match=r"--defenses=flame_weight_only is unknown: .*flame_weights_only"):
        main(["--compare", str(file), "--defenses", "fedavg,flame_weight_only"])


def test_jaccard_by_hand() -> None:
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    assert jaccard(frozenset(), frozenset()) == 1


def test_a_recorded_round_replays_to_the_verdict_of_the_run(tmp_path: Path) -> None:
    """Rounds 1 and 2 of a tiny run: the replay accepts whom acceptance.csv says, with the bound of metrics.jsonl."""
    command = [sys.executable, "train.py", "experiment=smoke", "tracker=files", "engine=sequential"]
    settings = [f"hydra.run.dir={tmp_path}", "rounds=2", "record.rounds=[0]", "record.every=2"]
    subprocess.run([*command, *settings], cwd=ROOT, check=True, capture_output=True)
    files = sorted((tmp_path / "recorded").iterdir())
    assert [f.name for f in files] == ["round_000000.safetensors", "round_000001.safetensors"]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for path, line in zip(files, metrics, strict=True):
        answer = replay([f"updates={path}", "defense=flame_weights_only"])
        assert answer["clip_bound"] == pytest.approx(line["flame/clip_bound"], rel=1e-6)
        assert len(answer["accepted"]) == line["filter/accepted"]  # type: ignore[arg-type]
