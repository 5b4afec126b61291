"""Recorded rounds replayed: what a defense answers, the tables of `--compare`, and sentences for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Train
from oracles.recorded import Fields, foreign, written
from oracles.rounds import random_round
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from warm import Warm

from flame.replay import comparison, jaccard, main, replay
from flame.run.recording import read_round

CASES = Path(__file__).parent / "cases"  # recorded rounds with known answers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "round.safetensors")


def test_replay_answers_and_writes_the_new_model(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    answer = replay([f"updates={file}", "defense=flame_guncuke", "defense.noise.factor=0", f"out={out}"])
    assert list(answer) == ["accepted", "clip_bound", "noise_std", "weights", "xray"]
    assert answer["noise_std"] == 0
    assert [i for i, w in enumerate(answer["weights"]) if w > 0] == answer["accepted"]  # type: ignore[arg-type]
    state, start = load_file(out), random_round(0, 10).global_state
    assert {k: (v.dtype, v.shape) for k, v in state.items()} == {k: (v.dtype, v.shape) for k, v in start.items()}
    assert state["bn1.num_batches_tracked"] > start["bn1.num_batches_tracked"]


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


@pytest.mark.parametrize("file", ["counter_int", "counter_float"])
@pytest.mark.parametrize("defense", ["flame_all_state", "flame_zhmzm"])
def test_a_counter_is_a_counter_by_its_name(file: str, defense: str) -> None:
    """The same round twice; in one file `num_batches_tracked` went through code that averages a whole state_dict."""
    answer = replay([f"updates={CASES / file}.safetensors", f"defense={defense}"])
    assert answer["accepted"] == [2, 4, 5, 6, 7, 9]


def test_counters_may_differ_in_dtype(tmp_path: Path) -> None:
    """A global model that was averaged in floats, clients that count in integers; and one that counts to nowhere."""

    def average(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors["global/bn1.num_batches_tracked"] = tensors["global/bn1.num_batches_tracked"].double()
        tensors["clients/bn2.num_batches_tracked"] = tensors["clients/bn2.num_batches_tracked"].float()
        tensors["clients/bn2.num_batches_tracked"][:3] = torch.tensor([torch.nan, -torch.inf, 1e30])

    updates = read_round(foreign(tmp_path / "x", average)).updates
    assert [e.key for e in updates.layout.counters] == ["bn1.num_batches_tracked", "bn2.num_batches_tracked"]
    assert updates.guarded[0].tolist() == [False] * 3 + [True] * 7


def test_float64_models_are_subtracted_in_float64() -> None:
    """Updates of 4e-8 beside weights of 1, which float32 rounds to 6e-8."""
    path = CASES / "float64_small_updates.safetensors"
    answer = replay([f"updates={path}", "defense=flame_weights_only"])
    assert answer["accepted"] == [0, 4, 5, 6, 7, 8]
    assert answer["clip_bound"] == pytest.approx(3.853540757e-08, rel=1e-8)
    rows, file = read_round(path).updates.rows, load_file(path)
    wide = torch.cat([file[f"clients/{k}"] - file[f"global/{k}"] for k in ("body.weight", "head.weight")], 1)
    torch.testing.assert_close(rows, wide.float(), rtol=0, atol=0)


def test_an_unusable_client_is_left_to_the_guard(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor], fields: Fields) -> None:
        tensors["clients/fc.weight"][4, 0, 0] = torch.nan

    answer = replay([f"updates={foreign(tmp_path / 'x', spoil)}", "defense=flame_zhmzm"])
    assert 4 not in answer["accepted"]  # type: ignore[operator]
    assert len(answer["weights"]) == 10  # type: ignore[arg-type]


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
        (["defense=fedavg"], r"FILE \(or updates=FILE\) and defense=NAME"),
        (["updates=nowhere", "defense=fedavg"], "no such file"),
        (["updates=FILE", "defence=fedavg"], "did you mean defense"),
        (["updates=FILE", "defense=none_such"], "none_such"),
        (["updates=FILE", "defense=fedavg", "defense.speed=1"], "speed"),
        (["updates=FILE", "defense=flame_zhmzm", "defense.clip.over=half"], "all, accepted"),
        (["updates=FILE", "defense=fltrust"], "defense=fltrust needs the server's own data.*: try it in a run"),
        (["updates=FILE", "defense=deepsight"], "defense=deepsight tries models on samples.*: try it in a run"),
        (["updates=FILE", "defense=flshield"], "defense=flshield tries models on samples"),
        (["updates=FILE", "defense=nnm", "defense@defense.rule=flshield"], "defense=nnm tries models"),
    ],
)
def test_wrong_settings_end_in_a_sentence(settings: list[str], words: str, file: Path) -> None:
    with pytest.raises(SystemExit, match=words):
        main([s.replace("FILE", str(file)) for s in settings])


def test_the_command_prints_one_json_object_and_nothing_else(file: Path, command: Warm) -> None:
    done = command(["-m", "flame.replay", f"updates={file}", "defense=flame_zhmzm"])
    assert done.returncode == 0, done.stderr
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


def test_a_recorded_round_replays_to_the_verdict_of_the_run(tmp_path: Path, train: Train) -> None:
    """Two rounds of a run: as many accepted, the same bound, and to the bit the next round's model, noise and all."""
    settings = [f"hydra.run.dir={tmp_path}", "rounds=3", "record.rounds=[0]", "record.every=1"]
    done = train("experiment=smoke", "tracker=files", "engine=sequential", *settings)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "recorded").iterdir())
    assert [f.name for f in files] == [f"round_00000{i}.safetensors" for i in range(3)]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for path, following, line in zip(files, files[1:], metrics, strict=False):
        answer = replay([f"updates={path}", "defense=flame_weights_only", f"out={tmp_path / 'new'}"])
        new, started = load_file(tmp_path / "new"), load_file(following)
        assert all(torch.equal(new[key], started[f"global/{key}"]) for key in new)
        assert answer["clip_bound"] == pytest.approx(line["flame/clip_bound"], rel=1e-6)
        assert len(answer["accepted"]) == line["filter/accepted"]  # type: ignore[arg-type]
