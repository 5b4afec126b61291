"""Triggers: every pixel by hand, parts that make up the whole, and errors that say where a trigger would fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.blended import Blend
from attacks.triggers import Bars, Part, Pattern, PixelList, PixelTrigger, Square
from flame.round.seeding import generator

GREY = torch.full((2, 3, 5, 6), 7, dtype=torch.uint8)  # N C H W


def drawn(trigger: PixelTrigger, height: int = 5, width: int = 6, value: int = 200) -> list[str]:
    """The stamped pixels of a grey image as text; fails unless all images and channels are alike."""
    images = torch.full((2, 3, height, width), 7, dtype=torch.uint8)
    stamped = trigger.stamp(images)
    assert bool((images == 7).all()) and stamped.dtype == torch.uint8
    assert bool((stamped == stamped[:1, :1]).all())
    assert set(stamped.unique().tolist()) <= {7, value}
    return ["".join("#" if v == value else "." for v in line) for line in stamped[0, 0].tolist()]


def test_square() -> None:
    assert drawn(Square(size=2, row=1, column=3, value=200)) == ["......", "...##.", "...##.", "......", "......"]
    assert drawn(Square(size=2, row=-2, column=-3, value=200)) == ["......", "......", "......", "...##.", "...##."]


def test_bars() -> None:
    trigger = Bars(size=2, gap=1, row=1, column=1, value=200)
    assert drawn(trigger) == ["......", ".##.##", "......", ".##.##", "......"]


def test_the_papers_bars_on_mnist() -> None:
    """Size 4, gap 2, corner: columns 0-3 and 6-9 of rows 0 and 3, as the authors' configuration lists them."""
    rows, columns, _ = Bars(size=4, gap=2, row=0, column=0, value=255).pixels(28, 28)
    listed = [(r, c) for r in (0, 3) for start in (0, 6) for c in range(start, start + 4)]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == listed


def test_pattern() -> None:
    cross = Pattern(picture=["#.#", ".#.", "#"], row=0, column=-3, value=200)
    assert drawn(cross) == ["...#.#", "....#.", "...#..", "......", "......"]


def test_pixel_list_sets_each_pixel_to_its_own_level() -> None:
    stamped = PixelList([[0, 0, 255], [-1, -1, 9], [2, 4, 0]]).stamp(GREY)
    assert stamped[1, 2, 0, 0] == 255 and stamped[1, 2, 4, 5] == 9 and stamped[1, 2, 2, 4] == 0
    assert int((stamped != 7).sum()) == 3 * 2 * 3


def test_blend() -> None:
    """alpha * k + (1 - alpha) * x for every pixel, rounded; the same pattern whatever the number of images."""
    images = torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8, generator=generator(0, "test"))
    trigger = Blend(opacity=0.25, seed=1)
    pattern = trigger.pattern(3, 5, 6).double()
    exact = 0.25 * pattern + 0.75 * images.double()
    stamped = trigger.stamp(images)
    assert stamped.dtype == torch.uint8
    assert float((stamped.double() - exact).abs().max()) <= 0.5 + 1e-4
    assert torch.equal(stamped[:1], trigger.stamp(images[:1]))
    assert not torch.equal(pattern, Blend(opacity=0.25, seed=2).pattern(3, 5, 6).double())
    assert torch.equal(Blend(opacity=1, seed=1).stamp(images)[0].double(), pattern)


@given(size=st.integers(1, 9), parts=st.integers(1, 9))
def test_parts_are_disjoint_and_together_the_whole(size: int, parts: int) -> None:
    whole = PixelList([[i, i, 10 + i] for i in range(size)])
    if parts > size:
        with pytest.raises(ValueError, match=rf"attack.parts={parts} .* only {size} pixels"):
            Part(whole, 0, parts).pixels(9, 9)
        return
    cut = [Part(whole, part, parts).pixels(9, 9) for part in range(parts)]
    assert all(
        torch.equal(torch.cat(pieces), all_)
        for pieces, all_ in zip(zip(*cut, strict=True), whole.pixels(9, 9), strict=True)
    )
    sizes = [len(rows) for rows, _, _ in cut]
    assert max(sizes) - min(sizes) <= 1


def test_four_parts_of_the_bars_are_the_bars() -> None:
    bars = Bars(size=2, gap=1, row=0, column=0, value=200)
    blank = "......"
    assert drawn(Part(bars, 0, 4)) == ["##....", blank, blank, blank, blank]
    assert drawn(Part(bars, 1, 4)) == ["...##.", blank, blank, blank, blank]
    assert drawn(Part(bars, 2, 4)) == [blank, blank, "##....", blank, blank]
    assert drawn(Part(bars, 3, 4)) == [blank, blank, "...##.", blank, blank]


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (Square(2, 4, 0, 1), r"attack.trigger.row=4: 2 pixels .* fit into 5; must be in \[0, 3\] or \[-5, -2\]"),
        (Square(2, -1, 0, 1), r"attack.trigger.row=-1: 2 pixels"),
        (Square(2, 4, 0, 1), r"attack.trigger.row=4: .* unless attack.trigger.size=2 is made smaller"),
        (Square(6, 0, 0, 1), r"attack.trigger.size=6: 6 pixels do not fit into 5; make it smaller"),
        (Bars(3, 1, 0, 0, 1), r"attack.trigger.size=3, attack.trigger.gap=1: 7 pixels .* into 6; make it smaller"),
        (Bars(1, 4, 0, 0, 1), r"attack.trigger.gap=4: 6 pixels .* into 5; make it smaller"),
        (Pattern(["####"], 0, 3, 1), r"attack.trigger.column=3: 4 pixels"),
        (Pattern(["#" * 7], 0, 3, 1), r"attack.trigger.picture: 7 pixels"),
        (PixelList([[0, 6, 1]]), r"attack.trigger.points=6: 1 pixels"),
    ],
)
def test_a_trigger_that_does_not_fit_the_image(trigger: PixelTrigger, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trigger.stamp(GREY)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Square, (0, 0, 0, 1), "attack.trigger.size=0 is out of range"),
        (Square, (1, 0, 0, 256), r"grey level 256 is out of range: must be in \[0, 255\]"),
        (Bars, (1, -1, 0, 0, 1), "attack.trigger.gap=-1 is out of range"),
        (Pattern, (["..."], 0, 0, 1), "attack.trigger.picture"),
        (Pattern, (["#x"], 0, 0, 1), "attack.trigger.picture"),
        (PixelList, ([],), "attack.trigger.points"),
        (PixelList, ([[1, 2]],), "attack.trigger.points"),
        (PixelList, ([5],), "attack.trigger.points"),
        (PixelList, ([["a", 2, 3]],), "attack.trigger.points"),
        (PixelList, ([[1, 2, -1]],), "grey level -1"),
        (Blend, (0.0, 0), r"attack.trigger.opacity=0.0 is out of range: must be in \(0, 1\]"),
    ],
)
def test_errors(make: Any, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(*arguments)
