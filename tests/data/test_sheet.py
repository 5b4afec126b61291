"""`python -m flame.data check`: facts in words, and a contact sheet whose pixels are the images' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flame.data import __main__ as command_of_data
from flame.data.samples import UNASKED, Dataset, Holders, Samples
from flame.data.sheet import ACROSS, PAPER, _mosaic, describe, draw_sheet, specimens
from flame.data.vocabulary import Vocabulary


def images(labels: list[int], channels: int = 1) -> Samples:
    """Each of one level: ten times its number."""
    y = torch.tensor(labels)
    levels = (10 * torch.arange(len(y), dtype=torch.uint8)).view(-1, 1, 1, 1)
    return Samples(levels.expand(-1, channels, 4, 5).contiguous(), y)


def made(classes: int = 3, labels: tuple[int, ...] = (0, 1, 0, 0)) -> Dataset:
    holders = Holders(torch.tensor([0, 0, 0, 1]), ("an", "bo", "cy")) if len(labels) == 4 else None
    return Dataset("mine", images([*labels]), images([0]), (0.1,), (0.2,), classes, holders)


def test_facts_by_hand() -> None:
    said = describe(made()).splitlines()
    assert said[0] == "train  4 images of 4 x 5 pixels, grey, levels from 0 to 30"
    assert said[1] == "test   1 images of 4 x 5 pixels, grey, levels from 0 to 0"
    assert said[2] == f"mean   declared 0.1000, of the training images {15 / 255:.4f}"
    assert said[3] == f"std    declared 0.2000, of the training images {np.std([0, 10, 20, 30]) / 255:.4f}"
    assert said[4] == "held   by 3; training images of each, min / median / max: 0 / 1 / 3"
    assert [line.split() for line in said[6:10]] == [
        ["class", "train", "test"],
        *(["0", "3", "1"], ["1", "1", "0"], ["2", "0", "0"]),
    ]
    assert said[-1] == "3 classes; training images of one: from 0 to 3"


def test_many_classes_are_cut_short() -> None:
    said = describe(made(62)).splitlines()
    assert said[-2:] == ["... and 42 more classes", "62 classes; training images of one: from 0 to 3"]
    assert len(said) == 4 + 1 + 1 + 1 + 20 + 2


def test_the_mosaic_has_the_pixels() -> None:
    rows = [torch.full((2, 1, 4, 5), 7, dtype=torch.uint8), torch.full((ACROSS, 1, 4, 5), 9, dtype=torch.uint8)]
    grid = _mosaic(rows)  # a gap of one pixel
    assert grid.shape == (2 * 5, ACROSS * 6, 3)
    assert grid[0, 0].tolist() == [7] * 3 and grid[3, 10].tolist() == [7] * 3 and grid[5, 35 - 1].tolist() == [9] * 3
    for row, column in ((4, 0), (0, 5), (0, 12), (9, 35)):  # below, right of, where there is no third one, the corner
        assert tuple(grid[row, column].tolist()) == PAPER
    assert int((grid == torch.tensor(PAPER)).all(2).sum()) == grid.shape[0] * grid.shape[1] - 20 * (2 + ACROSS)
    colours = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert _mosaic([colours])[0, 0].tolist() == [0, 1, 2]


def test_the_sheet_shows_the_trigger(tmp_path: Path) -> None:
    """On its right half alone, in the level that it has."""

    def stamp(x: torch.Tensor) -> torch.Tensor:
        stamped = x.clone()
        stamped[..., :2, :2] = 201
        return stamped

    draw_sheet(made(), stamp, "attack=mine", 2, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    middle = sheet.shape[1] // 2
    left, right = (int((half == 201).all(2).sum()) for half in (sheet[:, :middle], sheet[:, middle:]))
    assert left < 20 < 4 * 500 < right  # some edge of a letter may have that grey; four images carry the trigger
    assert (sheet == PAPER).all(2).mean() > 0.05


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["dataset=digits", "clients=20", "partition=iid", "attack.trigger.row=-5", f"--sheet={tmp_path}/sheet.png"]
    command_of_data.main(["check", *words])
    said = capsys.readouterr().out
    assert "train  1,442 images of 8 x 8 pixels, grey, levels from 0 to 255" in said
    assert "\n20 clients; images per client min / median / max 72 / 72 / 73;" in said
    assert Image.open(tmp_path / "sheet.png").size[0] > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=arrays"], "dataset.path=null: dataset=arrays needs"),
        (["dataset=digits", "partition=iid", "clients=2000"], "clients=2000"),
        (["dataset=digit"], "dataset=digit"),
        (["dataset=digits", "--sheet=/nowhere/sheet.png"], "/nowhere/sheet.png"),
        (["dataset=digits", "attack.target_class=10"], "attack.target_class=10"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command_of_data.check(words)


def test_the_sheet_is_a_png(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_of_data.check(["dataset=digits", "--sheet=sheet.pdf"])
    assert "--sheet sheet.pdf: the name must end in .png" in capsys.readouterr().err


def test_facts_of_texts_and_rows_by_hand() -> None:
    names = Vocabulary(("<unk>", "to", "be"), "word")
    texts = Samples(torch.tensor([[1, 2, 1], [1, 1, 2]]), torch.tensor([[UNASKED, 1, 1], [1, 1, 2]]))
    dataset = Dataset(
        "mine", texts, texts[:1], (), (), 3, Holders(torch.tensor([0, 1]), ("an", "bo")), vocabulary=names
    )
    assert describe(dataset).splitlines() == [
        "train  2 texts of 3 tokens, 5 labels asked for",
        "test   1 texts of 3 tokens, 2 labels asked for",
        "tokens 3 in the vocabulary (words), 2 in the training texts; the most: 'to', 'be', '<unk>'",
        "held   by 2; training samples of each, min / median / max: 1 / 1 / 1",
    ]
    said = specimens(dataset, lambda x: torch.cat([x[:, :1], torch.full_like(x[:, 1:], 2)], 1), "attack=mine")
    assert said.splitlines() == [
        "  to be to",
        "> to be [be]",
        "  to to be",
        "> to [be] be",
        "> with the trigger of attack=mine",
    ]
    rows = Samples(torch.tensor([[1.0, -2.0], [3.0, -2.0]]), torch.tensor([0, 1]))
    said = describe(Dataset("mine", rows, rows, (2.0, -2.0), (1.0, 1.0), 2)).splitlines()
    assert said[0] == "train  2 rows of 2 features, from -2 to 3"
    assert said[2:4] == [
        "mean   declared 2.0000, -2.0000, of the training samples 2.0000, -2.0000",
        "std    declared 1.0000, 1.0000, of the training samples 1.0000, 0.0000",
    ]
    assert said[-1] == "2 classes; training samples of one: from 1 to 1"
