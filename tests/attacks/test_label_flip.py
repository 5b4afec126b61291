"""Label flipping: from one class to another, and of all labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attackers import images

from attacks.label_flip import LabelFlip
from flame.data.samples import UNASKED, Samples
from flame.round.seeding import generator


def test_label_flip_from_source_to_target() -> None:
    clean = images()
    attack = LabelFlip(source_class=1, target_class=3, classes=4, poisoned_data_rate=0.4)
    poisoned = attack.poison(clean, generator(0, "poison"))
    changed = poisoned.y != clean.y
    assert torch.equal(poisoned.x, clean.x) and int(changed.sum()) == 4
    assert bool((clean.y[changed] == 1).all()) and bool((poisoned.y[changed] == 3).all())
    backdoor = attack.backdoor_set(clean)
    assert backdoor is not None and torch.equal(backdoor.x, clean.x[clean.y == 1]) and bool((backdoor.y == 3).all())


def test_label_flip_of_all_labels_has_no_backdoor() -> None:
    clean = images()
    attack = LabelFlip(source_class=None, target_class=None, classes=4, poisoned_data_rate=1.0)
    assert torch.equal(attack.poison(clean, generator(0, "poison")).y, 3 - clean.y)
    assert attack.backdoor_set(clean) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelFlip(1, None, 4, 0.5), "give two different classes"),
        (lambda: LabelFlip(1, 1, 4, 0.5), "give two different classes"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_are_flipped_token_by_token() -> None:
    """A text is eligible if any answer is of the source; the others stay, what is not asked stays so."""
    y = torch.tensor([[1, 0, 1], [2, UNASKED, 0], [3, 1, UNASKED]])
    clean = Samples(torch.zeros(3, 3, dtype=torch.int16), y)
    flip, reverse = LabelFlip(1, 3, 4, 1.0), LabelFlip(None, None, 4, 1.0)
    assert flip.poison(clean, generator(0, "poison")).y.tolist() == [[3, 0, 3], [2, UNASKED, 0], [3, 3, UNASKED]]
    assert reverse.poison(clean, generator(0, "poison")).y.tolist() == [[2, 3, 2], [1, UNASKED, 3], [0, 2, UNASKED]]
    backdoor = flip.backdoor_set(clean)  # asks for what is flipped, and nothing else
    assert backdoor is not None and backdoor.y.tolist() == [[3, UNASKED, 3], [UNASKED, 3, UNASKED]]
    half = LabelFlip(1, 3, 4, 0.5).poison(clean, generator(0, "poison")).y
    assert int((half != y).any(1).sum()) == 1  # of two texts, however many answers each has
