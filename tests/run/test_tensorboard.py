"""The view for TensorBoard, read back with TensorBoard's own reader; without the package the remedy is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_wandb import described

from flame.federation import Round
from flame.run.trackers.tensorboard import FOLDER, TensorBoard


def test_an_interrupted_run_is_whole(tmp_path: Path, history: list[Round]) -> None:
    """Stopped after two rounds, resumed from a checkpoint after the first: each round counts once."""
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    info = described(tmp_path / "run")
    for first, last in ((0, 2), (1, 3)):
        view = TensorBoard()
        view.start(info, first)
        for record in history[first:last]:
            view.log(record)
        if last == 3:
            view.finish({"metrics": {"eval/ma": 0.75, "eval/ba": 0.25}, "rounds": 3})
        view.close(0)
    events = EventAccumulator(str(info.folder / FOLDER))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("eval/ma")] == [
        (record.number, pytest.approx(record.metrics["eval/ma"])) for record in history
    ]
    assert [point.value for point in events.Scalars("final/ma_minus_ba")] == [0.5]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.run.trackers.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^tracker=tensorboard needs .* pip install 'tensorboard>=2.15'$"):
        TensorBoard()
